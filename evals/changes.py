"""Each evaluation against the same evaluation of the checkpoint's parent: tested once, when it ends, and kept.

The leaderboard shows it beside every score. It is kept in `Evaluation.statistics["change"]`, because a page that is asked
for often must not resample thousands of questions; what is stored says which two evaluations it was made from, so that a
rejudged parent is noticed.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, aliased

from db.models import AnswerSet, Checkpoint, Evaluation
from db.registry import Registry
from evals.benchmark import BENCHMARKS
from evals.closed_form import adjusted_effect, holm
from evals.comparison import verdict
from evals.headline_values import headline_values
from evals.statistics import Difference, paired_difference

Pair = tuple[Evaluation, Evaluation, Checkpoint, AnswerSet]
"""(evaluation, the parent's, the parent, the answer set of the first)."""

# Raised when the same two evaluations give another test: what an older rule stored is tested anew.
RULE = "2"  # the verdicts that the headline counts; the smallest visible effect of the adjusted test


def store_changes(registry: Registry, evaluations: Iterable[str]) -> int:
    """Test the evaluations with these keys against their parents', and the children's against them; returns how many were new.

    Only complete evaluations of one comparability group are paired: same benchmark, data, settings and judge. A pair that
    shares no question with a verdict has no test. Where the parent has several in the group (of other seeds), the newest counts.
    """
    keys = sorted(set(evaluations))
    tested: dict[int, dict[str, Any]] = {}
    with registry.read() as session:
        pairs = _pairs(session, keys)
        for mine, theirs, parent, answers in pairs:
            made_from = [_state(mine), _state(theirs), RULE]
            if (mine.statistics or {}).get("change", {}).get("made_from") == made_from:
                continue
            found = _test(session, mine.id, theirs.id, answers.benchmark)
            if found:
                tested[mine.id] = {"against": parent.name, "made_from": made_from} | found
    if tested:
        checkpoints = {answers.checkpoint_id for mine, _, _, answers in pairs if mine.id in tested}
        with registry.write() as session:
            for identity, change in tested.items():
                row = session.get_one(Evaluation, identity)
                row.statistics = dict(row.statistics or {}) | {"change": change}
            session.flush()
            for checkpoint in checkpoints:
                _adjust(session, checkpoint)
    return len(tested)


def _pairs(session: Session, keys: list[str]) -> list[Pair]:
    mine, theirs = aliased(Evaluation), aliased(Evaluation)
    ours, others = aliased(AnswerSet), aliased(AnswerSet)
    child, parent = aliased(Checkpoint), aliased(Checkpoint)
    query = (
        select(mine, theirs, parent, ours)
        .join(ours, mine.answer_set_id == ours.id)
        .join(child, ours.checkpoint_id == child.id)
        .join(parent, child.parent_id == parent.id)
        .join(others, others.checkpoint_id == parent.id)
        .join(theirs, theirs.answer_set_id == others.id)
        .where(
            others.benchmark == ours.benchmark,
            others.version == ours.version,
            others.settings_hash == ours.settings_hash,
            theirs.judge_id == mine.judge_id,
            mine.status == "complete",
            theirs.status == "complete",
            or_(mine.key.in_(keys), theirs.key.in_(keys)),
        )
        .order_by(mine.id, theirs.finished_at, theirs.id)
    )
    newest = {pair[0].id: pair for pair in session.execute(query).tuples()}
    return list(newest.values())


def _test(session: Session, mine: int, theirs: int, benchmark: str) -> dict[str, Any] | None:
    """The paired test in the benchmark's unit; None where no question has a verdict on both sides."""
    unit = BENCHMARKS[benchmark].unit if benchmark in BENCHMARKS else "unknown"
    scale = 100.0 if unit == "percent" else 1.0
    first, second = (headline_values(session, evaluation, benchmark) for evaluation in (mine, theirs))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    found = paired_difference([scale * first[q] for q in shared], [scale * second[q] for q in shared])
    fields = ("value", "low", "high", "p", "mde", "n")
    return {name: getattr(found, name) for name in fields} | {"unit": unit}


def _adjust(session: Session, checkpoint: int) -> None:
    """Holm's adjustment over all of a checkpoint's changes, as `harness compare` adjusts over the benchmarks it compares."""
    query = select(Evaluation).join(AnswerSet).where(AnswerSet.checkpoint_id == checkpoint).order_by(Evaluation.id)
    rows = [row for row in session.scalars(query) if "change" in (row.statistics or {})]
    for row, adjusted in zip(rows, holm([row.statistics["change"]["p"] for row in rows]), strict=True):
        change = row.statistics["change"]
        word = _word(change, adjusted, len(rows))
        row.statistics = row.statistics | {"change": change | {"adjusted_p": adjusted, "verdict": word}}


def _word(change: dict[str, Any], adjusted: float, tests: int) -> str:
    measured = Difference(*(change[name] for name in ("value", "low", "high", "p", "mde", "n")))
    measured = replace(measured, mde=adjusted_effect(measured.mde, tests))
    return verdict(measured, adjusted, change["unit"])


def _state(evaluation: Evaluation) -> list[str]:
    return [evaluation.key, evaluation.finished_at.isoformat() if evaluation.finished_at else ""]
