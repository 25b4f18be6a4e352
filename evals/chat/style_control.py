"""Arena-Hard's style control: the score with length and markdown in the same logistic fit as the models.

Reference: lmarena/arena-hard-auto, v0.1 (`show_result.py --style-control`, `utils_math.py`) and v2.0
(`show_result.py --control-features`). What it means, in both versions: the features are centred over all battles of a
fit, so a controlled score is the one at the *mean style difference of those battles*. Fitted together, models of unlike
style pull each other's scores; for one model alone that mean is its own, and control does almost nothing (gpt-4-0613:
37.90 raw, 37.31 controlled alone, 37.11 beside one other model, 49.7 among the published 70). `equal_style` is the same
fit read where both answers have the same style, which means the same for one model as for many.
"""

import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evals.statistics import bca_ends

Array = NDArray[np.float64]
Version = Literal["v0.1", "v2"]

FEATURES = ("token_len", "header_count", "list_count", "bold_count")
CONTROLS: dict[str, tuple[int, ...]] = {"all": (0, 1, 2, 3), "length": (0,), "markdown": (1, 2, 3)}
"""Name of a control -> the columns of FEATURES in it."""

RESAMPLES = 1000
BASE = 10
"""Odds that one unit of v0.1's ratings stands for, 400 Elo points (`utils_math.py`)."""

# Elements of the batch [resamples, battles] held at once: 0.5M float64 = 4 MiB, a few of which fit the cache.
_CHUNK = 500_000
_ITERATIONS, _TOLERANCE = 50, 1e-8
# What v2 has in place of a penalty: nothing that shows, but collinear features have a solution.
_RIDGE = 1e-9

_CODE = re.compile("```([^`]*)```")
_HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)}
_LISTS = {"ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE), "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE)}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}

_VOCABULARY = "fb374d419588a4632f3f557e76b4b70aebbca790"
"""tiktoken's cache name of o200k_base, the vocabulary of gpt-4o: sha1 of its address (`tiktoken/load.py`)."""
TOKENIZER_FIX = (
    "run `python -c \"import tiktoken; tiktoken.get_encoding('o200k_base')\"` once where there is a network, and set "
    "TIKTOKEN_CACHE_DIR to the folder that keeps it"
)


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """header_count, list_count and bold_count as answer rows of the reference hold them (`utils/add_markdown_info.py`).

    The inside of a block between triple backticks is removed wherever the same text stands, as there.
    """
    for block in _CODE.findall(text):
        text = text.replace(block, "")
    groups = {"header_count": _HEADERS, "list_count": _LISTS, "bold_count": _BOLD}
    return {name: {kind: len(found.findall(text)) for kind, found in kinds.items()} for name, kinds in groups.items()}


def flat_style(metadata: Mapping[str, Any]) -> list[float] | None:
    """[4] FEATURES of a row's metadata, nested or summed; None where one is missing."""
    if any(metadata.get(name) is None for name in FEATURES):
        return None
    found = [metadata[name] for name in FEATURES]
    return [float(sum(value.values()) if isinstance(value, Mapping) else value) for value in found]


@cache
def token_counter() -> Callable[[str], int] | None:
    """Counts gpt-4o's tokens; None where tiktoken's vocabulary is not on this machine. Never goes to the network for it."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    if not (Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / _VOCABULARY).is_file():
        return None
    import tiktoken

    encoding = tiktoken.get_encoding("o200k_base")
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def text_styles(texts: Sequence[str], stored: Sequence[Mapping[str, Any] | None]) -> tuple[Array, str]:
    """([n, 4] FEATURES, unit of the length) of answers, from `stored` metadata where it is whole, else from the text.

    The unit is "tokens" where every length is known in gpt-4o's tokens, else "characters" for all: the features are
    ratios, in which the unit nearly cancels.
    """
    count = token_counter()
    rows, known = [], True
    for text, metadata in zip(texts, stored, strict=True):
        row = flat_style(metadata) if metadata else None
        if row is None:
            known = known and count is not None
            row = [float(count(text)) if count else math.nan, *(sum(c.values()) for c in markdown_counts(text).values())]
        rows.append(row)
    found = np.array(rows, dtype=float).reshape(-1, len(FEATURES))
    if not known:
        found[:, 0] = [len(text) for text in texts]
    return found, "tokens" if known else "characters"


def differences(model: Array, baseline: Array, version: Version) -> Array:
    """[n, 4] style differences, model minus baseline, from FEATURES [n, 4] of both answers.

    v0.1: (m - b) / (m + b + 1) on the four counts (`construct_style_matrices`). v2: (m - b) / (m + b) on tokens (0 where
    both are empty), and (m - b) / (m + b + 1) on counts per token, count / (tokens + 1).
    """
    if version == "v0.1":
        return (model - baseline) / (model + baseline + 1)
    found = np.empty_like(model)
    tokens, other = model[:, 0], baseline[:, 0]
    found[:, 0] = (tokens - other) / np.maximum(tokens + other, 1)
    m, b = model[:, 1:] / (tokens[:, None] + 1), baseline[:, 1:] / (other[:, None] + 1)
    found[:, 1:] = (m - b) / (m + b + 1)
    return found


@dataclass(frozen=True)
class Battles:
    """n judged games of one or more models against one baseline."""

    model: NDArray[np.int_]
    """[n] index of the model."""
    prompt: NDArray[np.int_]
    """[n] index of the prompt: what is resampled together."""
    points: Array
    """[n] the model's points, 0..1."""
    weight: Array
    """[n] rows that the game counts for."""
    difference: Array
    """[n, 4] `differences`."""


