"""A big registry of made-up rows, for timing pages and queries. Every name in it begins with `synthetic`.

python -m scripts.synthetic_registry PATH.db [--checkpoints 1000] [--samples 1000000]

Runs of ten iterations, each checkpoint evaluated on nine benchmarks with every interval that a real one has; the samples
(an answer and its judgment each) are spread evenly over all evaluations. No model said any of it.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from core.fingerprint import digest
from db import Registry, models
from db.record import insert_ignore

BENCHMARKS = (
    *("alpaca_eval", "arena_hard", "mt_bench", "human_eval", "truthful_qa"),
    *("gsm8k", "mmlu", "arc_challenge", "held_out_reward"),
)
METRICS = ("score", "win_rate", "mean_tokens", "consistency")
ITERATIONS, POINTS = 10, 200
START = datetime(2024, 5, 13, tzinfo=UTC)
FILLER = "A made-up sentence of a synthetic answer, long enough to weigh what a real one does. " * 10


def fill(registry: Registry, checkpoints: int = 1000, samples: int = 0) -> None:
    """Write runs of ten iterations until there are so many checkpoints, every one evaluated on every benchmark.

    `samples`: answers in all, each with one judgment. A million of them take about 1.5 GB and two minutes on SQLite.
    """
    with registry.write() as session:

        def add(model: type[models.Base], rows: Iterator[dict[str, Any]]) -> None:
            for chunk in batched(rows, 5_000):
                insert_ignore(session, model, chunk, ["id"])

        ids = range(1, checkpoints + 1)
        add(models.Run, _runs(checkpoints))
        add(models.Judge, iter([{"id": 1, "key": digest("synthetic"), "name": "synthetic judge", "kind": "openai"}]))
        add(models.Checkpoint, map(_checkpoint, ids))
        add(models.RunCheckpoint, map(_part, ids))
        add(models.StageRun, (row for i in ids for row in _stages(i)))
        add(models.AnswerSet, (row for i in ids for row in _answer_sets(i, samples // (checkpoints * len(BENCHMARKS)))))
        add(models.Evaluation, (row for i in ids for row in _evaluations(i)))
        add(models.Score, (row for i in ids for row in _scores(i)))
        curves = ((5 * i + 4, step) for i in range(1, min(checkpoints, ITERATIONS) + 1) for step in range(POINTS))
        points = [{"stage_id": stage, "metric": "loss", "step": step, "value": 1 / (step + 1)} for stage, step in curves]
        insert_ignore(session, models.Curve, points, ["stage_id", "metric", "step"])
    each = samples // (checkpoints * len(BENCHMARKS))
    sets = range(len(BENCHMARKS), len(BENCHMARKS) * (checkpoints + 1))
    for chunk in batched(((at, question) for at in sets for question in range(each)), 50_000):
        with registry.write() as session:
            insert_ignore(session, models.Answer, [_answer(*place) for place in chunk], _KEYS[models.Answer])
            insert_ignore(session, models.Judgment, [_judgment(*place) for place in chunk], _KEYS[models.Judgment])


_KEYS = {
    models.Answer: ["answer_set_id", "question_id", "turn", "sample"],
    models.Judgment: ["evaluation_id", "question_id", "turn", "sample", "game"],
}


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` rows (itertools.batched needs Python 3.12)."""
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk


def run_of(checkpoint: int) -> tuple[int, int]:
    """(run, iteration) of a checkpoint."""
    return (checkpoint - 1) // ITERATIONS + 1, (checkpoint - 1) % ITERATIONS + 1


def _runs(checkpoints: int) -> Iterator[dict[str, Any]]:
    common = {"recipe_name": "synthetic", "recipe": {}, "recipe_hash": digest("synthetic"), "status": "done"}
    for run in range(1, run_of(checkpoints)[0] + 1):
        yield common | {"id": run, "name": f"synthetic-{run}", "environment": {"synthetic": True}}


