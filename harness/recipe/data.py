"""Keys of `data`: what is trained on."""

from typing import Literal

from pydantic import Field

from harness.recipe.sections import Fraction, Positive, Section


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