@dataclass(frozen=True)
class Estimates:
    """One number per model [m], in per cent, with a 95 % interval and standard error over resampled prompts."""

    value: Array
    low: Array
    high: Array
    stderr: Array


@dataclass(frozen=True)
class Fit:
    """A style-controlled fit."""

    controlled: Estimates
    """At the mean style difference of the battles: the reference's number."""
    equal: Estimates
    """Where both answers have the same style."""
    coefficients: dict[str, float]
    """Feature -> its weight per standard deviation; v0.1's are upstream's `coefs`."""
    mean_difference: dict[str, float]
    resamples: int
    """Resamples that had a fit."""


def fit(battles: Battles, version: Version, control: str = "all", resamples: int = RESAMPLES, seed: int = 0) -> Fit:
    """The converged fit of all models of `battles`, jointly, with a bootstrap over prompts (standardisation kept).

    v0.1: one rating per model and one of the baseline on the scale of log(BASE), L2 penalty 1/2 |w|^2 (scikit-learn's
    default C = 1), battles doubled, features divided by the population's standard deviation. v2: one log-odds per model, no
    penalty, sample standard deviation. `control`: a key of CONTROLS. Raises ValueError for no battles, and where no fit
    exists (v2: a model that always won, or outcomes that a feature separates).
    """
    if not len(battles.points):
        raise ValueError("no battles")
    columns = list(CONTROLS[control])
    first = version == "v0.1"
    raw = battles.difference[:, columns]
    mean = np.average(raw, axis=0, weights=battles.weight)
    mass = battles.weight.sum()
    square = np.average((raw - mean) ** 2, axis=0, weights=battles.weight)
    deviation = np.sqrt(square if first else square * mass / max(mass - 1, 1))
    # A feature without spread says nothing (upstream divides by 0): its column is 0, and so is its weight.
    flat = deviation <= 1e-12
    scale = np.where(flat, 1.0, deviation)
    problem = _problem(battles, np.where(flat, 0.0, (raw - mean) / scale), first)

    theta, c = _solve(problem, np.ones((1, len(battles.points))))
    if not np.isfinite(theta).all():
        raise ValueError("the outcomes can be told apart without error, so a logistic fit has no solution")
    draws = _bootstrap(problem, battles, resamples, seed, (theta[0], c[0]))
    shift = mean / scale
    # What the style's part amounts to where both answers are alike, of the fit and of its draws.
    at_equal, drawn_at_equal = float(c[0] @ shift), (draws[1] @ shift)[:, None]
    prompts = len(np.unique(battles.prompt))
    names = [FEATURES[column] for column in columns]
    return Fit(
        controlled=_estimates(theta[0], draws[0], prompts),
        equal=_estimates(theta[0] - at_equal, draws[0] - drawn_at_equal, prompts),
        coefficients=dict(zip(names, map(float, c[0]), strict=True)),
        mean_difference=dict(zip(names, map(float, mean), strict=True)),
        resamples=int(np.isfinite(draws[1]).all(axis=1).sum()),
    )


@dataclass(frozen=True)
class _Problem:
    """A penalised logistic regression with one intercept a model; rows sorted by model."""

    order: NDArray[np.int_]
    starts: NDArray[np.int_]
    """First row of each model."""
    group: NDArray[np.int_]
    features: Array
    outer: Array
    """[n, k * k] products of the features."""
    points: Array
    weight: Array
    transform: Array
    """[m + k, p] from the penalised parameters to the models' log-odds and the features' weights."""
    penalty: float


