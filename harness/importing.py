"""Other people's work into the registry: judged evaluations, answers to be judged here, published leaderboards.

An imported model has no weights here: its identity is its name and source, marked `imported` or `published` for good.
Whatever is imported keeps the names and sha256 of the files that it came from.
"""

from collections import Counter
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
from evals.benchmark import BENCHMARKS, Question, ScoreRow, get_benchmark
from evals.formats.saved import PublishedScore, SavedAnswer, SavedEvaluation, SavedFormat, SavedOutputs, file_sha256
from evals.judges import canaries
from harness.data import benchmark_files

IMPORTED = "imported"
PUBLISHED = "published"
IMPORTED_SETTINGS = {"source": IMPORTED, "decoding": "unknown"}
SIZES = {
    "gsm8k": 1319,
    "mmlu": 14042,
    "arc_challenge": 1172,
    "truthful_qa": 817,
    "truthful_qa_generation": 817,
    "human_eval": 164,
    "mbpp": 500,
}
"""Questions of the benchmarks whose files are scored by what they hold; the other formats count what is absent as failed."""


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
    for one in evaluations:
        benchmark = getattr(one, "benchmark", None) or made.benchmark
        with registry.write() as session:
            checkpoint = _checkpoint(session, one.model, IMPORTED, "third_party", source.name)
            answers = _answer_set(session, checkpoint, benchmark, one.answers, one.scores, provenance)
            config = {"benchmark": benchmark, "saved": source.format, **one.judge_config}
            judge = records.get_judge(session, one.judge, one.judge_kind, config)
            evaluation = records.get_evaluation(session, answers, judge)
            evaluation.provenance = provenance
            session.execute(delete(Judgment).where(Judgment.evaluation_id == evaluation.id))
            records.store_verdicts(session, evaluation.id, one.verdicts)
            flags = canaries.flags([canaries.Text(answer.prompt, answer.text) for answer in one.answers])
            scores = [_scaled(row, _scale(made, row.metric)) for row in one.scores]
            records.store_scores(session, evaluation.id, scores, statistics=dict(one.statistics), flags=flags)
        lines.append(f"{one.model}: {len(one.scores)} scores of {benchmark}, judged by {one.judge}")
    return lines


def import_outputs(registry: Registry, made: SavedFormat, outputs: Sequence[SavedOutputs], source: Source) -> list[str]:
    """Record answers whose judging is still to come; returns a line a model, naming the command that judges them."""
    provenance, lines = source.provenance(), []
    questions = _official_questions(made.benchmark)
    for one in outputs:
        answers = align(one.answers, questions, made.benchmark, one.model)
        with registry.write() as session:
            checkpoint = _checkpoint(session, one.model, IMPORTED, "third_party", source.name)
            _answer_set(session, checkpoint, made.benchmark, answers, (), provenance)
        lines.append(
            f"{one.model}: {len(one.answers)} answers to {made.benchmark}; judge them with "
            f"`harness eval 'imported:{one.model}' --benchmarks {made.benchmark} --judge openai:MODEL`"
        )
    return lines


def import_published(registry: Registry, made: SavedFormat, scores: Sequence[PublishedScore], source: Source) -> list[str]:
    """Record a published leaderboard as reference rows: never measured here, always marked as published."""
    provenance = source.provenance()
    by_model: dict[tuple[str, str, str], list[ScoreRow]] = {}
    for one in scores:
        benchmark = one.benchmark or made.benchmark
        by_model.setdefault((benchmark, one.model, one.judge), []).append(one.score)  # in the registry's unit already
    with registry.write() as session:
        for (benchmark, model, judge_name), rows in by_model.items():
            checkpoint = _checkpoint(session, model, PUBLISHED, "published", source.name)
            answers = _answer_set(session, checkpoint, benchmark, (), rows, provenance, kind=PUBLISHED)
            judge = records.get_judge(session, judge_name, PUBLISHED, {"benchmark": benchmark, "published": source.name})
            evaluation = records.get_evaluation(session, answers, judge)
            evaluation.provenance = provenance
            records.store_scores(session, evaluation.id, rows)
    counts = Counter(benchmark for benchmark, *_ in by_model)
    return [f"{count} published rows of {benchmark} from {source.name}" for benchmark, count in counts.items()]


def align(answers: Sequence[SavedAnswer], questions: Sequence[Question], benchmark: str, model: str) -> list[SavedAnswer]:
    """Saved answers under the benchmark's own question ids: found by the text of the question where it was saved, else by id.

    Raises MissingInput when an answer belongs to none of the questions.
    """
    ids = {question.id for question in questions}
    texts = {(turn, text.strip()): question.id for question in questions for turn, text in enumerate(question.turns, 1)}
    found, strangers = [], []
    for answer in answers:
        identity = texts.get((answer.turn, answer.prompt.strip())) if answer.prompt else None
        if identity is None and (answer.prompt or answer.question_id not in ids):
            strangers.append(answer.prompt or answer.question_id)
        else:
            found.append(replace(answer, question_id=identity or answer.question_id))
    if strangers:
        raise MissingInput(
            f"{len(strangers)} of {len(answers)} answers of {model} belong to no question of {benchmark} (first: "
            f"{strangers[0][:80]!r}); is this the file of another benchmark or version?"
        )
    return found


def _official_questions(benchmark: str) -> list[Question]:
    """The benchmark's official questions. Raises MissingInput where the data are not here."""
    files = {asset: file.path for asset, file in benchmark_files(benchmark, "official").items()}
    return get_benchmark(benchmark).load(files)


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
    so that two versions of a file are two answer sets that may stand in one comparability group. Scores of another number of
    questions than the benchmark has (a part of them, or MBPP's tasks outside its test split) say so and stand apart."""
    answers = list(answers)
    # Nobody knows which bytes a published score was measured on.
    version = PUBLISHED if kind == PUBLISHED else data_version(benchmark) if benchmark in BENCHMARKS else "unknown"
    settings = IMPORTED_SETTINGS | {"source": kind}
    questions = {answer.question_id for answer in answers}
    counted = max((row.n + row.n_failed for row in scores), default=0)
    count = len(questions) or counted
    if counted and counted != SIZES.get(benchmark, counted):
        settings |= {"limit": counted} | ({"questions": digest(sorted(questions))[:12]} if questions else {})
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
        "category": answer.category,
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


def _scale(made: SavedFormat, metric: str) -> float:
    """By what a format's number is multiplied for the registry, where 0.5 in one tool's file is 50 percent."""
    return getattr(made, "import_scales", {}).get(metric, getattr(made, "import_scale", 1.0))


def _scaled(row: ScoreRow, scale: float) -> ScoreRow:
    """A score in the registry's unit: formats that print fractions are stored as percent."""
    if scale == 1.0:
        return row
    numbers = {name: getattr(row, name) for name in ("value", "low", "high", "stderr", "worst", "best")}
    return replace(row, **{name: None if value is None else scale * value for name, value in numbers.items()})
