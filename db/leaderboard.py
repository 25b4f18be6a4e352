"""The leaderboard: one row per checkpoint, one cell per benchmark, and what may be ranked with what.

A cell belongs to a comparability group: benchmark, data version, answer settings and judge. Cells of different groups
measure different things; they stand in one table but are never ranked together.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache

from sqlalchemy import ColumnElement, String, Subquery, and_, cast, func, or_, select
from sqlalchemy.orm import Session, aliased

from core.errors import RegistryError
from core.fingerprint import digest
from db.judges import Trust, trust_of
from db.models import AnswerSet, Checkpoint, Cost, Evaluation, Judge, Run, RunCheckpoint, Score, StageRun

POLICY_KINDS = ("base", "sft", "iteration", "third_party", "published", "canary")
"""Checkpoint kinds that answer questions; reward and preference models have no row."""


@dataclass(frozen=True, slots=True)
class Change:
    """A paired test of one evaluation against the parent's of the same comparability group, in the benchmark's unit."""

    against: str
    """Name of the parent."""
    value: float
    """Mean difference of the verdicts per question: for a headline that a model is fitted to, of the raw verdicts."""
    low: float | None
    high: float | None
    p: float
    """Holm-adjusted over the checkpoint's benchmarks."""
    n: int
    verdict: str
    """A word of `evals.comparison.Verdict`."""

    @property
    def significant(self) -> bool:
        return self.verdict in ("IMPROVED", "REGRESSED")


@dataclass(slots=True)
class Cell:
    """One metric of one evaluation. Units are the benchmark's own (percent, 1..10, raw reward)."""

    checkpoint_id: int
    benchmark: str
    version: str
    settings_hash: str
    n_questions: int
    answer_set_id: int
    answer_tokens: float | None
    """Mean output tokens of the answers; None for likelihood benchmarks and unfinished answer sets."""
    evaluation_id: int
    complete: bool
    finished_at: datetime
    """When the evaluation ended or, of a partial one, began."""
    metric: str
    value: float | None
    """None when withheld: more than 1 % of the items failed."""
    low: float | None
    high: float | None
    """95 % interval, unless `method` says otherwise."""
    n: int
    n_failed: int
    worst: float | None
    best: float | None
    """The value if every failed item had gone as badly, or as well, as it could."""
    method: str
    higher_is_better: bool | None
    headline: bool
    judge: str
    judge_kind: str
    group: str
    """Comparability group: 16 hex digits over benchmark, version, settings and judge."""
    judge_id: int = 0
    flags: tuple[dict[str, str], ...] = ()
    """Why a reader should doubt it, [{"flag", "reason"}]; a flagged cell is not ranked with others."""
    change: Change | None = None
    """Against the parent, where both were evaluated alike; only of headlines."""
    trust: Trust | None = None
    """What is known of its judge; filled in by `leaderboard`."""


@dataclass(slots=True)
class Row:
    """One checkpoint."""

    checkpoint_id: int
    name: str
    kind: str
    source: str
    iteration: int | None
    run: str | None
    """The run that made it."""
    parent: str | None
    fingerprint: str
    created_at: datetime
    seconds: float | None
    """Wall-clock of the stages that made it: for an iteration, everything from generation to training."""
    base: str | None = None
    """The first of its line, where that is another checkpoint."""
    micro_dollars: int = 0
    """What judging it cost."""
    cells: dict[str, Cell] = field(default_factory=dict)
    """benchmark -> its headline cell: of several evaluations the newest among the complete ones with most questions."""
    evaluations: dict[str, list[Cell]] = field(default_factory=dict)
    """benchmark -> the headline cells of all its evaluations, the default first."""

    @property
    def held_out_reward(self) -> float | None:
        cell = self.cells.get("held_out_reward")
        return cell.value if cell else None

    @property
    def answer_tokens(self) -> float | None:
        """Mean output tokens over the benchmarks that generate, weighted by their questions."""
        # Once a benchmark: its other metrics, under `benchmark/metric`, are of the same answers.
        cells = [cell for name, cell in self.cells.items() if "/" not in name and cell.answer_tokens is not None]
        questions = sum(cell.n_questions for cell in cells)
        return sum(cell.answer_tokens * cell.n_questions for cell in cells) / questions if questions else None

    def cell(self, benchmark: str, group: str | None = None) -> Cell | None:
        """The cell of a benchmark in one comparability group, or the default one."""
        if group is None:
            return self.cells.get(benchmark)
        return next((cell for cell in self.evaluations.get(benchmark, []) if cell.group == group), None)


