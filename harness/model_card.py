"""A model's card as a hub reads it: README.md with `model-index` metadata, and the same for people below it.

Metadata: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. A score's interval, n, judge and method stand in
`metrics[].args`; `dataset.revision` is the version of the data that was asked (a digest of the files), not a commit.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dashboard import format as f
from dashboard.reproduce import evaluation_options, variant
from db.card import Card, Measured
from db.leaderboard import Cell
from harness.markdown import code, fenced, front_matter, inline, one_line, table
from harness.provenance import Origin, base_model, origins, public

_DATASETS = {
    "alpaca_eval": "tatsu-lab/alpaca_eval",
    "arena_hard": "lmarena-ai/arena-hard-auto-v0.1",
    "arena_hard_v2": "lmarena-ai/arena-hard-auto",
    "mt_bench": "HuggingFaceH4/mt_bench_prompts",
    "mt_bench_pairwise": "HuggingFaceH4/mt_bench_prompts",
    "human_eval": "openai/openai_humaneval",
    "human_eval_prefill": "openai/openai_humaneval",
    "mbpp": "google-research-datasets/mbpp",
    "truthful_qa": "truthfulqa/truthful_qa",
    "truthful_qa_binary": "truthfulqa/truthful_qa",
    "truthful_qa_generation": "truthfulqa/truthful_qa",
    "gsm8k": "openai/gsm8k",
    "mmlu": "cais/mmlu",
    "arc_challenge": "allenai/ai2_arc",
}
"""benchmark -> id of its data on the Hugging Face hub."""

_SCORES = {"reward": "text-classification", "gold_reward": "text-classification"}
"""kind of checkpoint -> what a hub calls its task; everything else generates text."""


@dataclass(frozen=True)
class Facts:
    """What a card says beside what the registry's `Card` holds."""

    card: Card
    recipe: dict[str, Any]
    """Of the run that made it; empty for weights that no recipe made."""
    licence: str | None
    """Identifier that the publisher chose; None leaves it out of the metadata, and the card says so."""
    version: str
    """Of this harness."""


def model_card(facts: Facts) -> str:
    """README.md of an exported model."""
    found, row = facts.card, facts.card.checkpoint
    parts = [
        f"# {inline(row.name)}",
        _summary(facts),
        "## Scores",
        *_scores(found),
        "## Lineage",
        table(["Checkpoint", "Kind", "Reference policy", "Fingerprint"], [_ancestor(one) for one in found.ancestors]),
        *_training(facts),
        "## Licences of what went in",
        *_licences(facts),
        "## Making it again",
        *_commands(facts),
    ]
    return front_matter(metadata(facts)) + "\n" + "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """The card's YAML block: what a hub indexes. What is not known is left out."""
    row = facts.card.checkpoint
    task = _SCORES.get(row.kind, "text-generation")
    _, hub_id = base_model(facts.recipe)
    fields = {
        "license": facts.licence,
        "base_model": hub_id,
        "datasets": sorted({origin.hub_id for origin in origins(facts.recipe) if origin.hub_id}),
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["rlhf", "dpo", "online-rlhf"] if row.kind == "iteration" else ["rlhf"],
        "model-index": model_index(row.name, task, facts.card.measured),
    }
    return one_line(fields)


