"""What the command line and the dashboard read: a Session in, plain dataclasses out, a few indexed queries each."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from db.judges import PEOPLE, judge_cards
from db.leaderboard import POLICY_KINDS, Cell, Group, Row, cells, groups, leaderboard, preference, rank_ranges, run_id
from db.lineage import baselines, lineage
from db.models import (
    AnswerSet,
    Checkpoint,
    Curve,
    Evaluation,
    Iteration,
    Judge,
    PreferenceSet,
    Run,
    RunCheckpoint,
    Score,
    StageRun,
    now,
)
from db.throughput import Judging, judging

__all__ = [
    "PEOPLE",
    "POLICY_KINDS",
    "Cell",
    "Group",
    "Row",
    "canaries",
    "groups",
    "iteration_curves",
    "judge_cards",
    "leaderboard",
    "lineage",
    "preference_statistics",
    "rank_ranges",
    "run_status",
    "runs",
    "scores_of",
    "training_curves",
]

# A run's policies in the order in which they come to be.
_ROLES = {"base": 0, "sft": 1, "iteration": 2}


@dataclass(slots=True)
class RunSummary:
    """One line of the list of runs."""

    name: str
    recipe_name: str
    status: str
    """running | done | failed | stopped."""
    created_at: datetime
    finished_at: datetime | None
    heartbeat_age: float | None
    """Seconds since the run last wrote; None before its first heartbeat."""
    iterations: int
    """Iterations of the online loop begun."""
    stages: int
    stages_done: int
    """Stages done or reused."""
    seconds: float
    """Wall-clock of all its stages."""
    best_checkpoint: str | None
    error: str | None


@dataclass(slots=True)
class StageStatus:
    """One stage of a run, over all its attempts."""

    name: str
    program: str
    iteration: int | None
    status: str
    """waiting | running | done | reused | failed."""
    attempts: int
    done: int | None
    total: int | None
    unit: str | None
    rate: float | None
    """Units per second since the attempt began; only while running."""
    eta_seconds: float | None
    heartbeat_age: float | None
    """Seconds since the stage last reported; only while running."""
    seconds: float | None
    """Wall-clock: of the whole stage when done, so far while running."""
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    log: str | None
    key: str
    artifact: str | None
    peak_rss_bytes: int | None
    metrics: dict[str, Any]


@dataclass(slots=True)
class RunStatus:
    """A run with its stages in the order in which they were planned, and what its hooks decided."""

    summary: RunSummary
    recipe: dict[str, Any]
    recipe_hash: str
    environment: dict[str, Any]
    pid: int | None
    host: str | None
    best_rule: str | None
    stages: list[StageStatus]
    judging: Judging | None
    """How fast its judge's endpoint replies; None while no judge stage runs."""
    decisions: dict[int, list[Any]]
    """iteration -> [{"hook", "action", "reason", "checkpoint"}]."""


@dataclass(slots=True)
class Point:
    """One checkpoint on an iteration curve."""

    role: str
    """base | sft | iteration; of a baseline its label, e.g. offline_dpo."""
    iteration: int
    checkpoint_id: int
    checkpoint: str
    cell: Cell


@dataclass(slots=True)
class Series:
    """One benchmark over a run's policies, within one comparability group."""

    benchmark: str
    metric: str
    group: str
    judge: str
    version: str
    points: list[Point] = field(default_factory=list)
    baselines: list[Point] = field(default_factory=list)
    """Of offline baselines that started from the same first policy (see `db.lineage.baselines`)."""
    first: Point | None = None
    """The policy that the loop starts from, where it was measured: SFT's, or the base model's in a run without SFT."""


def runs(session: Session, at: datetime | None = None) -> list[RunSummary]:
    """All runs, newest first. `at`: the time that ages are counted from (default: now)."""
    return _summaries(session, at or now())


