"""Keys of `data`: what is trained on. A mixture (`harness/mixtures/*.yaml`) is these keys in a file of its own, with a name."""

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.recipe.sections import Fraction, Positive, Section

Use = Literal["preferences", "prompts", "sft"]


class Filters(Section):
    """Thresholds of one source. A key that is left out filters nothing."""

    system_prompts: Literal["keep", "drop"] = "keep"
    """drop: without conversations that have a system prompt, as RLHFlow's pair data."""
    min_characters: Positive | None = None
    max_characters: Positive = 20_000
    """Of all contents of a conversation; of a pair, both sides must fit."""
    min_tokens: Positive | None = None
    max_tokens: Positive | None = None
    """As characters; by data.tokenizer, or estimated as characters / 4 where that is null."""
    min_margin: float | None = None
    """Chosen minus rejected score must be at least this; rows without scores are dropped. The paper drops small margins but gives
    no number (App. B.1)."""
    min_ratio: float | None = Field(None, gt=0)
    """Chosen over rejected score must be above this (SHP in the paper: 2)."""
    max_pairs_per_prompt: Positive | None = None
    """A seeded draw of so many pairs of each prompt (SHP in the paper: 5)."""

    @property
    def given(self) -> dict[str, Any]:
        """The keys that differ from their defaults: what is part of the data's identity."""
        return self.model_dump(mode="json", exclude_defaults=True)


class DataSource(Section):
    name: str
    """A catalogue name (`harness data list`) or the path of a local file (.jsonl, .json, .parquet; .gz) with rows {messages},
    {chosen, rejected} or as trl reads them: {prompt, chosen, rejected}, {prompt, completion}, {prompt}."""
    use: Use
    """preferences: pairs; prompts: answered in the iterations; sft: demonstrations, in place of the chosen replies."""
    split: str | None = None
    """Only the files whose name begins with this (`train`); null takes all files."""
    limit: Positive | None = None
    """At most so many rows, drawn with the recipe's seed."""
    weight: float | None = Field(None, gt=0)
    """Share of the mixture among the sources of the same use, which then all need one; only ratios count. Rows are drawn
    without replacement, as many as the scarcest source allows."""
    repeat: Positive = 1
    """Every row of the training files so often: upsampling by whole repeats (preferences and sft)."""
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _fits_use(self) -> "DataSource":
        if self.use == "prompts" and self.repeat > 1:
            raise ValueError("prompts are not repeated; remove `repeat` from this source")
        pairs_only = sorted({"min_margin", "min_ratio", "max_pairs_per_prompt"} & self.filters.given.keys())
        if self.use != "preferences" and pairs_only:
            raise ValueError(f"{pairs_only[0]} is for preferences; remove it from the filters of this source of {self.use}")
        return self


class Data(Section):
    mixture: str | None = None
    """A mixture by name (`harness data mixtures`) or path: its keys stand for those that are not given here."""
    seed: int | None = Field(None, ge=0)
    """Of every draw and order; null: the mixture's, else the recipe's."""
    sources: list[DataSource] = Field(min_length=1)
    gold_fraction: Fraction = 0.4
    """Share of preference prompts kept away from the proxy reward model, for the gold one."""
    heldout_pairs: int = Field(32, ge=1)
    heldout_prompts: int = Field(24, ge=1)
    near_duplicates: float | None = Field(0.8, gt=0, le=1)
    """Prompts whose word 5-grams have at least this Jaccard similarity are one prompt: in one split, once in the pool. null:
    only prompts that are equal after normalisation."""
    decontaminate: Literal["report"] | bool = True
    """true: remove training prompts that share 8-grams with a benchmark question (Tulu-3's rule); report: only say so; false:
    do not look."""
    benchmarks: list[str] | Literal["all"] = []
    """Benchmarks beside those of `evaluate` that the prompts are compared with (their official questions); all: every one that
    is on this machine. What was compared is part of the data's identity and stands in its card."""
    tokenizer: str | None = None
    """By which min_tokens, max_tokens and the data card count: a directory with a tokenizer, or `base` for the recipe's base
    model; null: characters / 4."""

    @model_validator(mode="before")
    @classmethod
    def _with_mixture(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        if isinstance(content.get("mixture"), str) and not content.get("sources"):
            from harness.mixture_file import mixture_content

            given = {key: value for key, value in content.items() if key != "sources"}
            content = mixture_content(content["mixture"]) | given
        if not content.get("sources"):
            raise ValueError("data needs sources, or the name of a mixture: `mixture: starter` (`harness data mixtures`)")
        return content

    @model_validator(mode="after")
    def _weights_are_whole(self) -> "Data":
        for use in ("preferences", "prompts", "sft"):
            own = [source for source in self.sources if source.use == use]
            without = [source.name for source in own if source.weight is None]
            if without and len(without) < len(own):
                raise ValueError(f"{without[0]} has no weight but other sources of {use} do; give it one, or remove theirs")
        return self

    def uses(self, use: Use) -> bool:
        return any(source.use == use for source in self.sources)


class Mixture(Data):
    """A file of `harness/mixtures`, of HARNESS_HOME/mixtures, or any other YAML file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    benchmarks: list[str] | Literal["all"] = "all"
    """As of a recipe; a mixture by itself evaluates nothing, so it is compared with all."""
