"""`harness reward-bench`: RewardBench's score of a reward or preference model on local files of pairs."""

import sys
from pathlib import Path
from typing import Any

from core import paths
from core.artifacts import write_rows
from core.errors import MissingInput
from harness.console import emit_json

_LLMBAR = "preferences/llmbar.jsonl.gz"
# Pairs scored between two lines of progress.
_CHUNK = 64
_KINDS = ("reward", "gold_reward", "preference")


def run_reward_bench(
    checkpoint: str,
    files: list[Path],
    scorer: str,
    max_length: int,
    dtype: str,
    batch_tokens: int | None,
    limit: int | None,
    rows_to: Path | None,
    as_json: bool,
    db: str | None,
) -> None:
    """Score the pairs of `files` (default: LLMBar from HARNESS_DATA) and print accuracies with their intervals."""
    from train.reward_bench import as_comparer, read_pairs, summarise
    from train.scorers import make_scorer

    sources = files or [default_file()]
    pairs = [pair for file in sources for pair in read_pairs(file)]
    if limit is not None:
        pairs = first_of_each_subset(pairs, limit)
    path = locate_model(checkpoint, db)
    compared = [(pair.chosen, pair.rejected) for pair in pairs]
    resources = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    compare = as_comparer(make_scorer(scorer, path, max_length=max_length, dtype=dtype, resources=resources))
    probabilities: list[float] = []
    for start in range(0, len(compared), _CHUNK):
        probabilities += compare(compared[start : start + _CHUNK])
        if not as_json:
            print(f"{len(probabilities)} of {len(compared)} pairs", file=sys.stderr)
    subsets = [pair.subset for pair in pairs]
    if rows_to is not None:
        rows = [{"index": k, "subset": subsets[k], "probability": p} for k, p in enumerate(probabilities)]
        write_rows(rows_to, rows)
    summary = summarise(subsets, probabilities)
    about = {"checkpoint": str(path), "scorer": scorer, "max_length": max_length, "dtype": dtype, "limit": limit}
    if as_json:
        emit_json(about | {"files": [str(file) for file in sources]} | summary)
        return
    print(table(summary))


def default_file() -> Path:
    """LLMBar in the data mirror. Raises MissingInput that names what to give instead."""
    mirror = paths.data_mirror()
    file = mirror / _LLMBAR if mirror else None
    if file is None or not file.is_file():
        raise MissingInput(
            f"No file of pairs was given and {_LLMBAR} is not in HARNESS_DATA; give a JSON Lines file of rows with prompt, "
            "chosen, rejected and subset."
        )
    return file


def locate_model(checkpoint: str, db: str | None) -> Path:
    """Path of a checkpoint given as a directory, as a reward model of the registry (RUN/reward), or as a hub id."""
    from sqlalchemy import select

    from db import Registry, models
    from harness.resolve import resolve_checkpoint

    if not Path(checkpoint).expanduser().is_dir():
        with Registry.open(db).read() as session:
            found = session.scalars(
                select(models.Checkpoint).where(models.Checkpoint.name == checkpoint, models.Checkpoint.kind.in_(_KINDS))
            ).first()
            if found is not None:
                return Path(found.path)
    return Path(str(resolve_checkpoint(checkpoint).path))


def first_of_each_subset(pairs: list[Any], limit: int) -> list[Any]:
    """At most `limit` pairs of each subset, in the files' order."""
    taken: dict[str, int] = {}
    kept = []
    for pair in pairs:
        taken[pair.subset] = taken.get(pair.subset, 0) + 1
        if taken[pair.subset] <= limit:
            kept.append(pair)
    return kept


def table(summary: dict[str, Any]) -> str:
    """Accuracies in percent with 95 % intervals, one line each; what is incomplete says what it lacks."""
    named = [(f"  {name}", row) for name, row in summary["subsets"].items()]
    named += [(name, row) for name, row in summary["sections"].items() if row["n"]]
    totals = {"score": "RewardBench", "score_with_prior": "with prior sets", "overall": "all pairs"}
    named += [(name, summary[key]) for key, name in totals.items()]
    lines = [f"{'':24} {'accuracy':>8}  {'95 % interval':>14}  {'n':>5}"]
    for name, row in named:
        if row["accuracy"] is None:
            if name != "with prior sets":
                lines.append(f"{name:24} {'-':>8}  lacks {', '.join(row['missing'])}")
            continue
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        ties = f"  {row['ties']} ties" if row.get("ties") else ""
        lines.append(f"{name:24} {100 * row['accuracy']:8.1f}  {interval:>14}  {row['n']:5}{ties}")
    return "\n".join([*lines, f"Expected calibration error over all pairs: {summary['overall']['ece']:.3f}"])
