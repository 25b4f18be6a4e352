"""Resampled intervals and paired tests. Pure, vectorised, seeded; numpy only, so that the dashboard may use it too.

What is resampled is the prompt (the cluster), never the judgment: two games or two turns of one prompt are not
independent, and treating them so makes intervals too narrow (Arena-Hard's gpt-4-0613: 35.3 to 40.4 by battle, 33.9 to
41.8 by prompt). Intervals are BCa with the percentiles widened for small samples: on skewed data the
plain percentile bootstrap covers up to 2 points too seldom (docs/results/coverage.md).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals.closed_form import CONFIDENCE, minimum_detectable_effect, t_quantile, wilson

RESAMPLES = 10_000

# Resampled clusters held in memory at once: 4M indices and their float64 values, 48 MiB at most.
_CHUNK = 4_000_000
# Up to so many clusters every sign pattern is tried, 2^14 = 16,384, in place of a random 10,000.
_EXACT_CLUSTERS = 14


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; the ends are None where there are too few clusters for one."""

    value: float
    low: float | None
    high: float | None
    method: str
    stderr: float | None = None
    """Standard error over clusters (linearised ratio, ddof 1); None without spread or with one cluster."""


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same questions."""

    value: float
    low: float | None
    high: float | None
    p: float
    """Two-sided, by sign-flip permutation of whole clusters."""
    mde: float | None
    """Smallest true difference that this many questions would have shown with probability 0.8."""
    n: int
    """Clusters."""


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[object] | None = None,
    weights: ArrayLike | None = None,
    *,
    support: tuple[float, float] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Weighted mean of `values` [n] with a BCa bootstrap interval over clusters (see `_ends`).

    `clusters` [n] labels what is resampled together (default: each value alone); the mean is the ratio of resampled sums,
    sum(w v) / sum(w). With `support`, the range that the values lie in, values without any spread get the Wilson interval
    of as many coin flips as there are clusters (a bootstrap would claim certainty). Raises ValueError for no values, NaN,
    or weights that sum to 0.
    """
    v, totals, masses = _cluster_sums(values, clusters, weights)
    value = float(totals.sum() / masses.sum())
    count = len(totals)
    if np.ptp(v) == 0:
        if support is None or support[0] == support[1]:
            return Interval(value, None, None, "no spread")
        low, high = wilson((value - support[0]) / (support[1] - support[0]) * count, count, confidence)
        width = support[1] - support[0]
        return Interval(value, support[0] + low * width, support[0] + high * width, "Wilson (no spread)")
    if count < 2:
        return Interval(value, None, None, "one cluster")
    low, high = _ends(totals, masses, resamples, confidence, seed)
    return Interval(value, low, high, f"question bootstrap (BCa), {resamples} resamples", _ratio_error(totals, masses))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Mean of a - b, both [n] on the same questions in the same order, with a cluster bootstrap interval and a p value.

    p: sign flips of whole clusters, all of them up to 14 clusters, else `resamples` random ones counted as
    (1 + as extreme) / (1 + resamples) (Phipson and Smyth 2010). Raises ValueError for unequal lengths, no values or NaN.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} values against {second.shape}: a paired test needs the same questions")
    differences, totals, masses = _cluster_sums(first - second, clusters, None)
    value = float(totals.sum() / masses.sum())
    count = len(totals)
    if count < 2 or np.ptp(differences) == 0:
        # Equal differences everywhere: nothing to resample, the signs still speak.
        return Difference(value, None, None, _sign_flip_p(totals, resamples, seed), None, count)
    low, high = _ends(totals, masses, resamples, confidence, seed)
    p = _sign_flip_p(totals, resamples, seed)
    mde = minimum_detectable_effect(_ratio_error(totals, masses))
    return Difference(value, low, high, p, mde, count)


