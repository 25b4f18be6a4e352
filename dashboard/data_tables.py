"""A data set's card as the registry keeps it (`train.data_card.summary`): what became of every row, what was found in them."""

from collections.abc import Mapping
from typing import Any

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Column, Markup

_ACTIONS = {"removed": "removed", "reported": "reported and kept"}


def data_card(card: Mapping[str, Any]) -> Markup:
    """All parts of a card, one below the other."""
    told = card["contamination"]
    parts = [
        markup.heading("Rows, by source and rule", "every row that was read is kept or counted under the rule that dropped it"),
        _sources(card["sources"]),
        markup.heading("Questions of benchmarks", _compared(told)),
        _contamination(told["benchmarks"]),
        markup.heading("Like prompts"),
        _alike(card["near_duplicates"]),
        markup.heading("Files"),
        _files(card["files"]),
    ]
    return Markup("".join(parts))


def _sources(sources: Mapping[str, Any]) -> Markup:
    columns = [Column("Source"), Column("For"), Column("Read", numeric=True), Column("Kept", numeric=True)]
    columns += [Column("Dropped because of", wide=True), Column("Thresholds", wide=True)]
    rows: list[list[object]] = []
    for name, one in sources.items():
        dropped = sorted(one["dropped"].items(), key=lambda rule: -rule[1])
        why = ", ".join(f"{rule.replace('_', ' ')} {f.count(rows)}" for rule, rows in dropped)
        thresholds = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in one["filters"].items())
        rows.append([name, one["use"], f.count(one["read"]), f.count(one["kept"]), why or f.ABSENT, thresholds or f.ABSENT])
    return markup.plain_table("Rows, by source and rule", columns, rows)


def _compared(told: Mapping[str, Any]) -> str:
    if told["action"] not in _ACTIONS:
        return "not compared: decontaminate is false"
    names = ", ".join(f.benchmark_label(name) for name in told["benchmarks"]) or "no benchmark"
    return f"compared with {names}; rows that hold their questions: {_ACTIONS[told['action']]}"


def _contamination(benchmarks: Mapping[str, Any]) -> Markup:
    rows: list[list[object]] = []
    for benchmark, found in benchmarks.items():
        for source, counts in found["by_source"].items():
            flagged = '<small><span class="warn">flagged</span></small>' if counts["flagged"] else ""
            share = Markup(f"{100 * counts['share']:.1f} %{flagged}")
            seen = f"{f.count(counts['questions'])} of {f.count(found['questions'])}"
            rows.append([f.benchmark_label(benchmark), source, f.count(counts["rows"]), seen, share])
    if not rows:
        return markup.facts([("Rows that hold one", "0", "")]) if benchmarks else Markup("")
    columns = [Column("Benchmark"), Column("Source"), Column("Rows", numeric=True)]
    columns += [Column("Questions seen", numeric=True), Column("Share", numeric=True)]
    return markup.plain_table("Questions of benchmarks", columns, rows)


def _alike(told: Mapping[str, Any]) -> Markup:
    facts = [("Prompts", f.count(told["prompts"]), "different in more than case and punctuation")]
    if told["threshold"] is not None:
        facts += [
            ("Groups of like prompts", f.count(told["groups"]), f"Jaccard similarity {told['threshold']:g} or more; never split"),
            ("Like a held-out prompt", f.count(told["like_held_out"]), "training rows dropped"),
        ]
    return markup.facts(facts)


def _files(files: Mapping[str, Any]) -> Markup:
    columns = [Column("File"), Column("Rows", numeric=True), Column("Prompts", numeric=True), Column("sha256", wide=True)]
    rows: list[list[object]] = [
        [name, f.count(one["rows"]), f.count(one["prompts"]), one["sha256"]] for name, one in files.items()
    ]
    return markup.plain_table("Files", columns, rows)