@dataclass(slots=True)
class Group:
    """Cells of one benchmark that may be ranked together."""

    key: str
    benchmark: str
    version: str
    settings_hash: str
    judge: str
    judge_kind: str
    checkpoints: int
    trust: Trust | None = None


def leaderboard(
    session: Session, run: str | None = None, benchmarks: list[str] | None = None, metrics: Collection[str] = ()
) -> list[Row]:
    """Every policy checkpoint, oldest first, evaluated or not; `run` keeps those that play a part in that run.

    `metrics`, each `benchmark/metric`, are scores to show beside the headlines: a row holds them under that name, as if they
    were benchmarks of their own. Raises RegistryError for a run that is not there.
    """
    wanted = Checkpoint.kind.in_(POLICY_KINDS)
    if run is not None:
        identity = run_id(session, run)
        played = select(RunCheckpoint.checkpoint_id).where(RunCheckpoint.run_id == identity)
        wanted = and_(wanted, or_(Checkpoint.run_id == identity, Checkpoint.id.in_(played)))
    parent, money = aliased(Checkpoint), _money()
    query = (
        select(
            *(Checkpoint.run_id, Checkpoint.stage_key),
            *(Checkpoint.id, Checkpoint.name, Checkpoint.kind, Checkpoint.source, Checkpoint.iteration, Run.name),
            *(parent.name, Checkpoint.fingerprint, Checkpoint.created_at),
            *(Checkpoint.parent_id, money.c.spent),
        )
        .outerjoin(Run, Checkpoint.run_id == Run.id)
        .outerjoin(parent, Checkpoint.parent_id == parent.id)
        .outerjoin(money, money.c.checkpoint_id == Checkpoint.id)
        .where(wanted)
        .order_by(Checkpoint.id)
    )
    by_stage, by_iteration = _seconds(session)
    rows: dict[int, Row] = {}
    parents: dict[int, int | None] = {}
    for made_by, stage_key, *values, parent_id, spent in session.execute(query):
        row = Row(*values, seconds=None, micro_dollars=int(spent or 0))
        parents[row.checkpoint_id] = parent_id
        row.seconds = by_iteration.get((made_by, row.iteration)) if row.kind == "iteration" else by_stage.get(stage_key)
        rows[row.checkpoint_id] = row
    _add_bases(rows, parents)
    wanted_metrics = [
        and_(AnswerSet.benchmark == name.partition("/")[0], Score.metric == name.partition("/")[2]) for name in metrics
    ]
    filters = [or_(Score.headline, *wanted_metrics)]
    if run is not None:
        filters.append(AnswerSet.checkpoint_id.in_(rows))
    if benchmarks is not None:
        filters.append(AnswerSet.benchmark.in_(benchmarks))
    for cell in cells(session, *filters):
        if cell.checkpoint_id not in rows:
            continue
        evaluations = rows[cell.checkpoint_id].evaluations
        if cell.headline:
            evaluations.setdefault(cell.benchmark, []).append(cell)
        column = f"{cell.benchmark}/{cell.metric}"
        if column in metrics:
            beside = replace(cell, change=None) if cell.headline else cell
            beside.benchmark = column
            evaluations.setdefault(column, []).append(beside)
    _add_trust(session, rows)
    for row in rows.values():
        for benchmark, found in row.evaluations.items():
            found.sort(key=preference, reverse=True)
            row.cells[benchmark] = found[0]
    return list(rows.values())


