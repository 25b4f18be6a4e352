"""Single answers with their verdicts, a page at a time: the evidence behind a cell.

Everything is asked of one evaluation, whose answers an index holds together, so that a page costs the same with a thousand
answers in the registry and with ten million. Pages are keyset pages: no OFFSET.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from core.errors import RegistryError
from db.models import Answer, AnswerSet, Checkpoint, Conversation, Evaluation, Judge, Judgment, Score

Outcome = Literal["all", "better", "even", "worse", "failed", "cut"]
"""better, even, worse: mean verdict above, at, below .5 (for verdicts in [0, 1]: won, tied, lost; passed, not passed);
failed: without a verdict; cut: ended by the token limit."""

OUTCOMES: tuple[Outcome, ...] = ("all", "better", "even", "worse", "failed", "cut")


@dataclass(frozen=True, slots=True)
class Line:
    """One answer in a list."""

    answer_id: int
    question_id: str
    turn: int
    sample: int
    start: str
    """The answer's first characters."""
    length: int
    """Characters."""
    output_tokens: int
    finish_reason: str | None
    value: float | None
    """Mean verdict over its games; None where none succeeded."""
    verdicts: int
    failed: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a list of samples is about."""

    evaluation_id: int
    checkpoint: str
    checkpoint_fingerprint: str
    benchmark: str
    version: str
    judge: str
    judge_kind: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    n_questions: int
    answer_set_key: str
    evaluation_key: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer in full."""

    evaluated: Evaluated
    answer: Answer
    judgments: list[Judgment]
    shown: dict[str, list[dict[str, Any]]]
    """`Judgment.shown` -> the messages that the judge was shown."""


def evaluated_checkpoints(session: Session) -> list[tuple[str, str]]:
    """(fingerprint, name) of every checkpoint with an evaluation, newest first; at the end those of which only scores were
    published, and canaries, which no model wrote."""
    query = (
        select(Checkpoint.fingerprint, Checkpoint.name)
        .where(Checkpoint.id.in_(select(AnswerSet.checkpoint_id).join(Evaluation)))
        .order_by(Checkpoint.kind == "canary", Checkpoint.source == "published", Checkpoint.id.desc())
    )
    return list(session.execute(query).tuples())


def evaluation_states(session: Session, *fingerprints: str) -> tuple[tuple[int, str, str], ...]:
    """(id, status, when it ended) of the evaluations of checkpoints: unchanged as long as none was made or judged anew."""
    query = (
        select(Evaluation.id, Evaluation.status, Evaluation.finished_at)
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .join(Checkpoint, AnswerSet.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.fingerprint.in_(fingerprints))
        .order_by(Evaluation.id)
    )
    return tuple((identity, status, str(ended)) for identity, status, ended in session.execute(query))


def evaluations(session: Session, fingerprint: str) -> list[Evaluated]:
    """The evaluations of a checkpoint, by benchmark, newest first."""
    query = _evaluated().where(Checkpoint.fingerprint == fingerprint).order_by(AnswerSet.benchmark, Evaluation.id.desc())
    return [Evaluated(*row) for row in session.execute(query)]


def evaluated(session: Session, evaluation_id: int) -> Evaluated:
    """Raises RegistryError when there is no such evaluation."""
    row = session.execute(_evaluated().where(Evaluation.id == evaluation_id)).one_or_none()
    if row is None:
        raise RegistryError(f"There is no evaluation {evaluation_id} in this registry; open it from the leaderboard's cell.")
    return Evaluated(*row)


