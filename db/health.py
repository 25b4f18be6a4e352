"""What in a registry wants attention: runs that fell silent, stages that failed, scores that are withheld, partial or flagged."""

import shlex
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import Session

from db.judges import judging_checkpoint
from db.models import AnswerSet, Calibration, Evaluation, Judge, Run, Score, StageRun, now
from db.resume import resume_command

SILENT = timedelta(minutes=5)
"""A running run writes every few seconds; after so long without a sign its process is probably gone."""
_NAMED = 5
"""Names listed in one finding; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of the registry, in the words of `harness doctor`."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""
    """What to type, where a command helps."""


def registry_findings(session: Session, at: datetime | None = None) -> list[Finding]:
    """All checks, each with one answer. `at`: the time that silence is counted to (default: now)."""
    checks = (_failed, _partial, _withheld, _flagged, _judges)
    return [_silent(session, at or now()), *(check(session) for check in checks)]


def _silent(session: Session, at: datetime) -> Finding:
    query = select(Run).where(Run.status == "running", Run.heartbeat_at < at - SILENT)
    runs = session.scalars(query.order_by(Run.id.desc())).all()
    if not runs:
        return Finding("running runs", "ok", "none is silent")
    found = f"silent for over five minutes: {_listed([run.name for run in runs])}"
    return Finding("running runs", "fail", found, _resume(runs[0]))


def _failed(session: Session) -> Finding:
    query = (
        select(Run.id, Run.name, func.min(StageRun.name))
        .join(StageRun, StageRun.run_id == Run.id)
        .where(StageRun.status == "failed", Run.status != "running")
        .group_by(Run.id)
        .order_by(Run.id.desc())
    )
    runs = session.execute(query).all()
    if not runs:
        return Finding("stages", "ok", "none failed")
    stages = _listed([f"{name}: {stage}" for _, name, stage in runs])
    return Finding("stages", "warn", f"failed in {stages}", _resume(session.get_one(Run, runs[0][0])))


def _partial(session: Session) -> Finding:
    count = session.scalar(select(func.count()).select_from(Evaluation).where(Evaluation.status != "complete"))
    fix = "the command that began them goes on" if count else ""
    return Finding("evaluations", "warn" if count else "ok", f"{count} not complete" if count else "all complete", fix)


def _withheld(session: Session) -> Finding:
    query = select(func.count()).where(Score.headline, Score.value.is_(None), Score.n_failed > 0)
    count = session.scalar(query.select_from(Score))
    if not count:
        return Finding("failed items", "ok", "no headline is withheld")
    found = f"{_counted(count, 'headline')} withheld: over 1 % of the items failed"
    return Finding("failed items", "warn", found, "harness rejudge --failed")


def _flagged(session: Session) -> Finding:
    count = session.scalar(select(func.count()).select_from(Evaluation).where(cast(Evaluation.flags, String) != "[]"))
    found = f"{_counted(count, 'evaluation')} flagged, marked † and not ranked" if count else "none flagged"
    return Finding("answers", "warn" if count else "ok", found)


def _judges(session: Session) -> Finding:
    """Judges at an endpoint or served, which can be asked what people were; by name, as a calibration covers every prompt."""
    used = (
        select(Judge.name, Judge.kind)
        .join(Evaluation, Evaluation.judge_id == Judge.id)
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .where(Judge.kind.in_(("openai", "serve", "reward_model")), AnswerSet.benchmark != "held_out_reward")
        .distinct()
    )
    known = set(session.scalars(select(Calibration.judge_name)))
    missing = sorted((name, kind) for name, kind in session.execute(used) if name not in known)
    if not missing:
        return Finding("judges", "ok", "every judge in use is calibrated")
    name, kind = missing[0]
    called = f"openai:{name}" if kind == "openai" else judging_checkpoint(session, name) or "JUDGE"
    listed = _listed(sorted({name for name, _ in missing}))
    return Finding("judges", "warn", f"never set beside people: {listed}", shlex.join(["harness", "judge", "calibrate", called]))


def _resume(run: Run) -> str:
    return resume_command(run.name, run.recipe_name, run.recipe, run.environment)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
