"""Keys of `evaluate`: benchmarks and judge."""

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.recipe.sections import NonNegative, Positive, Section


class Benchmark(Section):
    name: str
    variant: str = "official"
    """`official`, `starter` (the small set shipped with the harness), or another version of the data that the benchmark names."""
    limit: Positive | None = None
    """A seeded sample of so many questions; never ranked with full runs."""
    max_tokens: Positive | None = None
    """Overrides the official limit; recorded in the evaluation's identity."""
    samples: Positive | None = None
    """Answers per question, where one is official; pass@10 needs 10 or more. Recorded."""
    temperature: NonNegative | None = None
    """Overrides the official temperature of every question; recorded."""
    chat_template: bool | None = None
    """TruthfulQA, gsm8k, mmlu and arc_challenge only, whose official prompts are plain text (false): true makes TruthfulQA's one
    user turn, and turns of worked examples of the others; recorded."""
    shots: int | None = Field(None, ge=0)
    """Worked examples before each question (gsm8k 8, mmlu 5, arc_challenge 25, as in the paper, unless set); recorded."""


class Price(Section):
    """Dollars per million tokens."""

    input: NonNegative
    output: NonNegative


class Endpoint(Section):
    """One of several replicas that serve the judge's model."""

    base_url: str
    api_key_env: str | None = None
    """Default: the judge's own; "" for an endpoint without keys."""


class Judge(Section):
    kind: Literal["reward_model", "openai", "serve"] = "reward_model"
    role: Literal["gold_reward", "reward"] = "gold_reward"
    """Which reward model of the run judges, when kind is reward_model."""
    max_length: Positive = 4096
    """Tokens that a reward model reads; longer conversations are cut at the left."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of a reward model; auto is float32. bfloat16 moves a reward by about 0.1; recorded in the judge's identity."""
    serve: str | None = None
    """A checkpoint directory or hub id that vLLM's own server serves on this machine as the judge; makes the kind serve."""
    revision: str | None = None
    """Hub commit of the served judge."""
    max_model_len: Positive | None = None
    """Context of the served judge, in tokens; None is the model's own."""
    model: str | None = None
    """Model name at the endpoint, when kind is openai."""
    base_url: str | None = None
    """Of an OpenAI-compatible service (default: OpenAI's); part of the judge's identity."""
    endpoints: list[Endpoint] = []
    """Replicas that share the calls; base_url (default: the first one's) then only names the service."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; "" for a service without keys."""
    temperature: NonNegative | Literal["omit"] | None = None
    """Instead of the benchmark's own; `omit` for models that take none. Recorded in the judge's identity."""
    max_tokens: Positive | None = None
    """A lower limit on the judge's replies than the benchmark's own. Recorded in the judge's identity."""
    alpaca_eval_annotator: Literal["weighted_alpaca_eval_gpt4_turbo"] = "weighted_alpaca_eval_gpt4_turbo"
    """AlpacaEval's judge configuration: another moved the same model from 31.3 to 37.2 (paper Remark 1)."""
    transport: Literal["online", "batch"] = "online"
    """`batch`: OpenAI's batch files, at half the price, within a day."""
    concurrency: Positive = 16
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    """Limits of each endpoint; tokens of prompt and reply together."""
    max_tokens_name: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """Name of the reply's limit; auto turns to the second when a model refuses the first."""
    price: Price | None = None
    """None takes it from HARNESS_HOME/prices.yaml or the shipped table."""
    max_usd: NonNegative | None = None
    """Dollars that the run may spend on its judge, over all stages and attempts; needs a price."""
    on_failure: Literal["stop", "continue"] = "stop"
    """When the judge stops answering: end the run, or train on, leave those evaluations partial and say so at the end."""

    @model_validator(mode="before")
    @classmethod
    def _served(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("serve") and values.get("kind") in (None, "reward_model"):
            return values | {"kind": "serve"}
        return values

    @model_validator(mode="after")
    def _complete(self) -> "Judge":
        if self.kind == "openai" and not self.model:
            raise ValueError("a judge of kind openai needs `model`, e.g. gpt-4-1106-preview")
        if (self.kind == "serve") != bool(self.serve):
            raise ValueError("a judge of kind serve needs `serve`, a checkpoint directory or hub id, and no other kind takes it")
        if self.transport == "batch" and self.endpoints:
            raise ValueError("batch files go to one endpoint; leave `endpoints` out or set transport: online")
        return self


class Evaluate(Section):
    benchmarks: list[Benchmark] = Field(min_length=1)
    judge: Judge = Judge()
    engine: Literal["vllm", "transformers"] = "vllm"
    max_model_len: Positive = 8192
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    likelihood_engine: Literal["transformers", "vllm"] = "transformers"
    """What gives log-probabilities of given answers; recorded."""
    system_prompt: str | None = None
    held_out_reward: bool = True
    """Also answer the run's held-out prompts and score them with its reward models."""
    held_out_max_tokens: Positive = 512
    unsafe_exec: bool = False
    """Run generated code without the sandbox; recorded in the result."""
    threads: Positive | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Evaluate":
        if len({b.name for b in self.benchmarks}) < len(self.benchmarks):
            raise ValueError("benchmarks names one benchmark twice")
        return self