def _cluster_sums(
    values: ArrayLike, clusters: Sequence[object] | None, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(values [n], weighted sums [c], weights [c]) with clusters in the order in which they first appear."""
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    if v.ndim != 1 or len(v) == 0:
        raise ValueError("a mean needs a flat list of at least one value")
    if w.shape != v.shape or (clusters is not None and len(clusters) != len(v)):
        raise ValueError("values, weights and clusters differ in length")
    if not (np.isfinite(v).all() and np.isfinite(w).all()):
        raise ValueError("values hold NaN or infinity: failed items are counted, not averaged")
    if w.sum() <= 0 or (w < 0).any():
        raise ValueError("weights must not be negative and must not sum to 0")
    if clusters is None:
        return v, v * w, w
    order: dict[object, int] = {}
    index = np.array([order.setdefault(label, len(order)) for label in clusters])
    return v, np.bincount(index, v * w, len(order)), np.bincount(index, w, len(order))


def _ratio_error(totals: NDArray[np.float64], masses: NDArray[np.float64]) -> float:
    """Standard error of sum(totals) / sum(masses) over clusters: linearised, ddof 1 (the sem where all masses are 1)."""
    count = len(totals)
    residuals = totals - totals.sum() / masses.sum() * masses
    return math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(masses.sum())


def _ends(
    totals: NDArray[np.float64], masses: NDArray[np.float64], resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Ends of the interval of a ratio of cluster sums."""
    value = float(totals.sum() / masses.sum())
    residuals = totals - value * masses
    spread = float((residuals**2).sum())
    skew = float((residuals**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    return bca_ends(_resampled_ratios(totals, masses, resamples, seed), value, len(totals), skew, confidence)


def bca_ends(
    draws: NDArray[np.float64], value: float, clusters: int, acceleration: float = 0.0, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Ends of the bias-corrected and accelerated bootstrap interval (Efron 1987, eq. 6.6) from `draws` [b] of a statistic.

    z is widened to t_{n-1} sqrt(n / (n-1)), the small-sample correction of the percentiles by Hesterberg (2015, section
    3.2.2): resampled means spread with divisor n and know nothing of that spread's own uncertainty. `acceleration` is
    the skewness of the n clusters' influences over 6 sqrt(n); 0 leaves bias correction alone.
    """
    normal = NormalDist()
    # Equal statistics differ in their last bits; they count as half below.
    tie = 1e-12 * max(1.0, float(np.abs(draws).max()))
    below = float((draws < value - tie).mean() + (draws <= value + tie).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 1 / len(draws)), 1 - 1 / len(draws)))
    wide = t_quantile(0.5 + confidence / 2, clusters - 1) * math.sqrt(clusters / (clusters - 1))

    def level(z: float) -> float:
        # Beyond 1 / acceleration the map turns round; the end of the draws is then the answer.
        slope = 1 - acceleration * (bias + z)
        return normal.cdf(bias + (bias + z) / slope) if slope > 0 else float(bias + z > 0)

    low, high = np.percentile(draws, [100 * level(-wide), 100 * level(wide)])
    return float(low), float(high)


def _resampled_ratios(totals: NDArray[np.float64], masses: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples] ratios of sums over clusters drawn with replacement."""
    generator = np.random.default_rng(seed)
    count = len(totals)
    index = np.uint16 if count <= 2**16 else np.uint32
    alike = np.ptp(masses) == 0
    chunk = max(1, _CHUNK // count)
    parts = []
    for start in range(0, resamples, chunk):
        drawn = generator.integers(0, count, size=(min(chunk, resamples - start), count), dtype=index)
        sums = totals[drawn].sum(axis=1)
        weights = count * masses[0] if alike else masses[drawn].sum(axis=1)
        # Clusters of weight 0 alone have no mean; such a draw says nothing.
        parts.append(sums / weights if alike else sums[weights > 0] / weights[weights > 0])
    return np.concatenate(parts)


def _sign_flip_p(totals: NDArray[np.float64], resamples: int, seed: int) -> float:
    """Two-sided p of sum(totals) when each cluster's sign is a coin flip."""
    count = len(totals)
    # Sums of the same numbers in another order differ in the last bits: they count as equal.
    observed = abs(totals.sum()) - 1e-9 * np.abs(totals).sum()
    if count <= _EXACT_CLUSTERS:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((1 - 2 * patterns) @ totals) >= observed).mean())
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // count)
    extreme = 0
    for start in range(0, resamples, chunk):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(chunk, resamples - start), count), dtype=np.int8)
        extreme += int((np.abs(signs @ totals) >= observed).sum())
    return (1 + extreme) / (1 + resamples)