def _checkpoint(i: int) -> dict[str, Any]:
    run, turn = run_of(i)
    row = {"id": i, "fingerprint": digest(["synthetic", i]), "name": f"synthetic-{run}/iter-{turn}", "kind": "iteration"}
    row |= {"source": "trained", "run_id": run, "iteration": turn, "parent_id": i - 1 if turn > 1 else None}
    return row | {"provenance": {"synthetic": True}}


def _part(i: int) -> dict[str, Any]:
    run, turn = run_of(i)
    return {"id": i, "run_id": run, "checkpoint_id": i, "role": "iteration", "iteration": turn}


def _stages(i: int) -> Iterator[dict[str, Any]]:
    run, turn = run_of(i)
    for number, name in enumerate(("generate", "annotate", "pairs", "reference", "dpo")):
        row = {"id": 5 * i + number, "run_id": run, "name": f"{name}[{turn}]", "iteration": turn, "program": f"train.{name}"}
        yield row | {"key": digest([i, name]), "status": "done", "seconds": 60.0}


def _answer_sets(i: int, each: int) -> Iterator[dict[str, Any]]:
    settings = {"limit": None, "decoding": {"temperature": 0.0}, "synthetic": True}
    for at, benchmark in _cells(i):
        row = {"id": at, "key": digest([i, benchmark]), "checkpoint_id": i, "benchmark": benchmark, "version": "synthetic"}
        row |= {"settings": settings, "settings_hash": digest(settings), "status": "complete"}
        yield row | {"n_questions": each or 805, "mean_tokens": 400.0}


def _evaluations(i: int) -> Iterator[dict[str, Any]]:
    for at, _ in _cells(i):
        row = {"id": at, "key": digest([at]), "answer_set_id": at, "judge_id": 1, "status": "complete"}
        yield row | {"finished_at": START + timedelta(minutes=at)}


def _scores(i: int) -> Iterator[dict[str, Any]]:
    for at, _ in _cells(i):
        for number, metric in enumerate(METRICS):
            value = 20 + 60 * int(digest([at, metric])[:8], 16) / 2**32
            row = {"id": len(METRICS) * at + number, "evaluation_id": at, "metric": metric, "value": value, "low": value - 2}
            row |= {"high": value + 2, "n": 805, "n_failed": 0, "headline": number == 0}
            yield row | {"method": "made up", "higher_is_better": True}


def _cells(i: int) -> Iterator[tuple[int, str]]:
    """(id of its answer set and evaluation, benchmark)."""
    return ((len(BENCHMARKS) * i + number, benchmark) for number, benchmark in enumerate(BENCHMARKS))


def _answer(at: int, question: int) -> dict[str, Any]:
    row = {
        "answer_set_id": at,
        "question_id": f"synthetic-{question}",
        "category": f"part {question % 8}",
        "prompt": f"Synthetic question {question}.",
    }
    row |= {"text": f"Synthetic answer {at} to {question}. {FILLER}", "finish_reason": "stop", "output_tokens": 200}
    return row | {"turn": 1, "sample": 0, "prompt_tokens": 20, "detail": {}}


def _judgment(at: int, question: int) -> dict[str, Any]:
    value = int(digest([at, question])[:4], 16) / 2**16
    row = {"evaluation_id": at, "question_id": f"synthetic-{question}", "turn": 1, "sample": 0, "game": 1, "value": value}
    return row | {"raw": {"synthetic": True}, "tokens_in": 500, "tokens_out": 1, "micro_dollars": 5000, "created_at": START}


def main() -> None:
    """Fill a registry at a path that does not exist yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    chosen = parser.parse_args()
    if chosen.path.exists():
        parser.error(f"{chosen.path} exists; name a new file")
    began = time.perf_counter()
    registry = Registry.open(f"sqlite:///{chosen.path.resolve()}")
    fill(registry, chosen.checkpoints, chosen.samples)
    registry.close()
    print(f"{chosen.checkpoints} checkpoints, {chosen.samples} samples in {time.perf_counter() - began:.0f} s: {chosen.path}")


if __name__ == "__main__":
    main()
