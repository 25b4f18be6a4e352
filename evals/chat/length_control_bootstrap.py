"""The sampling error of a length-controlled win rate: the fit repeated on resampled questions, all refits at once.

The regularisation strength stays at the one chosen on all rows. A refit solves the same L1 problem as liblinear does, to
convergence, by the proximal Newton method that liblinear itself uses (Yuan, Ho and Lin 2012), so draws differ from what
liblinear would give by the 0.016 points of its early stop at most; they are shifted by that difference.
"""

import numpy as np
from numpy.typing import NDArray

from evals.chat.length_control import GAMED_WEIGHT, Fit, Gamed
from evals.statistics import bca_ends

Array = NDArray[np.float64]

RESAMPLES = 1000
_NEWTON_STEPS = 12
_SWEEPS = 8
# Newton's error after a last step of this size is its square.
_CONVERGED = 1e-5
# Draws solved together: with 2,415 rows a chunk's probabilities take 4 MiB.
_CHUNK = 200


def length_controlled_interval(
    fit: Fit,
    probability: Array,
    baseline_lengths: Array,
    model_lengths: Array,
    difficulty: Array,
    gamed: Gamed | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float | None, float | None, float | None]:
    """(low, high, standard error) of `fit.win_rate`, in per cent; arguments [n] as in `length_controlled`.

    All None where every refit gives the same number (weights shrunk to zero): such a fit says nothing, least of all that
    it is certain. The gamed rows stay as they are: they belong to the definition, not to the sample.
    """
    delta = baseline_lengths - model_lengths
    length = delta / delta.std(ddof=1)
    generator, n = np.random.default_rng(seed), len(probability)
    chosen = generator.integers(0, n, (resamples, n))
    times = np.stack([np.bincount(row, minlength=n) for row in chosen]).astype(float)
    draws = np.concatenate(
        [_refits(times[i : i + _CHUNK], fit, probability, delta, length, difficulty, gamed) for i in range(0, resamples, _CHUNK)]
    )
    if np.ptp(draws) == 0:
        return None, None, None
    whole = float(_refits(np.ones((1, n)), fit, probability, delta, length, difficulty, gamed)[0])
    low, high = bca_ends(draws, whole, n)
    shift = fit.win_rate - whole
    return max(0.0, low + shift), min(100.0, high + shift), float(draws.std(ddof=1))


def _refits(
    times: Array, fit: Fit, probability: Array, delta: Array, length: Array, difficulty: Array, gamed: Gamed | None
) -> Array:
    """[b] length-controlled win rates where question i counts times[b, i] times."""
    n = times.sum(axis=1)
    mean = times @ delta / n
    # The standardisation belongs to the statistic: each draw has its own spread (ddof 1).
    spread = np.sqrt(np.maximum(times @ delta**2 - n * mean**2, 0) / (n - 1))
    scaled = np.tanh(delta / np.where(spread > 0, spread, np.inf)[:, None])
    weights = _solve(times, scaled, difficulty, probability, fit.strength, gamed, fit.weights)
    at_equal_length = _sigmoid(weights[:, 2, None] + weights[:, 1, None] * difficulty)
    return 100 * (times * at_equal_length).sum(axis=1) / n


def _solve(
    times: Array, scaled: Array, difficulty: Array, target: Array, strength: float, gamed: Gamed | None, start: Array
) -> Array:
    """[b, 3] minimisers of sum |w| + C sum times x cross-entropy, from `start`: Newton steps, each by coordinate descent."""
    b = len(times)
    w = np.tile(start, (b, 1))
    if gamed is not None:
        rows = np.stack([np.tanh(gamed.length), gamed.difficulty], axis=1)
        products = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), 4)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(w[:, 0, None] * scaled + w[:, 1, None] * difficulty + w[:, 2, None])
        error, curve = times * (p - target), times * p * (1 - p)
        gradient = np.stack([(error * scaled).sum(1), error @ difficulty, error.sum(1)], axis=1)
        crossed = curve * scaled
        hessian = np.empty((b, 3, 3))
        hessian[:, 0, 0], hessian[:, 1, 1], hessian[:, 2, 2] = (crossed * scaled).sum(1), curve @ difficulty**2, curve.sum(1)
        hessian[:, 0, 1] = hessian[:, 1, 0] = crossed @ difficulty
        hessian[:, 0, 2] = hessian[:, 2, 0] = crossed.sum(1)
        hessian[:, 1, 2] = hessian[:, 2, 1] = curve @ difficulty
        if gamed is not None:
            q = _sigmoid(w[:, :2] @ rows.T)
            gradient[:, :2] += GAMED_WEIGHT * (q - gamed.probability) @ rows
            hessian[:, :2, :2] += GAMED_WEIGHT * ((q * (1 - q)) @ products).reshape(b, 2, 2)
        step = _lasso_step(w, strength * gradient, strength * hessian)
        w += step
        if np.abs(step).max() < _CONVERGED:
            break
    return w


def _lasso_step(w: Array, gradient: Array, hessian: Array) -> Array:
    """[b, 3] minimiser of the quadratic model plus sum |w + step|, by cyclic coordinate descent."""
    step = np.zeros_like(w)
    for _ in range(_SWEEPS):
        for j in range(w.shape[1]):
            # A flat direction (no row with that feature) keeps its weight.
            curvature = np.maximum(hessian[:, j, j], 1e-12)
            slope = gradient[:, j] + np.einsum("bk,bk->b", hessian[:, j], step) - curvature * step[:, j]
            raw = w[:, j] - slope / curvature
            step[:, j] = np.sign(raw) * np.maximum(np.abs(raw) - 1 / curvature, 0) - w[:, j]
    return step


def _sigmoid(x: Array) -> Array:
    from scipy.special import expit

    return expit(x)
