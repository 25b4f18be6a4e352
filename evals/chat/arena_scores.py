"""Arena-Hard's arithmetic: labels to points, games to scores with intervals; of v0.1 and v2.0, of runs and of saved files.

Reference: lmarena/arena-hard-auto, `show_result.py` of v0.1 and of v2.0. Points are the model's share of a game, 0, 0.5 or 1;
a strong verdict counts for STRONG rows.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evals.benchmark import ScoreRow
from evals.chat.style_control import Battles, Estimates, Fit, Version, differences, fit
from evals.closed_form import failure_bounds
from evals.statistics import mean_interval

STRONG = 3
"""Rows that a strong verdict counts for (`show_result.py`, WEIGHT)."""

# Points of assistant A for each label. v2.0 also takes the mirrored spellings (`label_to_score`).
_POINTS_OF_A = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
_MIRRORED = {"A<<B": 0.0, "A<B": 0.0, "B=A": 0.5, "B<A": 1.0, "B<<A": 1.0}

MIN_PROMPTS = 50
"""Prompts below which a style-controlled score is not given: five parameters on a handful of games mean nothing."""


@dataclass(frozen=True)
class Game:
    """One judgment of one prompt, or its failure."""

    prompt: str
    game: int
    """1: the model is assistant B; 2: it is A."""
    points: float | None
    """None: no verdict."""
    weight: int = 1
    sample: int = 0
    """Which of several answers to the prompt, or rows of a file."""


def points(label: str, game: int, version: Version = "v0.1") -> tuple[float, int] | None:
    """(the model's points, weight) of a label; the model is B in game 1 and A in game 2. None for an unknown label."""
    known = _POINTS_OF_A if version == "v0.1" else _POINTS_OF_A | _MIRRORED
    if label not in known:
        return None
    of_a = known[label]
    return (of_a if game == 2 else 1 - of_a), (STRONG if ">>" in label or "<<" in label else 1)


def counted(games: Sequence[Game], version: Version) -> list[Game]:
    """The games that enter the score. v2.0 leaves out a prompt of which either game failed (`load_judgments`), so that what
    enters is always judged in both positions; v0.1 takes every game by itself."""
    if version == "v0.1":
        return [game for game in games if game.points is not None]
    broken = {(game.prompt, game.sample) for game in games if game.points is None}
    return [game for game in games if (game.prompt, game.sample) not in broken]


def score_interval_by_battle(values: ArrayLike, weights: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """v0.1's published interval: 100 resamples of weighted battle rows, 2.5 and 97.5 percentiles, in per cent.

    Too narrow, since it treats copied rows and both games of a prompt as independent; kept to compare with published ones.
    """
    low, high = np.percentile(_battle_means(values, weights, seed), [2.5, 97.5])
    return float(low), float(high)


def score_by_battle_v2(values: ArrayLike, weights: ArrayLike, seed: int = 0) -> tuple[float, float, float]:
    """v2.0's published (score, low, high): mean, 5 and 95 percentiles of the means of 100 resamples of battle rows, in per
    cent. Upstream draws without a seed and prints one decimal."""
    means = _battle_means(values, weights, seed)
    low, high = np.percentile(means, [5, 95])
    return float(means.mean()), float(low), float(high)


def _battle_means(values: ArrayLike, weights: ArrayLike, seed: int) -> np.ndarray:
    rows = np.repeat(np.asarray(values, dtype=float), np.asarray(weights, dtype=int))
    return 100 * np.random.default_rng(seed).choice(rows, size=(100, len(rows))).mean(axis=1)


def score_rows(
    games: Sequence[Game],
    version: Version,
    *,
    suffix: str = "",
    headline: bool = True,
    rule: str = "(wins + ties/2) / battles",
    labels: bool = True,
) -> list[ScoreRow]:
    """`score` with an interval by prompt, and beside it `score_by_battle`, the published estimate; both with `suffix`.

    With one baseline v0.1's Bradley-Terry score equals (wins + ties / 2) / battles, and v2.0's is that mean by definition.
    Bounds give every failed game to one side by a strong verdict, and take in the games that v2.0 leaves out. `labels`
    False: points are probabilities (a reward model), which have no strong form and no published counterpart.
    """
    used, judged = counted(games, version), [game for game in games if game.points is not None]
    failed = len(games) - len(judged)
    if not used:
        return [ScoreRow(f"score{suffix}", None, None, None, "no verdicts", 0, failed, 0.0, 100.0, headline)]
    values = np.array([game.points for game in used], dtype=float)
    weights = np.array([game.weight for game in used])
    interval = mean_interval(100 * values, [game.prompt for game in used], weights, support=(0, 100))
    total, mass = 100 * sum(game.points * game.weight for game in judged), sum(game.weight for game in judged)
    worst, best = failure_bounds(total, mass, failed * (STRONG if labels else 1), 0, 100)
    left_out = f"; {len(judged) - len(used)} games left out whose other game failed" if len(used) < len(judged) else ""
    common = {"n": len(used), "n_failed": failed, "worst": worst, "best": best}
    method = f"{rule}; {interval.method}{left_out}"
    rows = [
        ScoreRow(
            f"score{suffix}",
            interval.value,
            interval.low,
            interval.high,
            method,
            headline=headline,
            stderr=interval.stderr,
            **common,
        )
    ]
    if labels and version == "v0.1":
        low, high = score_interval_by_battle(values, weights)
        method = "as published: 100 resamples of battles, too narrow"
        rows.append(ScoreRow(f"score_by_battle{suffix}", interval.value, low, high, method, **common))
    elif labels:
        value, low, high = score_by_battle_v2(values, weights)
        method = "as published: mean, 5 and 95 percentiles of 100 resamples of battles; a 90 % interval, too narrow"
        rows.append(ScoreRow(f"score_by_battle{suffix}", value, low, high, method, **common))
    return rows


Styles = Mapping[tuple[str, int], Sequence[float]]
"""(prompt, sample) -> FEATURES of the answer."""


def style_battles(models: Sequence[tuple[Sequence[Game], Styles, Styles]], version: Version) -> Battles:
    """The battles of several models in the order given: (games, styles of the model's answers, of the baseline's)."""
    place: dict[str, int] = {}
    columns: dict[str, list[Any]] = defaultdict(list)
    for index, (games, ours, theirs) in enumerate(models):
        for game in counted(games, version):
            columns["model"].append(index)
            columns["prompt"].append(place.setdefault(game.prompt, len(place)))
            columns["points"].append(game.points)
            columns["weight"].append(game.weight)
            columns["ours"].append(ours[game.prompt, game.sample])
            columns["theirs"].append(theirs[game.prompt, game.sample])
    ours, theirs = (np.array(columns[name], dtype=float).reshape(-1, 4) for name in ("ours", "theirs"))
    return Battles(
        np.array(columns["model"], dtype=int),
        np.array(columns["prompt"], dtype=int),
        np.array(columns["points"], dtype=float),
        np.array(columns["weight"], dtype=float),
        differences(ours, theirs, version),
    )


def style_rows(
    battles: Battles, version: Version, control: str, unit: str, n_failed: Sequence[int], suffix: str = ""
) -> tuple[list[list[ScoreRow]], dict[str, Any]]:
    """(rows of each model, statistics) of a joint fit: `style_controlled_score`, the reference's number, at the battles' mean
    style difference, and `equal_style_score`, where both answers have the same style.

    Where the outcomes admit no fit, the rows have no value and say so.
    """
    counts = [int((battles.model == index).sum()) for index in range(len(n_failed))]
    names = (f"style_controlled_score{suffix}", f"equal_style_score{suffix}")
    try:
        found = fit(battles, version, control)
    except ValueError as error:
        rows = [
            [ScoreRow(name, None, None, None, f"no fit: {error}", n, failed) for name in names]
            for n, failed in zip(counts, n_failed, strict=True)
        ]
        return rows, {"control": control, "no_fit": str(error)}
    company = "this model alone" if len(n_failed) == 1 else f"{len(n_failed)} models jointly"
    method = f"style control ({control}, length in {unit}) as of {version}, fitted on {company}"
    tail = f"question bootstrap, {found.resamples} refits"
    rows = []
    for index, (n, failed) in enumerate(zip(counts, n_failed, strict=True)):
        rows.append(
            [
                _estimate(names[0], found.controlled, index, f"{method}, at their mean style difference; {tail}", n, failed),
                _estimate(names[1], found.equal, index, f"{method}, where both answers are alike in style; {tail}", n, failed),
            ]
        )
    return rows, _style_statistics(found, control, unit, len(n_failed))


def _estimate(name: str, found: Estimates, index: int, method: str, n: int, failed: int) -> ScoreRow:
    numbers = [float(column[index]) for column in (found.value, found.low, found.high, found.stderr)]
    value, low, high, error = (number if np.isfinite(number) else None for number in numbers)
    # Every refit the same: nothing was estimated, least of all certainty.
    if low == high:
        low = high = error = None
    return ScoreRow(name, value, low, high, method, n, failed, stderr=error)


def _style_statistics(found: Fit, control: str, unit: str, models: int) -> dict[str, Any]:
    return {
        "control": control,
        "length_unit": unit,
        "models": models,
        "coefficients": found.coefficients,
        "mean_difference": found.mean_difference,
    }


def breakdown(games: Sequence[Game], of: Mapping[str, str], version: Version) -> dict[str, dict[str, float]]:
    """Category -> {"score", "prompts", "games", "failed"}, per cent, in the order of appearance; `of`: prompt -> category."""
    parts: dict[str, list[Game]] = defaultdict(list)
    for game in games:
        parts[of[game.prompt]].append(game)
    found = {}
    for name, part in parts.items():
        used = counted(part, version)
        mass = sum(game.weight for game in used)
        score = 100 * sum(game.points * game.weight for game in used) / mass if mass else None
        failed = sum(game.points is None for game in part)
        found[name] = {"score": score, "prompts": len({g.prompt for g in used}), "games": len(used), "failed": failed}
    return found


def label_counts(labelled: Sequence[tuple[int, str]]) -> dict[str, dict[str, int]]:
    """ "game 1" (the model is B) and "game 2" -> how often each label was given."""
    return {f"game {number}": dict(Counter(label for game, label in labelled if game == number)) for number in (1, 2)}