def run_status(session: Session, run: str, at: datetime | None = None) -> RunStatus:
    """One run in full. Raises RegistryError for a run that is not there."""
    at = at or now()
    identity = run_id(session, run)
    found = session.get_one(Run, identity)
    stages = session.scalars(select(StageRun).where(StageRun.run_id == identity).order_by(StageRun.id)).all()
    turns = select(Iteration.index, Iteration.decisions).where(Iteration.run_id == identity).order_by(Iteration.index)
    return RunStatus(
        summary=_summaries(session, at, identity)[0],
        recipe=found.recipe,
        recipe_hash=found.recipe_hash,
        environment=found.environment,
        pid=found.pid,
        host=found.host,
        best_rule=found.best_rule,
        stages=[_stage_status(stage, at) for stage in stages],
        judging=judging(session, found.recipe, at) if any(_judges(stage) for stage in stages) else None,
        decisions={index: decisions for index, decisions in session.execute(turns)},
    )


def scores_of(session: Session, checkpoint_id: int) -> list[Cell]:
    """Every metric of every evaluation of a checkpoint: by benchmark, newest evaluation first, headline first."""
    found = cells(session, AnswerSet.checkpoint_id == checkpoint_id)
    return sorted(found, key=lambda cell: (cell.benchmark, -cell.evaluation_id, not cell.headline, cell.metric))


def canaries(session: Session, judge: str) -> list[tuple[str, Cell]]:
    """(name of the canary, its headline) of every canary that the judge of this name judged."""
    names = dict(session.execute(select(Checkpoint.id, Checkpoint.name).where(Checkpoint.kind == "canary")).tuples().all())
    judges = select(Judge.id).where(Judge.name == judge)
    found = cells(session, Score.headline, AnswerSet.checkpoint_id.in_(names), Evaluation.judge_id.in_(judges)) if names else []
    return [(names[cell.checkpoint_id], cell) for cell in sorted(found, key=lambda cell: (cell.benchmark, cell.checkpoint_id))]


def iteration_curves(session: Session, run: str) -> list[Series]:
    """Headline scores over a run's policies, base first: one series per benchmark and comparability group.

    The groups of one benchmark follow each other, the one with most checkpoints first.
    Raises RegistryError for a run that is not there.
    """
    parts = session.execute(
        select(RunCheckpoint.role, RunCheckpoint.iteration, Checkpoint.id, Checkpoint.name)
        .join(Checkpoint, RunCheckpoint.checkpoint_id == Checkpoint.id)
        .where(RunCheckpoint.run_id == run_id(session, run), RunCheckpoint.role.in_(_ROLES))
    ).all()
    by_checkpoint: dict[int, dict[str, Cell]] = defaultdict(dict)
    beside = {one.checkpoint_id: one.label for one in baselines(session, run)}
    for cell in cells(session, AnswerSet.checkpoint_id.in_({part.id for part in parts} | beside.keys()), Score.headline):
        # Several seeds of one checkpoint are one group: it stands on the line once, as on the leaderboard.
        known = by_checkpoint[cell.checkpoint_id].get(cell.group)
        if known is None or preference(cell) > preference(known):
            by_checkpoint[cell.checkpoint_id][cell.group] = cell
    # The loop starts from SFT where there is one; the base model before it is another policy.
    start = "sft" if any(part.role == "sft" for part in parts) else "base"
    series: dict[str, Series] = {}
    for role, iteration, identity, name in sorted(parts, key=lambda part: (_ROLES[part.role], part.iteration)):
        for cell in by_checkpoint[identity].values():
            empty = Series(cell.benchmark, cell.metric, cell.group, cell.judge, cell.version)
            one, point = series.setdefault(cell.group, empty), Point(role, iteration, identity, name, cell)
            one.points.append(point)
            one.first = point if role == start else one.first
    named = select(Checkpoint.id, Checkpoint.name).where(Checkpoint.id.in_(beside)).order_by(Checkpoint.id)
    for identity, name in session.execute(named) if beside else ():
        for cell in by_checkpoint[identity].values():
            if cell.group in series:
                series[cell.group].baselines.append(Point(beside[identity], 0, identity, name, cell))
    return sorted(series.values(), key=lambda one: (one.benchmark, -len(one.points), one.group))


