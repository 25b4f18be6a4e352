"""From values per question to a score row: interval, failures counted and bounded, withheld where too many failed."""

from collections.abc import Sequence

from evals.benchmark import MAX_FAILED, ScoreRow
from evals.closed_form import failure_bounds, standard_error, wilson


def percentage(metric: str, values: Sequence[float | None], *, headline: bool = False, proportion: bool = False) -> ScoreRow:
    """Mean over questions of values in [0, 1], in percent; None is a question that failed. Raises ValueError for no questions.

    Interval: Wilson for a `proportion` (values are 0 or 1), else a bootstrap over questions (`mean_interval`).
    """
    known = [value for value in values if value is not None]
    failed = len(values) - len(known)
    worst, best = failure_bounds(sum(known), len(known), failed, 0.0, 1.0)
    common = {"n": len(known), "n_failed": failed, "worst": 100 * worst, "best": 100 * best, "headline": headline}
    if failed > MAX_FAILED * len(values):
        return ScoreRow(metric, None, None, None, f"withheld: {failed} of {len(values)} questions failed", **common)
    if proportion:
        low, high = wilson(sum(known), len(known))
        value, method, error = sum(known) / len(known), "Wilson interval over questions", standard_error(known)
    else:
        from evals.statistics import mean_interval  # numpy: proportions do without

        interval = mean_interval(known, support=(0.0, 1.0))
        value, low, high, method, error = interval.value, interval.low, interval.high, interval.method, interval.stderr
    return ScoreRow(metric, 100 * value, _percent(low), _percent(high), method, stderr=_percent(error), **common)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
