"""What the evaluation stages write to the registry, and read back to resume.

Guarantee: every write is idempotent and short. A stored answer is never replaced, a successful judgment never asked for
again; a failed judgment is replaced by the next attempt, its tokens and money added to the earlier ones.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from core.errors import MissingInput
from core.fingerprint import digest
from core.stage import Spec
from db.models import Answer, AnswerSet, Checkpoint, Conversation, Cost, Evaluation, Judge, Judgment, Score, now
from db.record import insert_ignore, upsert
from db.registry import Registry
from evals.benchmark import Benchmark, Place, Question, ScoreRow, answer_set_key
from evals.verdict import Verdict

ANSWER_KEY = ["answer_set_id", "question_id", "turn", "sample"]
JUDGMENT_KEY = ["evaluation_id", "question_id", "turn", "sample", "game"]


def open_registry(spec: Spec) -> Registry:
    """The registry that the stage's spec names. Raises RegistryError when it cannot be used."""
    return Registry.open(spec.registry)


def get_checkpoint(session: Session, fingerprint: str, path: Path) -> Checkpoint:
    """The row of these weights; those that nobody registered (a third party's) are registered by their folder's name."""
    row = {
        "fingerprint": fingerprint,
        "name": f"{Path(path).name}-{fingerprint[:8]}",
        "kind": "third_party",
        "source": "imported",
        "path": str(path),
    }
    insert_ignore(session, Checkpoint, [row], ["fingerprint"])
    return session.scalars(select(Checkpoint).where(Checkpoint.fingerprint == fingerprint)).one()


