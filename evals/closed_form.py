"""Statistics that have a formula: proportions, standard errors, bounds, adjusted p values. Pure, standard library only.

They need no array: what uses only them starts without importing numpy, a tenth of the time of scoring a saved file.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE = 0.95


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean (ddof 1); None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def wilson(k: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a proportion k / n (Wilson 1927), both in [0, 1]. Raises ValueError unless 0 <= k <= n, n > 0."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def failure_bounds(total: float, n: float, failed: float, low: float, high: float) -> tuple[float, float]:
    """(worst, best) mean if the `failed` items, of weight 1 each, had all been `low`, or all `high`.

    `total` is the sum of the `n` (weight of) items that did not fail. Raises ValueError when there are no items at all.
    """
    if n + failed <= 0:
        raise ValueError("no items")
    return (total + failed * low) / (n + failed), (total + failed * high) / (n + failed)


def minimum_detectable_effect(error: float, power: float = 0.8, alpha: float = 1 - CONFIDENCE) -> float:
    """Smallest true difference that a two-sided test at `alpha` finds with probability `power`, from its standard error.

    (z_{1 - alpha/2} + z_power) x error, the usual normal approximation: 2.80 standard errors by default.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error


def adjusted_effect(effect: float | None, tests: int, power: float = 0.8, alpha: float = 1 - CONFIDENCE) -> float | None:
    """`minimum_detectable_effect` of one of several tests whose p values are adjusted together.

    effect x (z_{1 - alpha/(2 tests)} + z_power) / (z_{1 - alpha/2} + z_power): the level of Holm's first step, which is
    Bonferroni's; the later steps are no stricter, so that no test sees less than this says.
    """
    if effect is None:
        return None
    return effect * minimum_detectable_effect(1.0, power, alpha / tests) / minimum_detectable_effect(1.0, power, alpha)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): adjusted p values in the order given, controlling the family-wise error."""
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5; below 1e-4 of the quantile's size from 10 degrees of freedom)."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