def lines(
    session: Session,
    evaluation_id: int,
    outcome: Outcome = "all",
    search: str = "",
    after: int = 0,
    limit: int = 50,
    characters: tuple[int | None, int | None] = (None, None),
    category: str | None = None,
) -> list[Line]:
    """Answers of an evaluation in the order in which they were stored, from the one after answer id `after`.

    `search` keeps those whose question id, prompt or answer contains it, case-insensitive; `characters` those whose answer
    is at least, and at most, so long; `category` those to its questions.
    """
    answer_set = select(Evaluation.answer_set_id).where(Evaluation.id == evaluation_id).scalar_subquery()
    value, given = func.avg(Judgment.value), func.count(Judgment.id)
    failed = given - func.count(Judgment.value)
    query = (
        select(
            *(Answer.id, Answer.question_id, Answer.turn, Answer.sample, func.substr(Answer.text, 1, 200)),
            *(func.length(Answer.text), Answer.output_tokens, Answer.finish_reason, value, given, failed),
        )
        .outerjoin(Judgment, _judges(evaluation_id))
        .where(Answer.answer_set_id == answer_set, Answer.id > after)
        .group_by(Answer.id)
        .order_by(Answer.id)
        .limit(limit)
    )
    if search:
        query = query.where(
            or_(*(column.icontains(search, autoescape=True) for column in (Answer.text, Answer.prompt, Answer.question_id)))
        )
    if category:
        query = query.where(Answer.category == category)
    least, most = characters
    if least is not None:
        query = query.where(func.length(Answer.text) >= least)
    if most is not None:
        query = query.where(func.length(Answer.text) <= most)
    if outcome == "cut":
        query = query.where(Answer.finish_reason == "length")
    elif outcome != "all":
        query = query.having(
            {"better": value > 0.5, "even": value == 0.5, "worse": value < 0.5, "failed": value.is_(None)}[outcome]
        )
    return [Line(*row) for row in session.execute(query)]


def question_categories(session: Session, evaluation_id: int) -> dict[str, str]:
    """question id -> its category, of the answers that have one stored."""
    query = (
        select(Answer.question_id, Answer.category)
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id, Answer.category.is_not(None))
        .distinct()
    )
    return dict(session.execute(query).tuples().all())


def sample(session: Session, evaluation_id: int, answer_id: int) -> Sample:
    """One answer with all its verdicts. Raises RegistryError when the evaluation does not hold it."""
    of = evaluated(session, evaluation_id)
    answer = session.scalar(
        select(Answer)
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id, Answer.id == answer_id)
    )
    if answer is None:
        raise RegistryError(f"Evaluation {evaluation_id} holds no answer {answer_id}; choose one from its list.")
    judgments = session.scalars(
        select(Judgment)
        .where(
            Judgment.evaluation_id == evaluation_id,
            Judgment.question_id == answer.question_id,
            Judgment.turn == answer.turn,
            Judgment.sample == answer.sample,
        )
        .order_by(Judgment.game)
    ).all()
    keys = {judgment.shown for judgment in judgments if judgment.shown}
    shown = session.execute(select(Conversation.key, Conversation.messages).where(Conversation.key.in_(keys))).tuples().all()
    return Sample(of, answer, list(judgments), dict(shown))


def conversations(session: Session, evaluation_id: int) -> dict[str, list[dict[str, Any]]]:
    """`Judgment.shown` -> the messages that the judge was shown, of an evaluation."""
    keys = select(Judgment.shown).where(Judgment.evaluation_id == evaluation_id)
    found = session.execute(select(Conversation.key, Conversation.messages).where(Conversation.key.in_(keys)))
    return dict(found.tuples().all())


def everything(session: Session, evaluation_id: int) -> list[dict[str, Any]]:
    """All answers of an evaluation, each with its verdicts, in the order in which they were stored. JSON-serialisable."""
    judged: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    fields = ("game", "value", "error", "raw", "shown", "tokens_in", "tokens_out", "micro_dollars")
    for one in session.scalars(select(Judgment).where(Judgment.evaluation_id == evaluation_id).order_by(Judgment.game)):
        verdict = {name: getattr(one, name) for name in fields}
        judged.setdefault((one.question_id, one.turn, one.sample), []).append(verdict)
    shown = conversations(session, evaluation_id)
    for verdicts in judged.values():
        for verdict in verdicts:
            verdict["shown"] = shown.get(verdict["shown"])
    answers = (
        select(Answer)
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id)
        .order_by(Answer.id)
    )
    fields = ("question_id", "turn", "sample", "category", "prompt", "text", "finish_reason", "prompt_tokens", "output_tokens")
    return [
        {name: getattr(answer, name) for name in (*fields, "seed", "detail")}
        | {"verdicts": judged.get((answer.question_id, answer.turn, answer.sample), [])}
        for answer in session.scalars(answers)
    ]


