"""What is known of each judge: how far it agrees with people, and what its verdicts say of its own leanings."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.fingerprint import digest
from db.models import AnswerSet, Calibration, Checkpoint, Evaluation, Judge

PEOPLE = ("pandalm",)
"""Calibration sets whose labels are several people's; the others' are gold labels or a published board."""
NEWEST = 50
"""Evaluations of a judge whose biases are pooled: the newest ones."""


@dataclass(slots=True)
class Trust:
    """In one line, why to believe a judge or not."""

    agreement: dict[str, Any] | None = None
    """{"value", "low", "high", "n"}: share of items on which it chooses what most people chose."""
    bias: dict[str, dict[str, Any]] = field(default_factory=dict)
    """metric of `evals.judges.bias` -> {"value", "low", "high", "n", "evaluations"}, pooled."""


@dataclass(slots=True)
class JudgeCard:
    """One judge on one benchmark: its identity, its biases there, its calibrations anywhere."""

    name: str
    kind: str
    benchmark: str
    key: str
    config: dict[str, Any]
    evaluations: int
    bias: dict[str, dict[str, Any]]
    """Pooled over its newest evaluations on this benchmark."""
    calibrations: list[dict[str, Any]]
    """Rows of `db.models.Calibration`: dataset, version, n, n_failed, statistics."""


def identity(kind: str, name: str, config: Mapping[str, Any]) -> str:
    """Identity of a judge whatever the benchmark's prompt: kind, model (its weights are in the name) and endpoint."""
    return digest({"kind": kind, "who": name, "endpoint": config.get("endpoint")})


_NO_JUDGE = ("none", "sandbox", "published")
"""Kinds under which verdicts stand that nobody gave."""


def judge_names(session: Session) -> list[str]:
    """Every judge that judged or was calibrated, those of most evaluations first."""
    judged = (
        select(Judge.name)
        .join(Evaluation, Evaluation.judge_id == Judge.id)
        .where(Judge.kind.not_in(_NO_JUDGE))
        .group_by(Judge.name)
        .order_by(func.count().desc(), func.max(Judge.id).desc())
    )
    calibrated = select(Calibration.judge_name).order_by(Calibration.id.desc())
    return list(dict.fromkeys([*session.scalars(judged), *session.scalars(calibrated)]))


def judging_checkpoint(session: Session, name: str) -> str | None:
    """Name of the checkpoint that a judge named `reward-model:FINGERPRINT` is; None for other judges."""
    kind, _, start = name.partition(":")
    if kind != "reward-model" or not start:
        return None
    return session.scalar(select(Checkpoint.name).where(Checkpoint.fingerprint.startswith(start, autoescape=True)))


def judge_cards(session: Session, name: str | None = None) -> list[JudgeCard]:
    """One card per judge and benchmark that it judged, and one per calibrated judge that judged nothing; `name` keeps one."""
    query = (
        select(Judge, AnswerSet.benchmark, Evaluation.id)
        .join(Evaluation, Evaluation.judge_id == Judge.id)
        .join(AnswerSet, Evaluation.answer_set_id == AnswerSet.id)
        .join(Checkpoint, AnswerSet.checkpoint_id == Checkpoint.id)
        # A canary says nothing about how a judge meets real answers.
        .where(Judge.kind.not_in(_NO_JUDGE), Checkpoint.kind != "canary")
        .order_by(Judge.id, Evaluation.id)
    )
    if name is not None:
        query = query.where(Judge.name == name)
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    judges: dict[int, Judge] = {}
    for judge, benchmark, evaluation in session.execute(query):
        judges[judge.id] = judge
        if not benchmark.startswith("judge_agreement_"):
            found[judge.id, benchmark].append(evaluation)
    known = calibrations(session)
    biases = _biases(session, [i for ids in found.values() for i in ids[-NEWEST:]])
    cards = []
    for (judge_id, benchmark), ids in found.items():
        judge = judges[judge_id]
        key = identity(judge.kind, judge.name, judge.config)
        bias = pooled([biases[i] for i in ids[-NEWEST:] if i in biases])
        rows = [_row(row) for row in known.get(key, [])]
        cards.append(JudgeCard(judge.name, judge.kind, benchmark, key, judge.config, len(ids), bias, rows))
    shown = {card.key for card in cards}
    for key, rows in known.items():
        if key not in shown and (name is None or rows[0].judge_name == name):
            first = rows[0]
            cards.append(JudgeCard(first.judge_name, first.judge_kind, "", key, {}, 0, {}, [_row(row) for row in rows]))
    return cards


def trust_of(session: Session, evaluations: Mapping[int, Sequence[int]]) -> dict[int, Trust]:
    """judge id -> its `Trust`, from the ids of its evaluations, oldest first; judges of whom nothing is known are absent."""
    judges = {j.id: j for j in session.scalars(select(Judge).where(Judge.id.in_(list(evaluations))))}
    known = calibrations(session)
    biases = _biases(session, [i for ids in evaluations.values() for i in ids[-NEWEST:]])
    found = {}
    for judge_id, ids in evaluations.items():
        judge = judges[judge_id]
        rows = known.get(identity(judge.kind, judge.name, judge.config), [])
        agreement = next((r.statistics["agreement"] for r in rows if r.dataset in PEOPLE and "agreement" in r.statistics), None)
        bias = pooled([biases[i] for i in ids[-NEWEST:] if i in biases])
        if agreement or bias:
            found[judge_id] = Trust(agreement, bias)
    return found


def calibrations(session: Session) -> dict[str, list[Calibration]]:
    """identity of a judge -> its calibrations."""
    found: dict[str, list[Calibration]] = defaultdict(list)
    for row in session.scalars(select(Calibration).order_by(Calibration.id)):
        found[row.judge_key].append(row)
    return found


def pooled(several: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Statistics of several evaluations as one: means weighted by n.

    The evaluations share their questions, so their errors are added as if they moved together: the interval is the weighted
    mean of the intervals, never narrower than it should be.
    """
    by_metric: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for bias in several:
        for metric, statistic in bias.items():
            by_metric[metric].append(statistic)
    found = {}
    for metric, rows in by_metric.items():
        n = sum(row["n"] for row in rows)
        ends = {}
        for end in ("value", "low", "high"):
            known = all(row[end] is not None for row in rows)
            ends[end] = sum(row["n"] * row[end] for row in rows) / n if known else None
        found[metric] = ends | {"n": n, "evaluations": len(rows)}
    return found


def _biases(session: Session, evaluations: Iterable[int]) -> dict[int, dict[str, Any]]:
    """evaluation id -> the `bias` part of its statistics, where there is one."""
    rows = session.execute(select(Evaluation.id, Evaluation.statistics).where(Evaluation.id.in_(list(evaluations))))
    return {identity: statistics["bias"] for identity, statistics in rows if statistics and "bias" in statistics}


def _row(row: Calibration) -> dict[str, Any]:
    fields = ("dataset", "version", "n", "n_failed", "statistics")
    return {name: getattr(row, name) for name in fields} | {"created_at": row.created_at.isoformat()}


def card_json(card: JudgeCard) -> dict[str, Any]:
    """A card as plain data."""
    return asdict(card)
