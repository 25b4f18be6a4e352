"""Judging answers whose model is not to be had: imported outputs in the place of a checkpoint's generation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import MissingInput
from core.fingerprint import digest
from db import Registry, insert_ignore
from db.models import Answer, AnswerSet, Checkpoint
from db.record import complete_answer_set
from evals import records
from evals.benchmark import get_benchmark
from harness.importing import IMPORTED, IMPORTED_SETTINGS
from harness.plan import BenchmarkInput, Ref


def imported_policy(
    registry: Registry, name: str, benchmarks: Sequence[BenchmarkInput], seed: int
) -> tuple[Ref, list[BenchmarkInput]]:
    """A model that is known by its answers alone, and the benchmarks with those answers in place of its generation.

    Raises MissingInput for a benchmark that it has no answers to, or not to all questions that are to be judged.
    """
    found, policy = [], None
    for benchmark in benchmarks:
        made = get_benchmark(benchmark.name)
        files = {asset: Path(ref.path) for asset, ref in benchmark.files.items()}
        limit = benchmark.settings["limit"]
        with registry.write() as session:
            checkpoint, answers = _find_imported(session, name, benchmark.name)
            stored = records.stored_answers(session, answers.id)
            wanted = [question.id for question in made.load(files, limit, seed)]
            answered = {question for question, _, _ in stored}
            missing = [question for question in wanted if question not in answered]
            if missing:
                raise MissingInput(
                    f"{name} has no answer to {len(missing)} of {len(wanted)} questions of {benchmark.name} (first: "
                    f"{missing[0]}); import a file with all of them."
                )
            key = answers.key if limit is None else _sampled(session, answers, set(wanted), limit, seed).key
            policy = Ref(path="", fingerprint=checkpoint.fingerprint)
        settings = benchmark.settings | {"answer_set": key, "decoding": {}}
        found.append(replace(benchmark, settings=settings))
    if policy is None:
        raise MissingInput("Name at least one benchmark to judge the imported answers on: --benchmarks alpaca_eval.")
    return policy, found


def _sampled(session: Session, answers: AnswerSet, wanted: set[str], limit: int, seed: int) -> AnswerSet:
    """The answer set of a sample of imported answers: of its own, since a sample never ranks with the whole."""
    settings = answers.settings | {"limit": limit, "sample_seed": seed}
    row = {
        "key": digest({"of": answers.key, "limit": limit, "sample_seed": seed}),
        "checkpoint_id": answers.checkpoint_id,
        "benchmark": answers.benchmark,
        "version": answers.version,
        "settings": settings,
        "settings_hash": digest(settings),
        "status": "partial",
        "n_questions": len(wanted),
    }
    insert_ignore(session, AnswerSet, [row], ["key"])
    found = session.scalars(select(AnswerSet).where(AnswerSet.key == row["key"])).one()
    columns = [c.key for c in Answer.__table__.columns if c.key not in ("id", "answer_set_id")]
    stored = records.stored_answers(session, answers.id).values()
    records.store_answers(session, found.id, [{c: getattr(a, c) for c in columns} for a in stored if a.question_id in wanted])
    complete_answer_set(session, found.id)
    return found


def _find_imported(session: Session, name: str, benchmark: str) -> tuple[Checkpoint, AnswerSet]:
    """The newest imported answers of a model, by name or start of its fingerprint. Raises MissingInput naming who has some."""
    query = (
        select(Checkpoint, AnswerSet)
        .join(AnswerSet, AnswerSet.checkpoint_id == Checkpoint.id)
        .where(AnswerSet.benchmark == benchmark, Checkpoint.source == IMPORTED, AnswerSet.status == "complete")
        .order_by(AnswerSet.id.desc())
    )
    whole = [(c, a) for c, a in session.execute(query).all() if a.settings == IMPORTED_SETTINGS]
    for checkpoint, answers in whole:
        if name == checkpoint.name or (len(name) >= 8 and checkpoint.fingerprint.startswith(name)):
            return checkpoint, answers
    known = sorted({checkpoint.name for checkpoint, _ in whole})
    raise MissingInput(
        f"The registry holds no imported answers to {benchmark} by {name!r}; it has {', '.join(known) or 'none'}. "
        f"`harness import {benchmark} FILE --outputs` brings some."
    )
