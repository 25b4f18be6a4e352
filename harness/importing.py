"""Other people's work into the registry: judged evaluations, answers to be judged here, published leaderboards.

An imported model has no weights here: its identity is its name and source, marked `imported` or `published` for good.
Whatever is imported keeps the names and sha256 of the files that it came from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.errors import MissingInput
from core.fingerprint import digest, tree_sha256
from db import Registry, insert_ignore
from db.models import AnswerSet, Checkpoint, Judgment
from db.record import complete_answer_set
from evals import records
from evals.benchmark import BENCHMARKS, ScoreRow
from evals.formats.saved import PublishedScore, SavedAnswer, SavedEvaluation, SavedFormat, SavedOutputs, file_sha256
from harness.data import benchmark_files

IMPORTED = "imported"
PUBLISHED = "published"


@dataclass(frozen=True)
class Source:
    """Where imported work comes from."""

    name: str
    """What the user calls it: a URL, a repository and commit, a paper."""
    files: Sequence[Path]
    format: str

    def provenance(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "format": self.format,
            "files": [{"name": path.name, "sha256": file_sha256(path)} for path in self.files],
        }


def import_evaluations(
    registry: Registry, made: SavedFormat, evaluations: Sequence[SavedEvaluation], source: Source
) -> list[str]:
    """Record judged evaluations with their answers, verdicts and scores; returns a line a model. Idempotent."""
    provenance, lines = source.provenance(), []
    scale = getattr(made, "import_scale", 1.0)
    for one in evaluations:
        benchmark = getattr(one, "benchmark", None) or made.benchmark
        with registry.write() as session:
            checkpoint = _checkpoint(session, one.model, IMPORTED, "third_party", source.name)
            answers = _answer_set(session, checkpoint, benchmark, one.answers, one.scores, provenance)
            config = {"benchmark": benchmark, "saved": source.format, **one.judge_config}
            judge = records.get_judge(session, one.judge, one.judge_kind, config)
            evaluation = records.get_evaluation(session, answers, judge)
            evaluation.provenance, evaluation.statistics = provenance, dict(one.statistics)
            session.execute(delete(Judgment).where(Judgment.evaluation_id == evaluation.id))
            records.store_verdicts(session, evaluation.id, one.verdicts)
            records.store_scores(session, evaluation.id, [_scaled(row, scale) for row in one.scores])
        lines.append(f"{one.model}: {len(one.scores)} scores of {benchmark}, judged by {one.judge}")
    return lines


def import_outputs(registry: Registry, made: SavedFormat, outputs: Sequence[SavedOutputs], source: Source) -> list[str]:
    """Record answers whose judging is still to come; returns a line a model, naming the command that judges them."""
    provenance, lines = source.provenance(), []
    for one in outputs:
        with registry.write() as session:
            checkpoint = _checkpoint(session, one.model, IMPORTED, "third_party", source.name)
            _answer_set(session, checkpoint, made.benchmark, one.answers, (), provenance)
        lines.append(
            f"{one.model}: {len(one.answers)} answers to {made.benchmark}; judge them with "
            f"`harness judge answers {one.model} --benchmark {made.benchmark} --judge openai:MODEL`"
        )
    return lines


def import_published(registry: Registry, made: SavedFormat, scores: Sequence[PublishedScore], source: Source) -> list[str]:
    """Record a published leaderboard as reference rows: never measured here, always marked as published."""
    provenance = source.provenance()
    by_model: dict[tuple[str, str], list[ScoreRow]] = {}
    for one in scores:
        by_model.setdefault((one.model, one.judge), []).append(one.score)
    with registry.write() as session:
        for (model, judge_name), rows in by_model.items():
            checkpoint = _checkpoint(session, model, PUBLISHED, "published", source.name)
            answers = _answer_set(session, checkpoint, made.benchmark, (), rows, provenance, kind=PUBLISHED)
            judge = records.get_judge(session, judge_name, PUBLISHED, {"benchmark": made.benchmark, "published": source.name})
            evaluation = records.get_evaluation(session, answers, judge)
            evaluation.provenance = provenance
            records.store_scores(session, evaluation.id, rows)
    return [f"{len(by_model)} published rows of {made.benchmark} from {source.name}"]


def find_imported(session: Session, name: str, benchmark: str) -> tuple[Checkpoint, AnswerSet]:
    """The newest imported answers of a model, by name or start of its fingerprint, that hold texts to be judged.

    Raises MissingInput naming the models that have some.
    """
    query = (
        select(Checkpoint, AnswerSet)
        .join(AnswerSet, AnswerSet.checkpoint_id == Checkpoint.id)
        .where(AnswerSet.benchmark == benchmark, Checkpoint.source != PUBLISHED, AnswerSet.status == "complete")
        .order_by(AnswerSet.id.desc())
    )
    rows = [(c, a) for c, a in session.execute(query).all() if a.settings.get("source") == IMPORTED]
    for checkpoint, answers in rows:
        if name == checkpoint.name or checkpoint.fingerprint.startswith(name):
            return checkpoint, answers
    known = sorted({checkpoint.name for checkpoint, _ in rows})
    raise MissingInput(
        f"The registry holds no imported answers to {benchmark} by {name!r}; it has {', '.join(known) or 'none'}. "
        f"`harness import {benchmark} FILE --outputs` brings some."
    )


def data_version(benchmark: str) -> str:
    """The version of the official data that is here, as measured evaluations name it; `unknown` without the data."""
    try:
        located = benchmark_files(benchmark, "official")
    except MissingInput:
        return "official@unknown"
    variant = "official" + ("+stand-in" if any(file.stand_in for file in located.values()) else "")
    return f"{variant}@{tree_sha256({asset: file.sha256 for asset, file in located.items()})[:12]}"


def _checkpoint(session: Session, name: str, source: str, kind: str, origin: str) -> Checkpoint:
    """The row of a model without weights; its fingerprint is a hash of how it was named."""
    identity = digest({"model": name, "source": source, "origin": origin})
    row = {
        "fingerprint": identity,
        "name": name,
        "kind": kind,
        "source": source,
        "provenance": {"origin": origin, "weights": "none: known by its saved work alone"},
    }
    insert_ignore(session, Checkpoint, [row], ["fingerprint"])
    return session.scalars(select(Checkpoint).where(Checkpoint.fingerprint == identity)).one()


def _answer_set(
    session: Session,
    checkpoint: Checkpoint,
    benchmark: str,
    answers: Iterable[SavedAnswer],
    scores: Sequence[ScoreRow],
    provenance: Mapping[str, Any],
    kind: str = IMPORTED,
) -> AnswerSet:
    """The answer set of imported answers. Its settings say that the decoding is unknown; its key adds the files' hashes,
    so that two versions of a file are two answer sets that may stand in one comparability group."""
    answers = list(answers)
    version = data_version(benchmark) if benchmark in BENCHMARKS else "unknown"
    settings = {"source": kind, "decoding": "unknown"}
    questions = {answer.question_id for answer in answers}
    count = len(questions) or max((row.n + row.n_failed for row in scores), default=0)
    files = [file["sha256"] for file in provenance["files"]]
    key = digest({"checkpoint": checkpoint.fingerprint, "benchmark": benchmark, "settings": settings, "files": files})
    row = {
        "key": key,
        "checkpoint_id": checkpoint.id,
        "benchmark": benchmark,
        "version": version,
        "settings": settings,
        "settings_hash": digest(settings),
        "status": "partial",
        "n_questions": count,
    }
    insert_ignore(session, AnswerSet, [row], ["key"])
    found = session.scalars(select(AnswerSet).where(AnswerSet.key == key)).one()
    records.store_answers(session, found.id, [_answer(answer) for answer in answers])
    complete_answer_set(session, found.id)
    return found


def _answer(answer: SavedAnswer) -> dict[str, Any]:
    return {
        "question_id": answer.question_id,
        "turn": answer.turn,
        "sample": answer.sample,
        "prompt": answer.prompt,
        "text": answer.text,
        "finish_reason": None,
        "prompt_tokens": 0,
        "output_tokens": answer.output_tokens,
        "seed": None,
        "detail": dict(answer.detail),
    }


def _scaled(row: ScoreRow, scale: float) -> ScoreRow:
    """A score in the registry's unit: formats that print fractions are stored as percent."""
    if scale == 1.0:
        return row
    numbers = {name: getattr(row, name) for name in ("value", "low", "high", "stderr", "worst", "best")}
    return replace(row, **{name: None if value is None else scale * value for name, value in numbers.items()})
