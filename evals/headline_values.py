"""Verdicts per question as a benchmark's headline counts them: what is tested is what is shown."""

from sqlalchemy.orm import Session

from db.values import question_values
from evals.benchmark import BENCHMARKS


def headline_values(session: Session, evaluation_id: int, benchmark: str, all_categories: bool = False) -> dict[str, float]:
    """question id -> value on the benchmark's own scale, of the questions that its headline is of.

    `all_categories`: also of those that have a score of their own beside the headline. A benchmark that is not known here
    counts the mean of all its verdicts.
    """
    if benchmark not in BENCHMARKS:
        return question_values(session, evaluation_id)
    made = BENCHMARKS[benchmark]
    category = None if all_categories else made.headline_category
    return question_values(session, evaluation_id, category, made.question_value)
