"""Keys of `sft`, `reward` and `gold_reward`, and those that every training shares."""

from typing import Literal

from pydantic import Field, model_validator

from harness.recipe.sections import Fraction, Model, NonNegative, Positive, Section


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
