"""What was spent, by run and iteration, by benchmark and judge. A stage or evaluation that a second run reuses costs once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from core.fingerprint import digest
from db.models import AnswerSet, Cost, Evaluation, Judge, Run, RunCheckpoint, StageRun


@dataclass(slots=True)
class Spent:
    """A sum of costs."""

    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Wall-clock of stages on a machine without an accelerator."""
    judge_tokens: float = 0.0
    micro_dollars: int = 0

    def add(self, kind: str, amount: float, micro_dollars: int) -> None:
        if kind in ("gpu_seconds", "cpu_seconds", "judge_tokens"):
            setattr(self, kind, getattr(self, kind) + amount)
        self.micro_dollars += micro_dollars


@dataclass(slots=True)
class RunCost:
    """One run's spending, in all and by iteration (0: everything before the loop)."""

    run: str
    status: str
    total: Spent = field(default_factory=Spent)
    """Its stages, and what it paid its judges itself."""
    iterations: dict[int, Spent] = field(default_factory=lambda: defaultdict(Spent))
    """Its stages, and what judging its checkpoints cost, whichever run paid for it."""
    checkpoints: int = 0
    """Policies that play a part in the run."""


@dataclass(slots=True)
class Queued:
    """The unfinished stages of one program in a running run."""

    run: str
    program: str
    stages: int
    seconds: float | None
    """Wall-clock that they will probably take; None where no stage of the program has ended in any run of the recipe."""
    micro_dollars: int | None
    """What their judge will probably cost; None as above."""


@dataclass(slots=True)
class JudgeCost:
    """Spending on one benchmark by one judge."""

    benchmark: str
    judge: str
    judge_kind: str
    evaluations: int
    tokens: float
    """In and out."""
    micro_dollars: int


def by_run(session: Session) -> list[RunCost]:
    """Every run, newest first. What was made for an earlier run and reused is counted there."""
    runs = {
        row.id: RunCost(row.name, row.status)
        for row in session.execute(select(Run.id, Run.name, Run.status).order_by(Run.id.desc()))
    }
    owners: dict[str, tuple[int, int]] = {}
    stages = select(StageRun.key, StageRun.run_id, StageRun.iteration).order_by(StageRun.run_id)
    for key, run, iteration in session.execute(stages):
        owners.setdefault(key, (run, iteration or 0))
    spent = select(Cost.scope_key, Cost.kind, Cost.amount, Cost.micro_dollars)
    for key, kind, amount, micro_dollars in session.execute(spent.where(Cost.scope == "stage")):
        if key in owners:
            _add(runs, *owners[key], kind, amount, micro_dollars)
    paid = {key: spending for key, *spending in session.execute(spent.where(Cost.scope == "run"))}
    own = {run: paid.get(digest({"run": one.run})) for run, one in runs.items()}
    for run, spending in own.items():
        if spending:
            runs[run].total.add(*spending)
    evaluated = _evaluation_owners(session)
    for key, *spending in session.execute(spent.where(Cost.scope == "evaluation")):
        if key in evaluated:
            run, iteration = evaluated[key]
            runs[run].iterations[iteration].add(*spending)
            if own[run] is None:  # of before runs had bills of their own
                runs[run].total.add(*spending)
    policies = select(RunCheckpoint.run_id, func.count(RunCheckpoint.checkpoint_id.distinct()))
    policies = policies.where(RunCheckpoint.role.in_(("base", "sft", "iteration", "policy"))).group_by(RunCheckpoint.run_id)
    for run, count in session.execute(policies):
        runs[run].checkpoints = count
    return list(runs.values())


def by_judge(session: Session) -> list[JudgeCost]:
    """Every benchmark and judge with their evaluations, tokens and money, the dearest first.

    From what was added up when each evaluation ended: single judgments are never counted on view.
    """
    query = (
        select(
            *(AnswerSet.benchmark, Judge.name, Judge.kind, func.count(Evaluation.id.distinct())),
            *(func.coalesce(func.sum(Cost.amount), 0.0), func.coalesce(func.sum(Cost.micro_dollars), 0)),
        )
        .join(Evaluation, Evaluation.answer_set_id == AnswerSet.id)
        .join(Judge, Evaluation.judge_id == Judge.id)
        .outerjoin(Cost, and_(Cost.scope == "evaluation", Cost.kind == "judge_tokens", Cost.scope_key == Evaluation.key))
        .group_by(AnswerSet.benchmark, Judge.name, Judge.kind)
    )
    rows = [JudgeCost(*row[:4], float(row[4]), int(row[5])) for row in session.execute(query)]
    return sorted(rows, key=lambda row: (-row.micro_dollars, -row.tokens, row.benchmark, row.judge))


def _add(runs: dict[int, RunCost], run: int, iteration: int, kind: str, amount: float, micro_dollars: int) -> None:
    for spent in (runs[run].total, runs[run].iterations[iteration]):
        spent.add(kind, amount, micro_dollars)


def _evaluation_owners(session: Session) -> dict[str, tuple[int, int]]:
    """Evaluation key -> (run, iteration) of the first run in which its checkpoint plays a part."""
    query = (
        select(Evaluation.key, RunCheckpoint.run_id, RunCheckpoint.iteration)
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .join(RunCheckpoint, RunCheckpoint.checkpoint_id == AnswerSet.checkpoint_id)
        .order_by(RunCheckpoint.id)
    )
    owners: dict[str, tuple[int, int]] = {}
    for key, run, iteration in session.execute(query):
        owners.setdefault(key, (run, iteration or 0))
    return owners


def queued(session: Session) -> list[Queued]:
    """What running runs have still to do, by program in the order of their stages, newest run first.

    Each stage is taken to cost what the last finished one of its program did: in this run, or else in the newest other run
    of the same recipe.
    """
    running = session.execute(select(Run.id, Run.name, Run.recipe_name).where(Run.status == "running").order_by(Run.id.desc()))
    found = []
    of_recipe: dict[str, dict[str, tuple[float, int]]] = {}
    for run, name, recipe in running.all():
        stages = session.execute(_STAGES.where(StageRun.run_id == run)).all()
        if recipe not in of_recipe:
            done = _STAGES.join(Run).where(Run.recipe_name == recipe, StageRun.status == "done")
            of_recipe[recipe] = _took(session.execute(done).all())
        took = of_recipe[recipe] | _took(stages)
        left: dict[str, Queued] = {}
        for stage in stages:
            if stage.status not in ("waiting", "running"):
                continue
            share = 1 - (stage.done or 0) / stage.total if stage.status == "running" and stage.total else 1.0
            seconds, micro_dollars = took.get(stage.program, (None, None))
            one = left.setdefault(stage.program, Queued(name, stage.program, 0, 0.0, 0))
            one.stages += 1
            one.seconds = None if one.seconds is None or seconds is None else one.seconds + share * seconds
            known = one.micro_dollars is not None and micro_dollars is not None
            one.micro_dollars = round(one.micro_dollars + share * micro_dollars) if known else None
        found += left.values()
    return found


_STAGES = select(
    *(StageRun.program, StageRun.status, StageRun.seconds, StageRun.done, StageRun.total, StageRun.metrics)
).order_by(StageRun.id)


def _took(stages: Sequence[Any]) -> dict[str, tuple[float, int]]:
    """program -> (seconds, micro-dollars) of its last finished stage."""
    return {
        stage.program: (stage.seconds, (stage.metrics or {}).get("micro_dollars") or 0)
        for stage in stages
        if stage.status == "done" and stage.seconds
    }
