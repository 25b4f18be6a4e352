"""Stored evaluations in the file formats of the reference tools."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import MissingInput, RecipeError
from db import Registry
from db.models import AnswerSet, Checkpoint, Evaluation, Judge, Score
from db.samples import conversations
from evals import records
from evals.benchmark import get_benchmark
from evals.formats.saved import FORMATS, Stored, get_format
from harness.data import benchmark_files


def export(registry: Registry, form: str, benchmark: str, checkpoint: str, judge: str | None, folder: Path) -> list[Path]:
    """Write one checkpoint's evaluation of a benchmark in a tool's own layout; returns the files.

    `form` is the benchmark's own format or `lm_eval`. `checkpoint` is a name or the start of a fingerprint; `judge` a
    name, needed where several judged. Raises MissingInput for what the registry does not hold.
    """
    made = get_format(form)
    with registry.read() as session:
        row, answers, evaluation, by = _find(session, benchmark, checkpoint, judge)
        given = records.stored_answers(session, answers.id)
        stored = Stored(
            questions=_questions(benchmark, answers, {question for question, *_ in given}),
            answers=given,
            judgments=records.stored_judgments(session, evaluation.id),
            judge=by.name,
            scores=session.scalars(select(Score).where(Score.evaluation_id == evaluation.id).order_by(Score.id)).all(),
            version=answers.version,
            settings=answers.settings,
            shown=conversations(session, evaluation.id),
        )
        session.expunge_all()
    if form == "lm_eval":
        folder.mkdir(parents=True, exist_ok=True)
    return made.write(row.name, stored, folder)


def form_of(benchmark: str, form: str | None) -> str:
    """The format that a benchmark is exported in. Raises RecipeError where none is known."""
    chosen = form or (benchmark if benchmark in FORMATS else "lm_eval")
    if chosen not in FORMATS:
        raise RecipeError(f"There is no format {chosen!r}; use one of {', '.join(FORMATS)}.")
    return chosen


def _find(
    session: Session, benchmark: str, checkpoint: str, judge: str | None
) -> tuple[Checkpoint, AnswerSet, Evaluation, Judge]:
    query = (
        select(Checkpoint, AnswerSet, Evaluation, Judge)
        .join(AnswerSet, AnswerSet.checkpoint_id == Checkpoint.id)
        .join(Evaluation, Evaluation.answer_set_id == AnswerSet.id)
        .join(Judge, Evaluation.judge_id == Judge.id)
        # A published row has scores and nothing that they came from.
        .where(AnswerSet.benchmark == benchmark, Checkpoint.source != "published")
        .where((Checkpoint.name == checkpoint) | Checkpoint.fingerprint.startswith(checkpoint, autoescape=True))
        .order_by(Evaluation.id.desc())
    )
    found = session.execute(query).all()
    if not found:
        names = select(Checkpoint.name).join(AnswerSet).where(AnswerSet.benchmark == benchmark).distinct()
        known = ", ".join(session.scalars(names)) or "none yet"
        raise MissingInput(f"The registry holds no evaluation of {checkpoint!r} on {benchmark}; evaluated are: {known}.")
    if len(alike := {row.fingerprint[:16] for row, *_ in found}) > 1:
        listed = ", ".join(sorted(alike))
        raise MissingInput(f"{len(alike)} checkpoints are called {checkpoint!r}; give the start of a fingerprint: {listed}.")
    judges = list(dict.fromkeys(by.name for *_, by in found))
    if judge is None and len(judges) > 1:
        raise MissingInput(f"{checkpoint} was judged on {benchmark} by {', '.join(judges)}; choose with --judge.")
    chosen = [one for one in found if judge is None or one[3].name == judge]
    if not chosen:
        raise MissingInput(f"{judge!r} did not judge {checkpoint} on {benchmark}; {', '.join(judges)} did.")
    # Of several by the same judge (a sample and a full run): the complete one with most questions, then the newest.
    return max(chosen, key=lambda one: (one[2].status == "complete", one[1].n_questions, one[2].id))


def _questions(benchmark: str, answers: AnswerSet, answered: set[str]) -> list:
    """The benchmark's questions in the version that was answered. Raises MissingInput where the data are not here."""
    variant = answers.version.split("@")[0].removesuffix("+stand-in")
    files = {asset: file.path for asset, file in benchmark_files(benchmark, variant).items()}
    limit, seed = answers.settings.get("limit"), answers.settings.get("sample_seed")
    if limit and seed is None:  # an imported part is no sample of ours: its questions are those with an answer
        return [question for question in get_benchmark(benchmark).load(files) if question.id in answered]
    return get_benchmark(benchmark).load(files, limit, seed or 0)
