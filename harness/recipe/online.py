"""Keys of `generate`, `annotate` and `pairs`: from a policy to its preference pairs."""

from typing import Literal

from pydantic import Field, model_validator

from harness.recipe.sections import NonNegative, Positive, Section


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