def _problem(battles: Battles, features: Array, first: bool) -> _Problem:
    order = np.argsort(battles.model, kind="stable")
    group = battles.model[order]
    present, starts, group = np.unique(group, return_index=True, return_inverse=True)
    m, k = len(present), features.shape[1]
    if first:
        # Rating of the model minus that of the baseline, whose column is the first.
        transform = np.zeros((m + k, 1 + m + k))
        transform[:m, 0] = -math.log(BASE)
        transform[:m, 1 : 1 + m] = math.log(BASE) * np.eye(m)
        transform[m:, 1 + m :] = np.eye(k)
    else:
        transform = np.eye(m + k)
    rows = features[order]
    outer = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), k * k)
    weight = battles.weight[order] * (2 if first else 1)
    return _Problem(order, starts, group, rows, outer, battles.points[order], weight, transform, 1.0 if first else _RIDGE)


def _solve(problem: _Problem, multiplicity: Array, start: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """(log-odds [r, m], feature weights [r, k]) by Newton's method for r weightings [r, n] of the rows at once.

    Rows that do not converge, and models whose rows all have weight 0, are NaN.
    """
    p, k, m = problem, problem.features.shape[1], len(problem.starts)
    weights = multiplicity * p.weight
    begin = np.zeros(m + k) if start is None else np.concatenate(start)
    # From the log-odds and weights to start from, back to the penalised parameters (least squares).
    parameters = np.tile(np.linalg.lstsq(p.transform, begin, rcond=None)[0], (len(weights), 1))
    going = np.arange(len(weights))
    for _ in range(_ITERATIONS):
        step = _step(p, weights[going], parameters[going])
        # Far from the solution a full step may overshoot.
        step /= np.maximum(1, np.abs(step).max(axis=1, keepdims=True) / 5)
        parameters[going] -= step
        going = going[np.abs(step).max(axis=1) >= _TOLERANCE]
        if not len(going):
            break
    parameters[going] = np.nan
    reduced = parameters @ p.transform.T
    empty = np.add.reduceat(weights, p.starts, axis=1) == 0
    return np.where(empty, np.nan, reduced[:, :m]), reduced[:, m:]


def _step(p: _Problem, weights: Array, parameters: Array) -> Array:
    """Newton's step [r, p] at `parameters` [r, p] under `weights` [r, n]."""
    count, k, m = len(weights), p.features.shape[1], len(p.starts)
    reduced = parameters @ p.transform.T
    eta = reduced[:, p.group] + reduced[:, m:] @ p.features.T
    expected = 1 / (1 + np.exp(-np.clip(eta, -500, 500)))
    residual = weights * (expected - p.points)
    curvature = weights * expected * (1 - expected)
    gradient = np.concatenate([np.add.reduceat(residual, p.starts, axis=1), residual @ p.features], axis=1)
    hessian = np.zeros((count, m + k, m + k))
    hessian[:, np.arange(m), np.arange(m)] = np.add.reduceat(curvature, p.starts, axis=1)
    for j in range(k):
        cross = np.add.reduceat(curvature * p.features[:, j], p.starts, axis=1)
        hessian[:, :m, m + j] = hessian[:, m + j, :m] = cross
    hessian[:, m:, m:] = (curvature @ p.outer).reshape(count, k, k)
    gradient = gradient @ p.transform + p.penalty * parameters
    hessian = p.transform.T @ hessian @ p.transform + p.penalty * np.eye(p.transform.shape[1])
    return np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]


def _bootstrap(problem: _Problem, battles: Battles, resamples: int, seed: int, start: tuple[Array, Array]) -> tuple[Array, Array]:
    """`_solve` on resampled prompts: ([resamples, m], [resamples, k])."""
    _, prompt = np.unique(battles.prompt, return_inverse=True)
    prompts = int(prompt.max()) + 1
    prompt = prompt[problem.order]
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(prompt))
    parts = []
    for done in range(0, resamples, chunk):
        times = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(chunk, resamples - done))
        parts.append(_solve(problem, times[:, prompt].astype(float), start))
    return np.concatenate([theta for theta, _ in parts]), np.concatenate([c for _, c in parts])


def _estimates(log_odds: Array, drawn: Array, prompts: int) -> Estimates:
    """Percentages of log-odds [m], with the ends and standard deviation of their draws [r, m] over resampled prompts."""
    value = 100 / (1 + np.exp(-log_odds))
    draws = 100 / (1 + np.exp(-drawn))
    low, high, error = np.full((3, len(value)), np.nan)
    for index in range(len(value)):
        column = draws[:, index][np.isfinite(draws[:, index])]
        if len(column) > 1 and np.ptp(column) > 0:
            low[index], high[index] = bca_ends(column, float(value[index]), prompts)
            error[index] = column.std(ddof=1)
    return Estimates(value, low, high, error)
