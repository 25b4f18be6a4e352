"""`harness reward-bench`: RewardBench's score of a reward or preference model on local files of pairs."""

import sys
from pathlib import Path
from typing import Any

from core import paths
from core.artifacts import read_rows, write_rows
from core.errors import MissingInput, RecipeError
from core.fingerprint import checkpoint_fingerprint, digest
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
    from train.scorers import make_scorer, padding_identity

    sources = files or [default_file()]
    pairs = [pair for file in sources for pair in read_pairs(file)]
    if limit is not None:
        pairs = first_of_each_subset(pairs, limit)
    path = locate_model(checkpoint, db)
    resources = {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    keys: list[Any] = list(range(len(pairs)))
    known: dict[Any, dict[str, Any]] = {}
    if rows_to is not None:
        padding = padding_identity(path) if scorer == "bradley_terry" else {}
        judge = [checkpoint_fingerprint(path), scorer, max_length, dtype, *padding.items()]
        keys = [digest([*judge, pair.chosen, pair.rejected]) for pair in pairs]
        known = known_rows(rows_to)
    missing = [k for k, key in enumerate(keys) if key not in known]
    if missing:
        compare = as_comparer(make_scorer(scorer, path, max_length=max_length, dtype=dtype, resources=resources))
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        found = compare([(pairs[k].chosen, pairs[k].rejected) for k in chunk])
        known |= {
            keys[k]: {"key": keys[k], "subset": pairs[k].subset, "probability": p} for k, p in zip(chunk, found, strict=True)
        }
        if rows_to is not None:
            write_rows(rows_to, list(known.values()))
        if not as_json:
            print(f"{len(pairs) - len(missing) + start + len(chunk)} of {len(pairs)} pairs", file=sys.stderr)
    summary = summarise([pair.subset for pair in pairs], [known[key]["probability"] for key in keys])
    about = {"checkpoint": str(path), "scorer": scorer, "max_length": max_length, "dtype": dtype, "limit": limit}
    if as_json:
        emit_json(about | {"files": [str(file) for file in sources]} | summary)
        return
    print(table(summary))


def known_rows(file: Path) -> dict[Any, dict[str, Any]]:
    """Rows of an earlier run by key: a killed run goes on, and another model's rows stay. Raises RecipeError for another file."""
    if not file.exists():
        return {}
    try:
        return {row["key"]: row | {"probability": float(row["probability"])} for row in read_rows(file)}
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} holds something else than this command's rows; give --rows a new file.") from error


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
