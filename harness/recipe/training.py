"""Keys of `sft`, `reward` and `gold_reward`, and those that every training shares."""

from typing import Literal

from pydantic import Field, model_validator

from harness.recipe.sections import Fraction, Model, NonNegative, Positive, Section

# Parts of a model that no adapter goes to: embeddings, which the head may share, and heads, whose weights trl reads directly.
_NO_TARGETS = ("embed_tokens", "lm_head", "score")


class LoRA(Section):
    """Low-rank adapters (arXiv 2106.09685). Saved is the full model with the adapter merged, and the adapter beside it."""

    r: Positive = 16
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """The update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapter's inputs."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of layers, such as q_proj and v_proj; or every linear layer but the head."""

    @model_validator(mode="after")
    def _targets_can_be_merged(self) -> "LoRA":
        if not self.target_modules:
            raise ValueError("target_modules names no layer; use all-linear, or leave lora out")
        taken = [name for name in _NO_TARGETS if name in self.target_modules]
        if taken:
            raise ValueError(
                f"target_modules names {', '.join(taken)}, which cannot take an adapter; leave embeddings and heads out"
            )
        return self


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
    zero_offload: Literal["optimizer", "optimizer_and_parameters"] | None = None
    """What DeepSpeed keeps in the CPUs' memory, where steps become slower and larger models fit; parameters under zero_stage 3
    only."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights; learning rates are about ten times those of full training."""
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
        if self.zero_offload and self.zero_stage is None:
            raise ValueError("zero_offload is DeepSpeed's; set zero_stage to 1, 2 or 3, or leave it out")
        if self.zero_offload == "optimizer_and_parameters" and self.zero_stage != 3:
            raise ValueError("only ZeRO stage 3 offloads parameters; set zero_stage to 3 or zero_offload to optimizer")
        if self.zero_offload and self.optimizer == "paged_adamw_32bit":
            raise ValueError("paged_adamw_32bit steps on the GPU; set optimizer to adamw_torch with zero_offload")
        return self


class SFT(Training):
    enabled: bool = True
    """False starts the loop from the base model itself."""
    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """Tokens that are learned: all assistant turns with their turn ends; the last one only, for chat templates that rewrite
    earlier turns (those that drop past reasoning); or everything."""
    packing: bool = False
    """Several conversations share a row of up to max_length tokens without seeing each other (flash attention where it is
    installed, else a block-diagonal mask). batch_size and micro_batch_size then count rows."""


class Reward(Training):
    checkpoint: Model | None = None
    """A reward model to use as it is; None trains one on the recipe's pairs."""
    start: Literal["base", "sft"] | Model = "base"
    """Initial weights of the trained one: the recipe's own, or any model with a chat template, `{source: ...}` (the paper starts
    from Llama-3-8B-Instruct)."""
    center_rewards_coefficient: float | None = Field(None, ge=0)
    """Adds this times (r_chosen + r_rejected)^2, which keeps rewards near mean 0 (arXiv 2312.09244; 0.01 there)."""
    margin: bool = False
    """Subtracts each pair's `margin` from its reward difference in the loss (arXiv 2307.09288, Eq. 2)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preference labels taken to be wrong."""
    too_long: Literal["drop", "cut_left"] = "drop"
    """A pair above max_length is dropped, or its prompt is cut at the left (the paper's code), which keeps both answers."""


class Preference(Training):
    """A model that compares two answers (A or B), for `annotate.scorer: pairwise`. Defaults are the paper's (section 2.2)."""

    checkpoint: Model | None = None
    """A preference model to use as it is, e.g. RLHFlow/pair-preference-model-LLaMA3-8B; None trains one on the recipe's pairs."""
    start: Literal["base", "sft"] | Model = "base"
    """Initial weights of the trained one: the recipe's own, or any model with a chat template, `{source: ...}`."""
    learning_rate: float = Field(5e-6, gt=0, lt=1)
    batch_size: Positive = 128
    max_length: Positive = 3072
    """Tokens of context and both responses together."""
    orders: Literal["random", "both"] = "random"
    """Each pair shown in one order, drawn by the seed, or in both: twice the examples."""
    self_test: bool = True
    """Check known pairs whenever the model is loaded; a model under another chat template judges badly without any other sign."""