def answers_key(fingerprint: str, benchmark: Benchmark, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> str:
    """Key of the answer set that a stage with these settings makes for one of its benchmarks."""
    settings = benchmark.answer_settings(entry, stage_settings)
    return answer_set_key(
        fingerprint, benchmark.name, entry["version"], settings, benchmark.answer_conditions(entry, stage_settings)
    )


def get_answer_set(
    session: Session,
    checkpoint: Checkpoint,
    benchmark: Benchmark,
    entry: Mapping[str, Any],
    stage_settings: Mapping[str, Any],
    n_questions: int,
) -> AnswerSet:
    """The answer set that a stage with these settings makes for one of its benchmarks; a new one is `partial`."""
    settings, conditions = benchmark.answer_settings(entry, stage_settings), benchmark.answer_conditions(entry, stage_settings)
    return add_answer_set(session, checkpoint, benchmark.name, entry["version"], settings, n_questions, conditions)


def add_answer_set(
    session: Session,
    checkpoint: Checkpoint,
    benchmark: str,
    version: str,
    settings: Mapping[str, Any],
    n_questions: int,
    conditions: Mapping[str, Any] | None = None,
) -> AnswerSet:
    """The answer set of this checkpoint, benchmark, data version, settings and conditions; a new one is `partial`."""
    key = answer_set_key(checkpoint.fingerprint, benchmark, version, settings, conditions)
    row = {
        "key": key,
        "checkpoint_id": checkpoint.id,
        "benchmark": benchmark,
        "version": version,
        "settings": dict(settings),
        "settings_hash": digest(dict(settings)),
        "status": "partial",
        "n_questions": n_questions,
    }
    insert_ignore(session, AnswerSet, [row], ["key"])
    return session.scalars(select(AnswerSet).where(AnswerSet.key == key)).one()


def store_answers(session: Session, answer_set_id: int, rows: Iterable[Mapping[str, Any]]) -> int:
    """Insert answers (columns of `db.models.Answer` without id and answer_set_id); returns how many were new."""
    return insert_ignore(session, Answer, [{"answer_set_id": answer_set_id, **row} for row in rows], ANSWER_KEY)


def stored_answers(session: Session, answer_set_id: int) -> dict[tuple[str, int, int], Answer]:
    """(question id, turn, sample) -> answer."""
    rows = session.scalars(select(Answer).where(Answer.answer_set_id == answer_set_id).order_by(Answer.id))
    return {(a.question_id, a.turn, a.sample): a for a in rows}


def complete_answers(
    session: Session,
    fingerprint: str,
    benchmark: Benchmark,
    entry: Mapping[str, Any],
    stage_settings: Mapping[str, Any],
    questions: list[Question],
) -> tuple[AnswerSet, dict[tuple[str, int, int], Answer]]:
    """The answers that an earlier stage must have left: all turns and samples of all `questions`.

    `entry["answer_set"]`, where given, is the key of answers that no stage of ours made: imported ones, or a canary's.
    Raises MissingInput, which names the stage to run, when one is absent.
    """
    key = entry.get("answer_set") or answers_key(fingerprint, benchmark, entry, stage_settings)
    found = session.scalars(select(AnswerSet).where(AnswerSet.key == key)).one_or_none()
    answers = stored_answers(session, found.id) if found else {}
    samples = benchmark.samples(entry.get("decoding"))
    wanted = [(q.id, t, s) for q in questions for t in range(1, len(q.turns) + 1) for s in range(samples)]
    missing = sum(key not in answers for key in wanted)
    if missing or found is None:
        raise MissingInput(
            f"{missing} of {len(wanted)} answers to {benchmark.name} by checkpoint {fingerprint[:12]} are not in the registry; "
            "run the stage evals.answer with the same settings first."
        )
    return found, answers


def judge_key(name: str, kind: str, config: Mapping[str, Any], fingerprint: str | None = None) -> str:
    """Identity (sha256, hex) of who gives the verdicts: kind, name (or `fingerprint` of its weights) and `config`."""
    return digest({"kind": kind, "who": fingerprint or name, "config": dict(config)})


def get_judge(session: Session, name: str, kind: str, config: Mapping[str, Any], fingerprint: str | None = None) -> Judge:
    """The row of who gives the verdicts; see `judge_key`."""
    key = judge_key(name, kind, config, fingerprint)
    insert_ignore(session, Judge, [{"key": key, "name": name, "kind": kind, "config": dict(config)}], ["key"])
    return session.scalars(select(Judge).where(Judge.key == key)).one()


def get_evaluation(session: Session, answer_set: AnswerSet, judge: Judge) -> Evaluation:
    """The evaluation of this answer set by this judge; a new one is `partial`."""
    key = digest({"answer_set": answer_set.key, "judge": judge.key})
    row = {"key": key, "answer_set_id": answer_set.id, "judge_id": judge.id, "status": "partial"}
    insert_ignore(session, Evaluation, [row], ["key"])
    return session.scalars(select(Evaluation).where(Evaluation.key == key)).one()


def stored_judgments(session: Session, evaluation_id: int) -> dict[tuple[str, int, int, int], Judgment]:
    """(question id, turn, sample, game) -> the last attempt at that judgment."""
    rows = session.scalars(select(Judgment).where(Judgment.evaluation_id == evaluation_id))
    return {(j.question_id, j.turn, j.sample, j.game): j for j in rows}


def latest_raws(session: Session, judge_id: int, version: str) -> list[dict[str, Any]]:
    """`raw` of every judgment in the newest complete evaluation by this judge on this data version; [] without one."""
    newest = (
        select(Evaluation.id)
        .join(AnswerSet)
        .where(Evaluation.judge_id == judge_id, Evaluation.status == "complete", AnswerSet.version == version)
        .order_by(Evaluation.id.desc())
        .limit(1)
    )
    return list(session.scalars(select(Judgment.raw).where(Judgment.evaluation_id == newest.scalar_subquery())))


def store_verdicts(session: Session, evaluation_id: int, verdicts: Iterable[Verdict], anew: Container[Place] = ()) -> None:
    """Insert judgments; one that exists is replaced only if it had failed or its place is among `anew`. Its spending is kept."""
    verdicts = list(verdicts)
    shown = {verdict.key: digest(verdict.shown) for verdict in verdicts if verdict.shown}
    messages = {shown[verdict.key]: verdict.shown for verdict in verdicts if verdict.shown}
    # In one order, or two processes that meet the same conversations could wait for each other.
    insert_ignore(session, Conversation, [{"key": key, "messages": messages[key]} for key in sorted(messages)], ["key"])
    for verdict in verdicts:
        key = dict(zip(JUDGMENT_KEY, (evaluation_id, *verdict.key), strict=True))
        spent = {name: getattr(verdict, name) for name in ("tokens_in", "tokens_out", "micro_dollars")}
        said = {"value": verdict.value, "error": verdict.error, "raw": verdict.raw or {}, "shown": shown.get(verdict.key)}
        if not insert_ignore(session, Judgment, [key | said | spent], JUDGMENT_KEY):
            again = update(Judgment).where(*(getattr(Judgment, name) == value for name, value in key.items()))
            more = {name: getattr(Judgment, name) + amount for name, amount in spent.items()}
            failed = True if verdict.key[:3] in anew else Judgment.value.is_(None)
            session.execute(
                again.where(failed).values(said | more | {"created_at": now()}),
                execution_options={"synchronize_session": False},
            )


def charge_judgment(session: Session, evaluation_id: int, place: tuple[str, int, int, int], spent: Mapping[str, int]) -> None:
    """Add tokens_in, tokens_out and micro_dollars to a judgment; one that has no row yet begins as a failed attempt."""
    key = dict(zip(JUDGMENT_KEY, (evaluation_id, *place), strict=True))
    begun = key | {"value": None, "error": "asked, no verdict yet", "raw": {}} | dict(spent)
    if not insert_ignore(session, Judgment, [begun], JUDGMENT_KEY):
        more = {name: getattr(Judgment, name) + amount for name, amount in spent.items()}
        session.execute(
            update(Judgment).where(*(getattr(Judgment, name) == value for name, value in key.items())).values(more),
            execution_options={"synchronize_session": False},
        )


def add_cost(session: Session, scope: str, scope_key: str, tokens: int, micro_dollars: int) -> None:
    """Add judge tokens and money to a row of `cost`; a new one begins with them."""
    key = {"scope": scope, "scope_key": scope_key, "kind": "judge_tokens"}
    if not insert_ignore(session, Cost, [key | {"amount": float(tokens), "micro_dollars": micro_dollars}], list(key)):
        session.execute(
            update(Cost)
            .where(*(getattr(Cost, name) == value for name, value in key.items()))
            .values(amount=Cost.amount + tokens, micro_dollars=Cost.micro_dollars + micro_dollars),
            execution_options={"synchronize_session": False},
        )


def store_scores(
    session: Session,
    evaluation_id: int,
    scores: Iterable[ScoreRow],
    complete: bool = True,
    statistics: Mapping[str, Any] | None = None,
    flags: Iterable[Mapping[str, str]] | None = None,
) -> None:
    """Replace an evaluation's scores (headlines withheld where due), write its cost, mark it `complete` or `partial`.

    `statistics` and `flags` ([{"flag", "reason"}]) replace the stored ones unless None.
    """
    scores = [score.withheld for score in scores]
    session.execute(
        delete(Score).where(Score.evaluation_id == evaluation_id, Score.metric.not_in([s.metric for s in scores])),
        execution_options={"synchronize_session": False},
    )
    for score in scores:
        fields = score.fields()
        upsert(session, Score, {"evaluation_id": evaluation_id, "metric": fields.pop("metric")}, fields)
    evaluation = session.get_one(Evaluation, evaluation_id)
    evaluation.status = "complete" if complete else "partial"
    evaluation.finished_at = now() if complete else None
    if statistics is not None:
        evaluation.statistics = dict(statistics)
    if flags is not None:
        evaluation.flags = [dict(flag) for flag in flags]
    spent = select(func.sum(Judgment.tokens_in + Judgment.tokens_out), func.sum(Judgment.micro_dollars))
    tokens, micro_dollars = session.execute(spent.where(Judgment.evaluation_id == evaluation_id)).one()
    if tokens:
        upsert(
            session,
            Cost,
            {"scope": "evaluation", "scope_key": evaluation.key, "kind": "judge_tokens"},
            {"amount": float(tokens), "micro_dollars": int(micro_dollars)},
        )
