"""AlpacaEval's numbers from preferences and lengths, for our own runs and for files that the reference made.

Metric names and arithmetic: alpaca_eval 0.6.6, `metrics/helpers.py` and `metrics/glm_winrate.py`. Pure; no judge, no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.benchmark import ScoreRow
from evals.chat.length_control import Fit, Gamed, fold_layout, length_controlled
from evals.chat.length_control_bootstrap import RESAMPLES, length_controlled_interval
from evals.closed_form import failure_bounds, standard_error
from evals.statistics import mean_interval

Array = NDArray[np.float64]

LC = "length_controlled_winrate"
LC_NOREG = "length_controlled_noreg"
"""alpaca_eval's GLM of that name: without the gamed rows, for any judge but the one whose length bias they carry."""

# Below so many rows the three weights and the 5-fold search mean nothing.
_LC_MINIMUM = 50


@dataclass(frozen=True)
class WinRate:
    """alpaca_eval's `describe_head2head`, in per cent; `preferences` as there: 1 baseline, 2 model, 0 or 1.5 draw."""

    win_rate: float
    standard_error: float | None
    discrete_win_rate: float
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int


def summarise(preferences: Sequence[float]) -> WinRate:
    """Raw win rate of preferences in {0} or [1, 2] (failed ones left out). Raises ValueError when there are none."""
    p = np.asarray(preferences, dtype=float)
    if len(p) == 0:
        raise ValueError("no preferences")
    draws = int(((p == 0) | (p == 1.5)).sum())
    y = np.where(p == 0, 1.5, p) - 1
    error = standard_error(y)
    return WinRate(
        win_rate=100 * float(y.mean()),
        standard_error=None if error is None else 100 * error,
        discrete_win_rate=100 * float(_discrete(y).mean()),
        n_wins=int((y > 0.5).sum()),
        n_wins_base=int((y < 0.5).sum()),
        n_draws=draws,
        n_total=len(y),
    )


def _discrete(y: Array) -> Array:
    """alpaca_eval's ZeroOneScoringRule: Python's rounding to the nearest label, a draw kept as one."""
    return np.where(y == 0.5, 0.5, np.round(y))


@dataclass(frozen=True)
class Judged:
    """The n judged answers of one model, in the order in which they count."""

    probability: Array
    """[n] preference - 1: of the model's answer being the better one."""
    baseline_lengths: Array
    """[n] characters."""
    model_lengths: Array
    """[n] characters."""
    n_failed: int
    """Answers that should have been judged and were not."""


def raw_rows(judged: Judged, kind: str, headline: bool) -> list[ScoreRow]:
    """win_rate with its interval, discrete_win_rate, standard_error and the counts. `kind`: what a preference is, in words."""
    y, n, failed = judged.probability, len(judged.probability), judged.n_failed
    summary = summarise(1 + y)
    interval = mean_interval(100 * y, support=(0, 100))
    worst, best = failure_bounds(100 * float(y.sum()), n, failed, 0, 100)
    discrete = mean_interval(100 * _discrete(y), support=(0, 100))
    whole = (interval.low, interval.high, f"{kind}; {interval.method}", n, failed, worst, best)
    rows = [
        ScoreRow("win_rate", summary.win_rate, *whole, headline=headline, stderr=interval.stderr),
        ScoreRow(
            "discrete_win_rate",
            *(summary.discrete_win_rate, discrete.low, discrete.high, discrete.method, n, failed),
            stderr=discrete.stderr,
        ),
        _plain("standard_error", summary.standard_error, "of win_rate over questions: sem, ddof 1", n, failed),
    ]
    counts = {name: getattr(summary, name) for name in ("n_wins", "n_wins_base", "n_draws", "n_total")}
    return rows + [_plain(name, float(count), "count", n, failed) for name, count in counts.items()]


def length_row(lengths: Sequence[int]) -> ScoreRow:
    """avg_length: mean characters of all outputs given, cut to a whole number as upstream does. Needs one at least."""
    return _plain("avg_length", float(int(np.mean(lengths))), "characters, cut to a whole number", len(lengths), 0)


def controllable(judged: Judged) -> bool:
    """Whether a length-controlled fit means anything: enough rows, and lengths that vary."""
    return len(judged.probability) >= _LC_MINIMUM and float(np.ptp(judged.baseline_lengths - judged.model_lengths)) > 0


def fit_rows(
    metric: str, judged: Judged, difficulty: Array, gamed: Gamed | None, layout: str, note: str, headline: bool
) -> tuple[list[ScoreRow], Fit]:
    """(rows of a length-controlled win rate, its fit): `metric`, and upstream's `lc_standard_error`.

    `difficulty` [n] as looked up by the caller; `layout` one of `length_control.LAYOUTS`; `note` goes into the method.
    Raises ValueError unless `controllable`, MissingInput for folds that are not here.
    """
    n, failed = len(judged.probability), judged.n_failed
    folds = fold_layout(layout, n + (0 if gamed is None else len(gamed.probability)))
    data: tuple[Any, ...] = (judged.probability, judged.baseline_lengths, judged.model_lengths, difficulty, gamed)
    fit = length_controlled(*data, folds=folds)
    low, high, error = length_controlled_interval(fit, *data)
    method = f"{note}{layout} folds, C {fit.strength:.4g}; {RESAMPLES} refits on resampled questions, bias-corrected"
    rows = [ScoreRow(metric, fit.win_rate, low, high, method, n, failed, headline=headline, stderr=error)]
    spread = standard_error(100 * fit.per_question)
    kind = "spread of the fitted probabilities over instructions alone: no sampling error, never one to test with"
    name = "lc_standard_error" if metric == LC else f"{metric}_standard_error"
    return [*rows, _plain(name, spread, kind, n, failed)], fit


def coefficients(fit: Fit) -> dict[str, float]:
    """The fit's weights and strength, for `evaluation.statistics`."""
    length, difficulty, model = (float(w) for w in fit.weights)
    return {"length": length, "difficulty": difficulty, "model": model, "C": fit.strength}


def _plain(metric: str, value: float | None, method: str, n: int, failed: int) -> ScoreRow:
    return ScoreRow(metric, value, None, None, method, n, failed, higher_is_better=None)
