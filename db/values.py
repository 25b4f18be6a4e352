"""Verdicts per question: what paired tests and training hooks work on."""

from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.judged import Judged, OfQuestion, weighted_mean
from db.models import Judgment
from db.samples import question_categories


def question_values(
    session: Session, evaluation_id: int, category: str | None = None, of_question: OfQuestion = weighted_mean
) -> dict[str, float]:
    """question id -> `of_question` of its verdicts, for the questions of one `category`, or of all.

    Where the answers were stored without categories, all count. See `evals.headline_values` for what a headline counts.
    """
    wanted = None
    if category is not None and (categories := question_categories(session, evaluation_id)):
        wanted = {question for question, its in categories.items() if its == category}
    columns = (Judgment.question_id, Judgment.turn, Judgment.sample, Judgment.game, Judgment.value, Judgment.raw)
    order = (Judgment.turn, Judgment.sample, Judgment.game)
    query = select(*columns).where(Judgment.evaluation_id == evaluation_id).order_by(*order)
    found: dict[str, list[Judged]] = defaultdict(list)
    for question, turn, sample, game, value, raw in session.execute(query):
        if wanted is None or question in wanted:
            found[question].append(Judged(turn, sample, game, value, float((raw or {}).get("weight") or 1.0)))
    values = {question: of_question(judged) for question, judged in found.items()}
    return {question: value for question, value in values.items() if value is not None}
