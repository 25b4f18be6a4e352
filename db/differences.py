"""In which settings two checkpoints, or two evaluations that may not be compared, differ: key by key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import AnswerSet, Checkpoint, Evaluation, Judge

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Differs:
    """One key with its value on both sides, as text; `–` where a side has no such key."""

    key: str
    first: str
    second: str


def made_differently(session: Session, first: str, second: str) -> list[Differs]:
    """How two checkpoints, by fingerprint, were made: program, settings, inputs, environment."""
    query = select(Checkpoint.fingerprint, Checkpoint.provenance).where(Checkpoint.fingerprint.in_([first, second]))
    found = dict(session.execute(query).tuples().all())
    kept = ("program", "settings", "inputs", "environment", "recipe_hash")
    known = [found.get(key) or {} for key in (first, second)]
    return differences(*({name: side[name] for name in kept if name in side} for side in known))


def evaluated_differently(session: Session, first: str, second: str, benchmark: str) -> list[Differs]:
    """How the newest complete evaluations of two checkpoints on a benchmark were made; [] where a side has none."""
    sides = [_newest(session, fingerprint, benchmark) for fingerprint in (first, second)]
    return differences(*sides) if all(sides) else []


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Differs]:
    """Keys, nested ones joined by dots, whose values are not equal, in the order of the first, then of the second."""
    a, b = dict(flat(first)), dict(flat(second))
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]
    return [Differs(key, *(str(side[key]) if key in side else ABSENT for side in (a, b))) for key in keys]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of nested settings, keys joined by dots."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _newest(session: Session, fingerprint: str, benchmark: str) -> dict[str, Any]:
    row = session.execute(
        select(AnswerSet.version, AnswerSet.settings, Judge.kind, Judge.name, Judge.config)
        .join(Evaluation, Evaluation.answer_set_id == AnswerSet.id)
        .join(Judge, Evaluation.judge_id == Judge.id)
        .join(Checkpoint, AnswerSet.checkpoint_id == Checkpoint.id)
        .where(Checkpoint.fingerprint == fingerprint, AnswerSet.benchmark == benchmark, Evaluation.status == "complete")
        .order_by(AnswerSet.n_questions.desc(), Evaluation.finished_at.desc(), Evaluation.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return {}
    version, settings, kind, name, config = row
    return {"data": version, "answers": settings, "judge": {"kind": kind, "name": name, **config}}
