"""What was spent, by run and iteration, by benchmark and judge. A stage or evaluation that a second run reuses costs once."""

from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

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
    iterations: dict[int, Spent] = field(default_factory=lambda: defaultdict(Spent))
    checkpoints: int = 0
    """Policies that play a part in the run."""
    waiting_seconds: float | None = None
    """Wall-clock that its unfinished stages will take if each takes as long as the last finished one of its program."""


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
    evaluated = _evaluation_owners(session)
    for key, kind, amount, micro_dollars in session.execute(spent.where(Cost.scope == "evaluation")):
        if key in evaluated:
            _add(runs, *evaluated[key], kind, amount, micro_dollars)
    policies = select(RunCheckpoint.run_id, func.count(RunCheckpoint.checkpoint_id.distinct()))
    policies = policies.where(RunCheckpoint.role.in_(("base", "sft", "iteration", "policy"))).group_by(RunCheckpoint.run_id)
    for run, count in session.execute(policies):
        runs[run].checkpoints = count
    for run, cost in runs.items():
        if cost.status == "running":
            cost.waiting_seconds = _waiting(session, run)
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


def _waiting(session: Session, run: int) -> float | None:
    """Seconds that the unfinished stages of a run will probably take; None where no stage of a kind has ended yet."""
    stages = session.execute(
        select(StageRun.program, StageRun.status, StageRun.seconds, StageRun.done, StageRun.total)
        .where(StageRun.run_id == run)
        .order_by(StageRun.id)
    ).all()
    took = {program: seconds for program, status, seconds, *_ in stages if status == "done" and seconds}
    left = [
        took[program] * (1 - (done or 0) / total if status == "running" and total else 1)
        for program, status, _, done, total in stages
        if status in ("waiting", "running") and program in took
    ]
    return sum(left) if left else None
