"""AlpacaEval's length-controlled win rate: what the win rate would be if both answers were equally long.

A logistic regression on tanh of the standardised length difference, the instruction's difficulty, and the model itself
(alpaca_eval 0.6.6, `metrics/glm_winrate.py`, formula `length_controlled_v1`), without scikit-learn's metadata routing.

The official number depends on the machine: upstream's fold assignment broke ties with an unstable sort, so the folds, and
the regularisation strength that they choose, differ between processors (up to 0.15 points: the cross-validated scores of
neighbouring strengths often agree to the sixth digit). Our own folds are stable; the others serve to reproduce.
liblinear is part of the definition too: it stops early, and a converged solver differs by up to 0.016 points.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core import paths
from core.errors import MissingInput
from evals.benchmark import read_text

Array = NDArray[np.float64]

STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse regularisation strengths that are searched."""
FOLDS = 5
LAYOUTS = ("stable", "introsort", "avx512")
"""Ways in which GroupKFold's sort of equally large groups was resolved: scikit-learn now; numpy without and with AVX-512."""
AVX512_FILE = "alpaca_eval/groupkfold5_assignments.npz"
GAMED_WEIGHT = 0.2 / 2
"""Weight of each gamed row: lambda 0.2 over the two gamed baselines."""


@dataclass(frozen=True)
class Gamed:
    """Judgments of the baseline's own verbose and concise versions, which pull the fit towards no length effect."""

    probability: Array
    """[g] of winning."""
    length: Array
    """[g] standardised length difference (before tanh)."""
    difficulty: Array
    """[g]."""


@dataclass(frozen=True)
class Fit:
    """A fitted length-controlled win rate."""

    win_rate: float
    """Per cent."""
    per_question: Array
    """[n] probability of winning at equal length."""
    strength: float
    """The C that was used."""
    weights: Array
    """[3] of length, difficulty and the model itself."""


def read_gamed(path: Path) -> Gamed:
    """Read `df_gamed.csv`: preference in [0, 1], std_delta_len, instruction_difficulty, not_gamed_baseline = False."""
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    columns = [np.array([float(r[name]) for r in rows]) for name in ("preference", "std_delta_len", "instruction_difficulty")]
    return Gamed(*columns)


def read_difficulty(path: Path) -> Array:
    """[805] difficulty of each instruction in the official order, from a two-column CSV or from `df_gamed.csv`."""
    found: dict[int, float] = {}
    for row in csv.DictReader(io.StringIO(read_text(path))):
        index = row.get("index", row.get(""))
        found.setdefault(int(index), float(row["instruction_difficulty"]))
    return np.array([found[i] for i in range(len(found))])


def length_controlled(
    probability: Array,
    baseline_lengths: Array,
    model_lengths: Array,
    difficulty: Array,
    gamed: Gamed | None,
    strength: float | None = None,
    folds: NDArray[np.int_] | None = None,
) -> Fit:
    """Fit on n judged rows: the model's probability of winning [n], both lengths in characters [n], difficulty [n].

    `gamed=None` is upstream's `length_controlled_noreg`, the form for any judge but GPT-4-turbo, whose length bias the
    gamed rows carry. `strength=None` searches C by 5-fold cross-validation over `folds` [g + n] (gamed rows first; default
    the stable assignment). Raises ValueError for rows whose lengths do not vary.
    """
    delta = baseline_lengths - model_lengths
    spread = delta.std(ddof=1)
    if not spread > 0:
        raise ValueError("the length differences have no spread, so length cannot be controlled for")
    features = np.stack([np.tanh(delta / spread), difficulty, np.ones_like(delta)], axis=1)
    target, weight = probability, np.ones_like(probability)
    if gamed is not None:
        rows = np.stack([np.tanh(gamed.length), gamed.difficulty, np.zeros_like(gamed.length)], axis=1)
        features_all = np.concatenate([rows, features])
        target = np.concatenate([gamed.probability, target])
        weight = np.concatenate([np.full(len(rows), GAMED_WEIGHT), weight])
    else:
        features_all = features
    if strength is None:
        strength = _search(features_all, target, weight, stable_folds(len(target)) if folds is None else folds)
    weights = _logistic_fit(features_all, target, weight, strength)
    at_equal_length = _sigmoid(weights[2] + weights[1] * difficulty)
    return Fit(100 * float(at_equal_length.mean()), at_equal_length, float(strength), weights)


