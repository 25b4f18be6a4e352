"""Verdicts per question: what paired tests and training hooks work on."""

from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Judgment


def question_values(session: Session, evaluation_id: int) -> dict[str, float]:
    """question id -> mean verdict over its turns, samples and games, on the benchmark's own scale, higher is better.

    A verdict that counts several times (`raw.weight`: Arena-Hard's strong verdicts) does so here too. Questions without
    any verdict are left out.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    query = select(Judgment.question_id, Judgment.value, Judgment.raw).where(
        Judgment.evaluation_id == evaluation_id, Judgment.value.is_not(None)
    )
    for question, value, raw in session.execute(query):
        weight = float((raw or {}).get("weight") or 1.0)
        sums[question][0] += weight * value
        sums[question][1] += weight
    return {question: total / mass for question, (total, mass) in sums.items()}
