"""The card of published preference pairs: README.md with a hub's metadata, and how every pair came about.

Metadata: https://github.com/huggingface/hub-docs/blob/main/datasetcard.md; `configs` names the files, so that
`datasets.load_dataset(folder)` needs no script.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from dashboard import format as f
from harness.markdown import code, fenced, front_matter, inline, one_line, table
from harness.provenance import Origin

# Edges of the hub's size categories.
_SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000), ("1M<n<10M", 10_000_000))


@dataclass(frozen=True)
class Turn:
    """One iteration's pairs."""

    iteration: int
    file: str
    rows: int
    policy: dict[str, str]
    """{"name", "fingerprint"} of the model that answered (and what the registry does not know is empty)."""
    scorers: list[dict[str, str]]
    """The same of what scored the answers."""
    generation: dict[str, Any]
    """Settings of the generation: arms, max_tokens, engine, seed, ..."""
    statistics: dict[str, Any]
    """Fields of `db.models.PreferenceSet`."""


@dataclass(frozen=True)
class DatasetFacts:
    run: str
    recipe: str
    turns: list[Turn]
    origins: list[Origin]
    contamination: dict[str, Any] | None
    """That part of the data stage's card.json; None where the artifact is gone."""
    licence: str | None
    version: str
    pairs: dict[str, Any] = field(default_factory=dict)
    """Settings of the pair selection."""


def dataset_card(facts: DatasetFacts) -> str:
    """README.md of exported preference pairs."""
    rows = sum(turn.rows for turn in facts.turns)
    parts = [
        f"# Preference pairs of {inline(facts.run)}",
        f"{rows} pairs of {f.plural(len(facts.turns), 'iteration')} of online DPO (run {code(facts.run)}, recipe "
        f"{code(facts.recipe)}): answers of the model in training, ranked by the scorers below. Nobody read them. Written by "
        f"rlhf-harness {facts.version}.",
        "A row: `chosen` and `rejected` are conversations that end with the answer; `chosen_score` and `rejected_score` are the "
        "rewards in the scorer's own units; `prompt_id` names the source; `chosen_finish_reason` is `length` for a cut answer.",
        "## Iterations",
        table(
            ["Iteration", "Pairs", "Answered by", "Fingerprint", "Scored by", "Fingerprint"], [_models(t) for t in facts.turns]
        ),
        "## Statistics",
        table(_STATISTICS, [_statistics(turn) for turn in facts.turns]),
        *(_dropped(facts.turns)),
        "## How they were made",
        fenced(yaml.safe_dump(_made(facts), sort_keys=False, allow_unicode=True), "yaml"),
        "## Sources of the prompts",
        table(["Name", "Use", "Licence", "From"], [_origin(one) for one in facts.origins]),
        f"Published under {code(facts.licence)}." if facts.licence else "The publisher has chosen no licence for it yet.",
        "## Contamination",
        contamination(facts.contamination),
    ]
    return front_matter(metadata(facts)) + "\n" + "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: DatasetFacts) -> dict[str, Any]:
    """The card's YAML block."""
    rows = sum(turn.rows for turn in facts.turns)
    fields = {
        "license": facts.licence,
        "pretty_name": f"Preference pairs of {facts.run}",
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "size_categories": [next((name for name, below in _SIZES if rows < below), "10M<n<100M")],
        "tags": ["preference", "rlhf", "dpo", "on-policy"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": [turn.file for turn in facts.turns]}]}],
    }
    return one_line(fields)


def contamination(told: dict[str, Any] | None) -> str:
    """What the data stage found of benchmark questions among the prompts."""
    if told is None:
        return "Not known: the data stage's card is gone."
    if told.get("action") == "off":
        return "Not checked: `decontaminate` is false."
    benchmarks = told.get("benchmarks", {})
    if not benchmarks:
        return "No benchmark's questions were there to check against."
    rows = []
    for benchmark, found in benchmarks.items():
        removed = found.get("removed", told.get("removed"))
        for source, counts in found.get("by_source", {}).items():
            if counts["rows"]:
                seen = f"{counts['questions']} of {found['questions']}"
                rows.append([inline(benchmark), inline(source), str(counts["rows"]), seen, "removed" if removed else "kept"])
    checked = f"Prompts were compared with the questions of {', '.join(map(inline, benchmarks))} by 8-grams (Tulu 3's rule)."
    if not rows:
        return f"{checked} None held one."
    return f"{checked}\n\n{table(['Benchmark', 'Source', 'Rows found', 'Questions seen', 'They were'], rows)}"


def _models(turn: Turn) -> list[str]:
    def shown(models: list[dict[str, str]], key: str) -> str:
        return ", ".join((code if key == "fingerprint" else inline)(model.get(key) or f.ABSENT) for model in models) or f.ABSENT

    policy = [shown([turn.policy], "name"), shown([turn.policy], "fingerprint")]
    return [str(turn.iteration), str(turn.rows), *policy, shown(turn.scorers, "name"), shown(turn.scorers, "fingerprint")]


_STATISTICS = (
    *("Iteration", "Prompts", "Pairs", "Reward, mean", "Reward, chosen", "Reward, rejected", "Margin"),
    *("Tokens, chosen", "Tokens, rejected"),
)


def _statistics(turn: Turn) -> list[str]:
    found = turn.statistics
    decimals = [found.get(key) for key in ("reward_mean", "reward_chosen", "reward_rejected", "margin_mean")]
    tokens = [found.get(key) for key in ("tokens_chosen", "tokens_rejected")]
    counts = [str(turn.iteration), *(str(found.get(key, f.ABSENT)) for key in ("n_prompts", "n_pairs"))]
    return [*counts, *(f.decimal(value, 3) for value in decimals), *(f.decimal(value, 1) for value in tokens)]


def _dropped(turns: list[Turn]) -> list[str]:
    rows = [
        [str(turn.iteration), inline(rule), str(n)] for turn in turns for rule, n in turn.statistics.get("dropped", {}).items()
    ]
    return [table(["Iteration", "Prompts without a pair because of", "Prompts"], rows)] if rows else []


def _made(facts: DatasetFacts) -> dict[str, Any]:
    generation = {turn.iteration: turn.generation for turn in facts.turns}
    return {"pairs": facts.pairs, "generation": generation}


def _origin(one: Origin) -> list[str]:
    return [inline(one.name), inline(one.use), inline(one.licence), inline("; ".join(t for t in (one.source, one.note) if t))]
