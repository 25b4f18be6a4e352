"""Are probabilities of "this answer is the better one" to be believed? Pure functions on plain numbers.

A judgment has the probability p that it gives to the answer which people prefer. Its confidence is max(p, 1 - p) in
[0.5, 1]; it is right when p > 0.5, and half right at 0.5.
"""

from math import exp, log1p
from typing import Any

from train.statistics import wilson_interval

BINS = 10


def sigmoid(difference: float) -> float:
    """1 / (1 + e^-difference), without overflow: the Bradley-Terry probability of a difference of rewards."""
    if difference >= 0:
        return 1 / (1 + exp(-difference))
    return exp(difference) / (1 + exp(difference))


def win(probability: float) -> float:
    """1, 0, or 0.5 for a tie."""
    return 0.5 if probability == 0.5 else float(probability > 0.5)


def reliability(probabilities: list[float], bins: int = BINS) -> list[dict[str, Any]]:
    """The bins of equal width in confidence that hold judgments, lowest first.

    Each: {"low", "high" (of confidence), "n", "confidence" (mean), "accuracy", "accuracy_low", "accuracy_high" (95 %, Wilson)}.
    """
    filled: dict[int, list[float]] = {}
    for p in probabilities:
        filled.setdefault(min(int((max(p, 1 - p) - 0.5) * 2 * bins), bins - 1), []).append(p)
    rows = []
    for k, inside in sorted(filled.items()):
        right, n = sum(win(p) for p in inside), len(inside)
        low, high = wilson_interval(right, n)
        rows.append(
            {
                "low": 0.5 + k / (2 * bins),
                "high": 0.5 + (k + 1) / (2 * bins),
                "n": n,
                "confidence": sum(max(p, 1 - p) for p in inside) / n,
                "accuracy": right / n,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return rows


def expected_calibration_error(table: list[dict[str, Any]]) -> float:
    """Mean over judgments of |accuracy - mean confidence| of their bin, of a `reliability` table (Guo et al. 2017,
    arXiv 1706.04599, Eq. 3). Biased upwards with few judgments a bin: n judgments at accuracy a scatter by sqrt(a (1 - a) / n).
    """
    total = sum(row["n"] for row in table)
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


def log_loss(differences: list[float]) -> float:
    """Mean of -log sigmoid(r_chosen - r_rejected) in nats; log 2 = 0.693 is no knowledge at all."""
    return sum(log1p(exp(-abs(d))) + max(-d, 0.0) for d in differences) / len(differences)


def best_temperature(differences: list[float]) -> float | None:
    """T > 0 that minimises the log-loss of differences / T (temperature scaling, Guo et al. 2017, section 4.2).

    Above 1 the model is over-confident. None where no finite T > 0 is best: all right, or not better than a coin. By
    bisection on 1 / T, in which the loss is convex.
    """
    if all(d >= 0 for d in differences) or sum(differences) <= 0:
        return None

    def slope(scale: float) -> float:
        return -sum(d * sigmoid(-scale * d) for d in differences)

    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)