def model_index(name: str, task: str, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The leading scores in the hub's form. Withheld, unfinished and flagged ones are left out: they stand in the text."""
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, limit in ((cell, one.settings.get("limit")) for one in measured for cell in one.cells):
        if cell.value is None or not cell.complete or cell.flags or not _leading(cell):
            continue
        # The group holds data version, answer settings and judge: results of different groups are different measurements.
        result = results.setdefault(
            (cell.benchmark, cell.group), {"task": {"type": task}, "dataset": _dataset(cell, limit), "metrics": []}
        )
        arguments = {
            "low": cell.low,
            "high": cell.high,
            "confidence": 0.95,
            "n": cell.n,
            "n_failed": cell.n_failed,
            "judge": f.judge(cell),
            "method": cell.method,
        }
        metric = {"type": cell.metric, "value": cell.value, "name": f.metric_label(cell.benchmark, cell.metric)}
        result["metrics"].append(metric | {"args": {key: value for key, value in arguments.items() if value is not None}})
    return [{"name": name, "results": list(results.values())}] if results else []


def _leading(cell: Cell) -> bool:
    """Whether a metric is its benchmark's headline, or one that papers report beside it."""
    return cell.headline or cell.metric in f.SECOND.get(cell.benchmark, ())


def _dataset(cell: Cell, limit: int | None) -> dict[str, Any]:
    official = cell.benchmark in _DATASETS and not f.is_starter(cell.version)
    # Results that share type, config, split and revision are merged by readers: the group keeps different settings apart.
    return {
        "type": _DATASETS[cell.benchmark] if official else f"{cell.benchmark}-{cell.version.split('@')[0]}",
        "name": f"{f.benchmark_label(cell.benchmark)} ({_questions(cell, limit)})",
        "config": cell.group,
        "revision": cell.version,
    }


def _questions(cell: Cell, limit: int | None) -> str:
    asked = f"a sample of {cell.n_questions} questions" if limit else f"{cell.n_questions} questions"
    return f"{f.data_version(cell.version)}, {asked}"


def _summary(facts: Facts) -> str:
    row = facts.card.checkpoint
    kind = f"iteration {row.iteration} of online DPO" if row.kind == "iteration" else row.kind.replace("_", " ")
    made = f" of the run {code(facts.card.run)} (recipe {code(facts.card.recipe)})" if facts.card.run else ""
    return (
        f"{kind[:1].upper()}{kind[1:]}{made}. Fingerprint of weights, configuration, tokenizer and chat template: "
        f"{code(row.fingerprint)}; `harness.json` has everything below for machines. Written by rlhf-harness {facts.version}."
    )


def _scores(found: Card) -> list[str]:
    cells = [cell for one in found.measured for cell in one.cells]
    if not cells:
        return ["Nothing was measured on it."]
    order = f.order_benchmarks({cell.benchmark for cell in cells})
    cells.sort(key=lambda cell: (order.index(cell.benchmark), cell.evaluation_id, not cell.headline, cell.metric))
    notes: list[str] = []
    for cell in cells:
        if not cell.complete:
            notes.append(f"{f.benchmark_label(cell.benchmark)} by {f.judge(cell)} is not complete.")
        notes += [f"{f.benchmark_label(cell.benchmark)} is flagged: {flag['reason']}" for flag in cell.flags]
    header = ["Benchmark", "Metric", "Value, 95 % interval", "n", "Failed", "Judge", "Data", "How"]
    limits = {cell.evaluation_id: one.settings.get("limit") for one in found.measured for cell in one.cells}
    further = [_score(cell, limits[cell.evaluation_id]) for cell in cells if not _leading(cell)]
    return [
        table(header, [_score(cell, limits[cell.evaluation_id]) for cell in cells if _leading(cell)]),
        "\n".join(f"- {inline(note)}" for note in dict.fromkeys(notes)),
        f"<details><summary>Further metrics</summary>\n\n{table(header, further)}\n\n</details>" if further else "",
    ]


def _score(cell: Cell, limit: int | None) -> list[str]:
    measured = [f.metric_label(cell.benchmark, cell.metric), f.score(cell), str(cell.n), str(cell.n_failed)]
    data = _questions(cell, limit)
    return [inline(text) for text in (f.benchmark_label(cell.benchmark), *measured, f.judge(cell), data, cell.method)]


def _ancestor(one: Any) -> list[str]:
    kind = f"iteration {one.iteration}" if one.kind == "iteration" else one.kind.replace("_", " ")
    return [inline(one.name), inline(kind), inline(one.reference or f.ABSENT), code(one.fingerprint)]


def _training(facts: Facts) -> list[str]:
    provenance = public(facts.card.checkpoint.provenance)
    if "settings" not in provenance:
        return ["## Training", "These weights were not trained by this harness."]
    kept = {key: provenance[key] for key in ("program", "settings", "metrics", "environment", "seconds") if key in provenance}
    return ["## Training", fenced(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), "yaml")]


def _licences(facts: Facts) -> list[str]:
    chosen = f"Published under {code(facts.licence)}." if facts.licence else "The publisher has chosen no licence for it yet."
    if not facts.recipe:
        return [chosen, "Where its weights come from, and under which licence, is not recorded."]
    called, hub_id = base_model(facts.recipe)
    base = [inline(called), "base model", f"see https://huggingface.co/{hub_id}" if hub_id else "not recorded", f.ABSENT]
    rows = [base, *(_origin(one) for one in origins(facts.recipe))]
    return [chosen, table(["Name", "Use", "Licence", "From"], rows), "Terms of what went in may bind what came out."]


def _origin(one: Origin) -> list[str]:
    return [inline(one.name), inline(one.use), inline(one.licence), inline("; ".join(t for t in (one.source, one.note) if t))]


def _commands(facts: Facts) -> list[str]:
    lines = []
    if facts.recipe:
        lines += ["harness train-and-eval recipe.yaml"]
    lines += evaluation_commands(facts.card)
    texts = [fenced("\n".join(lines), "bash")] if lines else []
    if facts.recipe:
        texts += ["`recipe.yaml` is the run's recipe without folders and addresses of this machine: put yours in their place."]
    return texts or ["How it was made is not recorded."]


def evaluation_commands(found: Card) -> list[str]:
    """What to type in the exported folder to measure again: one command for benchmarks of equal variant, limit and judge.

    Held-out rewards and imported answers are left out: their prompts, or the judge, are not to be had from outside.
    """
    asked: dict[tuple[str, ...], set[str]] = {}
    for one in found.measured:
        if not one.cells or one.provenance or one.cells[0].benchmark == f.HELD_OUT:
            continue
        head = one.cells[0]
        if not re.fullmatch(r"[\w.-]+", variant(head.version)):
            continue
        options = evaluation_options(one, found.recipe_keys.get("seed"), addresses=False)
        asked.setdefault(tuple(options), set()).add(head.benchmark)
    command = ("harness", "eval", ".", "--benchmarks")
    lines = ([*command, ",".join(f.order_benchmarks(names)), *options] for options, names in asked.items())
    return [f.plain(shlex.join(line)) for line in lines]