def groups(rows: list[Row]) -> dict[str, list[Group]]:
    """The comparability groups present for each benchmark, the one with most checkpoints first."""
    found: dict[str, dict[str, Group]] = defaultdict(dict)
    for row in rows:
        for benchmark, evaluations in row.evaluations.items():
            for cell in evaluations:
                identity = (cell.group, benchmark, cell.version, cell.settings_hash, cell.judge, cell.judge_kind)
                found[benchmark].setdefault(cell.group, Group(*identity, 0, cell.trust)).checkpoints += 1
    return {benchmark: sorted(by_key.values(), key=lambda group: -group.checkpoints) for benchmark, by_key in found.items()}


def rank_ranges(cells: Mapping[Hashable, Cell | None]) -> dict[Hashable, tuple[int, int]]:
    """Best and worst rank that the intervals allow, 1 the best, for cells of one comparability group.

    As Chatbot Arena ranks (lm-sys/FastChat, `serve/monitor/monitor.py`): best = 1 + the number whose interval lies
    wholly above mine; worst = the number, mine included, whose interval is not wholly below. Cells without a value have
    no rank; a value without an interval counts as a point. Raises ValueError for cells of several groups or metrics, or
    a metric without a direction.
    """
    known = {key: cell for key, cell in cells.items() if cell is not None and cell.value is not None}
    kinds = {(cell.group, cell.metric, cell.higher_is_better) for cell in known.values()}
    if len(kinds) > 1:
        raise ValueError(f"cells of {len(kinds)} comparability groups or metrics cannot be ranked together")
    if any(direction is None for _, _, direction in kinds):
        raise ValueError("a metric that has no better direction cannot be ranked")
    intervals = {key: _interval(cell) for key, cell in known.items()}
    lows, highs = sorted(low for low, _ in intervals.values()), sorted(high for _, high in intervals.values())
    total = len(intervals)
    return {
        key: (1 + total - bisect_right(lows, high), total - bisect_left(highs, low)) for key, (low, high) in intervals.items()
    }


def cells(session: Session, *filters: ColumnElement[bool]) -> list[Cell]:
    """The scores that match `filters` (on Score, Evaluation and AnswerSet), as cells."""
    judges = {judge[0]: judge[1:] for judge in session.execute(select(Judge.id, Judge.key, Judge.name, Judge.kind))}
    query = (
        select(
            # In the order of Cell's fields; what follows `headline` is made below.
            *(AnswerSet.checkpoint_id, AnswerSet.benchmark, AnswerSet.version, AnswerSet.settings_hash),
            *(AnswerSet.n_questions, AnswerSet.id, AnswerSet.mean_tokens),
            *(Evaluation.id, Evaluation.status == "complete", func.coalesce(Evaluation.finished_at, Evaluation.created_at)),
            *(Score.metric, Score.value, Score.low, Score.high, Score.n, Score.n_failed, Score.worst, Score.best),
            *(Score.method, Score.higher_is_better, Score.headline),
            Evaluation.judge_id,
        )
        .join(Evaluation, Score.evaluation_id == Evaluation.id)
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .where(*filters)
    )
    noted = _noted(session)
    found = []
    # On the connection: nothing here is an ORM object, and the session's own loading costs a third more.
    for *values, judge_id in session.connection().execute(query):
        key, name, kind = judges[judge_id]
        _, benchmark, version, settings_hash, *_ = values
        group = _group(benchmark, version, settings_hash, key)
        flags, change = noted.get(values[7], ((), None))
        cell = Cell(*values, name, kind, group, judge_id, flags)
        if cell.headline:
            cell.change = change
        found.append(cell)
    return found


def run_id(session: Session, name: str) -> int:
    """The id of a run. Raises RegistryError naming the newest runs when there is none of that name."""
    found = session.scalar(select(Run.id).where(Run.name == name))
    if found is not None:
        return found
    newest = session.scalars(select(Run.name).order_by(Run.id.desc()).limit(5)).all()
    known = (
        f"the newest are {', '.join(newest)}" if newest else "there is none yet; start one with `harness train-and-eval RECIPE`"
    )
    raise RegistryError(f"There is no run named {name!r}; {known}.")