def first_answers(session: Session, evaluation_id: int, questions: Sequence[str]) -> dict[str, int]:
    """question id -> id of its first answer under an evaluation."""
    query = (
        select(Answer.question_id, func.min(Answer.id))
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id, Answer.question_id.in_(questions))
        .group_by(Answer.question_id)
    )
    return dict(session.execute(query).tuples().all())


def answers_to(session: Session, evaluation_id: int, question_id: str) -> list[Answer]:
    """All turns and samples of one question under an evaluation."""
    query = (
        select(Answer)
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id, Answer.question_id == question_id)
        .order_by(Answer.turn, Answer.sample)
    )
    return list(session.scalars(query))


def judgments_of(session: Session, evaluation_id: int, question_id: str) -> list[Judgment]:
    """All verdicts on one question under an evaluation: turns, samples, games."""
    query = (
        select(Judgment)
        .where(Judgment.evaluation_id == evaluation_id, Judgment.question_id == question_id)
        .order_by(Judgment.turn, Judgment.sample, Judgment.game)
    )
    return list(session.scalars(query))


def answer_lengths(session: Session, evaluation_id: int) -> dict[str, float]:
    """question id -> characters of its answer, all turns together, mean over its samples."""
    query = (
        select(Answer.question_id, func.sum(func.length(Answer.text)), func.count(Answer.sample.distinct()))
        .join(Evaluation, Evaluation.answer_set_id == Answer.answer_set_id)
        .where(Evaluation.id == evaluation_id)
        .group_by(Answer.question_id)
    )
    return {question: (characters or 0) / several for question, characters, several in session.execute(query)}


def breakdowns(session: Session, evaluation_id: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The parts of a benchmark as its evaluation kept them: kind of part -> name -> its statistics, in the headline's unit.

    {"categories": {"maths": {"score": 61.0, "prompts": 40, ...}}}; {} for benchmarks without parts.
    """
    kept = session.scalar(select(Evaluation.statistics).where(Evaluation.id == evaluation_id)) or {}
    kinds = ("categories", "subcategories", "clusters", "subjects")
    found = {kind: kept[kind] for kind in kinds if isinstance(kept.get(kind), dict) and kept[kind]}
    # MT-Bench keeps its categories as scores.
    scores = select(Score.metric, Score.value, Score.n).where(
        Score.evaluation_id == evaluation_id, Score.metric.startswith("category:")
    )
    named = {metric.partition(":")[2]: {"score": value, "n": n} for metric, value, n in session.execute(scores)}
    return found | ({"categories": named} if named else {})


def _evaluated() -> Any:
    return (
        select(
            *(Evaluation.id, Checkpoint.name, Checkpoint.fingerprint, AnswerSet.benchmark, AnswerSet.version),
            *(Judge.name, Judge.kind, AnswerSet.settings, Evaluation.provenance, AnswerSet.n_questions),
            *(AnswerSet.key, Evaluation.key),
        )
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .join(Checkpoint, AnswerSet.checkpoint_id == Checkpoint.id)
        .join(Judge, Evaluation.judge_id == Judge.id)
    )


def _judges(evaluation_id: int) -> ColumnElement[bool]:
    return and_(
        Judgment.evaluation_id == evaluation_id,
        Judgment.question_id == Answer.question_id,
        Judgment.turn == Answer.turn,
        Judgment.sample == Answer.sample,
    )