def fold_layout(layout: str, n: int) -> NDArray[np.int_]:
    """[n] fold of each row under one of LAYOUTS. Raises MissingInput where avx512 has none stored for so many rows."""
    if layout == "stable":
        return stable_folds(n)
    if layout == "introsort":
        return introsort_folds(n)
    places = [root / AVX512_FILE for root in (paths.data_mirror(), paths.data_cache()) if root is not None]
    for path in (path for path in places if path.is_file()):
        stored = np.load(path)
        if f"avx512_{n}" in stored:
            return stored[f"avx512_{n}"].astype(int)
        raise MissingInput(f"{path} holds no avx512 folds for {n} rows; use --folds introsort or stable.")
    raise MissingInput(f"The avx512 folds are read from {AVX512_FILE} under HARNESS_DATA; set it, or use --folds introsort.")


def stable_folds(n: int) -> NDArray[np.int_]:
    """[n] fold of each row: the last row in fold 0, then 1, ... (what GroupKFold gives with a stable sort)."""
    return (n - 1 - np.arange(n)) % FOLDS


def introsort_folds(n: int) -> NDArray[np.int_]:
    """[n] fold of each row where numpy's `argsort` of n equal keys is its introsort (processors without AVX-512).

    numpy/_core/src/npysort/quicksort.cpp, `aquicksort_`: with equal keys every comparison is false, which leaves the
    swaps of the pivots; up to 16 rows are left to an insertion sort, which moves none.
    """
    order = list(range(n))
    waiting = [(0, n - 1)]
    while waiting:
        first, last = waiting.pop()
        while last - first > 15:
            middle, i, j = first + (last - first) // 2, first, last - 1
            order[middle], order[j] = order[j], order[middle]
            while True:
                i, j = i + 1, j - 1
                if i >= j:
                    break
                order[i], order[j] = order[j], order[i]
            order[i], order[last - 1] = order[last - 1], order[i]
            waiting.append((first, i - 1))
            first = i + 1
    folds = np.empty(n, dtype=int)
    folds[order[::-1]] = np.arange(n) % FOLDS
    return folds


def _search(features: Array, target: Array, weight: Array, folds: NDArray[np.int_]) -> float:
    """The C with the best mean over folds of the held-out weighted log-likelihood."""
    scores = np.zeros((FOLDS, len(STRENGTHS)))
    for fold in range(FOLDS):
        held, kept = folds == fold, folds != fold
        for column, strength in enumerate(STRENGTHS):
            weights = _logistic_fit(features[kept], target[kept], weight[kept], strength)
            q = np.clip(_sigmoid(features[held] @ weights), 1e-15, 1 - 1e-15)
            p = target[held]
            scores[fold, column] = np.mean(weight[held] * (p * np.log(q) + (1 - p) * np.log(1 - q)))
    return float(STRENGTHS[scores.mean(axis=0).argmax()])


def _logistic_fit(features: Array, target: Array, weight: Array, strength: float) -> Array:
    """[3] weights of an L1 logistic regression without intercept; each row counts once as won, once as lost."""
    from sklearn.linear_model import LogisticRegression

    n = len(target)
    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-4, max_iter=100, random_state=123
    )
    labels = np.concatenate([np.ones(n), np.zeros(n)])
    model.fit(
        np.concatenate([features, features]), labels, sample_weight=np.concatenate([weight * target, weight * (1 - target)])
    )
    return model.coef_[0]


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))