def preference_statistics(session: Session, run: str) -> list[PreferenceSet]:
    """The statistics of each iteration's preference pairs. Raises RegistryError for a run that is not there."""
    query = select(PreferenceSet).where(PreferenceSet.run_id == run_id(session, run)).order_by(PreferenceSet.iteration)
    return list(session.scalars(query))


def training_curves(session: Session, run: str) -> dict[str, dict[str, list[tuple[int, float | None]]]]:
    """stage name -> metric -> [(step, value)]; a value that was not finite is None. Raises RegistryError for an unknown run."""
    query = (
        select(StageRun.name, Curve.metric, Curve.step, Curve.value)
        .join(StageRun, Curve.stage_id == StageRun.id)
        .where(StageRun.run_id == run_id(session, run))
        .order_by(StageRun.id, Curve.metric, Curve.step)
    )
    curves: dict[str, dict[str, list[tuple[int, float | None]]]] = {}
    for stage, metric, step, value in session.execute(query):
        curves.setdefault(stage, {}).setdefault(metric, []).append((step, value))
    return curves


def _summaries(session: Session, at: datetime, identity: int | None = None) -> list[RunSummary]:
    ended = case((StageRun.status.in_(("done", "reused")), 1), else_=0)
    stages = (
        select(
            StageRun.run_id,
            func.count().label("total"),
            func.sum(ended).label("ended"),
            func.coalesce(func.sum(StageRun.seconds), 0.0).label("seconds"),
        )
        .group_by(StageRun.run_id)
        .subquery()
    )
    loops = (
        select(Iteration.run_id, func.count().label("total"))
        .where(Iteration.index > 0)  # 0 stands for everything before the first
        .group_by(Iteration.run_id)
        .subquery()
    )
    query = (
        select(Run, Checkpoint.name, stages.c.total, stages.c.ended, stages.c.seconds, loops.c.total)
        .outerjoin(Checkpoint, Run.best_checkpoint_id == Checkpoint.id)
        .outerjoin(stages, stages.c.run_id == Run.id)
        .outerjoin(loops, loops.c.run_id == Run.id)
        .order_by(Run.id.desc())
    )
    if identity is not None:
        query = query.where(Run.id == identity)
    return [
        RunSummary(
            name=run.name,
            recipe_name=run.recipe_name,
            status=run.status,
            created_at=run.created_at,
            finished_at=run.finished_at,
            heartbeat_age=_age(run.heartbeat_at, at),
            iterations=iterations or 0,
            stages=total or 0,
            stages_done=done or 0,
            seconds=seconds or 0.0,
            best_checkpoint=best,
            error=run.error,
        )
        for run, best, total, done, seconds, iterations in session.execute(query)
    ]


def _stage_status(stage: StageRun, at: datetime) -> StageStatus:
    running = stage.status == "running"
    elapsed = _age(stage.started_at, at) if running else None
    rate = stage.done / elapsed if elapsed and stage.done else None
    left = stage.total - stage.done if stage.total is not None and stage.done is not None else None
    return StageStatus(
        name=stage.name,
        program=stage.program,
        iteration=stage.iteration,
        status=stage.status,
        attempts=stage.attempts,
        done=stage.done,
        total=stage.total,
        unit=stage.unit,
        rate=rate,
        eta_seconds=left / rate if rate and left is not None else None,
        heartbeat_age=_age(stage.heartbeat_at, at) if running else None,
        seconds=elapsed if running else stage.seconds,
        started_at=stage.started_at,
        finished_at=stage.finished_at,
        error=stage.error,
        log=stage.log,
        key=stage.key,
        artifact=stage.artifact,
        peak_rss_bytes=stage.peak_rss_bytes,
        metrics=stage.metrics,
    )


def _judges(stage: StageRun) -> bool:
    return stage.status == "running" and stage.program == "evals.judged"


def _age(moment: datetime | None, at: datetime) -> float | None:
    return max(0.0, (at - moment).total_seconds()) if moment else None