def _noted(session: Session) -> dict[int, tuple[tuple[dict[str, str], ...], Change | None]]:
    """evaluation id -> (its flags, its change against the parent as `evals.changes` stored it), where it has one of them.

    Asked apart from the scores: what few evaluations have is not parsed for all.
    """
    stored = Evaluation.statistics["change"].as_string()
    flagged = cast(Evaluation.flags, String) != "[]"
    names = ("against", "value", "low", "high", "adjusted_p", "n", "verdict")
    found = {}
    for identity, flags, text in session.execute(
        select(Evaluation.id, Evaluation.flags, stored).where(or_(flagged, stored.is_not(None)))
    ):
        change = Change(*(json.loads(text)[name] for name in names)) if text else None
        found[identity] = (tuple(flags or ()), change)
    return found


def _add_bases(rows: Mapping[int, Row], parents: Mapping[int, int | None]) -> None:
    for identity, row in rows.items():
        first, seen = identity, {identity}
        while (above := parents.get(first)) in rows and above not in seen:
            seen.add(above)
            first = above
        row.base = rows[first].name if first != identity else None


def _money() -> Subquery:
    """What the judging of each checkpoint cost, as the evaluations added it up."""
    return (
        select(AnswerSet.checkpoint_id, func.sum(Cost.micro_dollars).label("spent"))
        .join(Evaluation, and_(Cost.scope == "evaluation", Cost.scope_key == Evaluation.key))
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .where(Cost.micro_dollars > 0)
        .group_by(AnswerSet.checkpoint_id)
        .subquery()
    )


def _seconds(session: Session) -> tuple[dict[str, float], dict[tuple[int, int], float]]:
    """Seconds of each stage by its key, and of the whole of each iteration's training by (run, iteration)."""
    made = (
        select(StageRun.key, func.max(StageRun.seconds))
        .join(Checkpoint, StageRun.key == Checkpoint.stage_key)
        .group_by(StageRun.key)
    )
    looped = (
        select(StageRun.run_id, StageRun.iteration, func.sum(StageRun.seconds))
        .where(StageRun.program.startswith("train."), StageRun.iteration > 0)
        .group_by(StageRun.run_id, StageRun.iteration)
    )
    return (
        {key: seconds for key, seconds in session.execute(made)},
        {(run, turn): seconds for run, turn, seconds in session.execute(looped)},
    )


def _add_trust(session: Session, rows: Mapping[int, Row]) -> None:
    """Fill in the `trust` of every judged cell; canaries say nothing about how a judge meets real answers."""
    evaluations: dict[int, list[int]] = defaultdict(list)
    cells = [cell for row in rows.values() for several in row.evaluations.values() for cell in several]
    judged = [cell for cell in cells if cell.judge_kind not in ("none", "sandbox", "published")]
    for cell in judged:
        mine = evaluations[cell.judge_id]
        if rows[cell.checkpoint_id].kind != "canary":
            mine.append(cell.evaluation_id)
    known = trust_of(session, {judge: sorted(ids) for judge, ids in evaluations.items()})
    for cell in judged:
        cell.trust = known.get(cell.judge_id)


def preference(cell: Cell) -> tuple[bool, int, datetime, int]:
    """Of several evaluations of a checkpoint the greatest stands for it: complete, with most questions, newest."""
    return cell.complete, cell.n_questions, cell.finished_at, cell.evaluation_id


def _interval(cell: Cell) -> tuple[float, float]:
    low = cell.value if cell.low is None else cell.low
    high = cell.value if cell.high is None else cell.high
    return (low, high) if cell.higher_is_better else (-high, -low)


@lru_cache(maxsize=4096)
def _group(benchmark: str, version: str, settings_hash: str, judge_key: str) -> str:
    return digest([benchmark, version, settings_hash, judge_key])[:16]
