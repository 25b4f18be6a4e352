"""What a judge's verdicts say about the judge: position, length, ties, failures. Pure.

None of it is a score of the policy. Position: the same comparison in both orders must end the same way, and the answer
shown first must not win more often for that. Length: how often the longer answer wins, and by how much more the longer it
is; longer answers may well be better, so it is read beside other judges of the same answers, not alone.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.judges.judge import JudgedBenchmark, Key, Task
from evals.statistics import mean_interval
from evals.verdict import Verdict

Statistic = dict[str, Any]
"""{"value", "low", "high", "n"}: an estimate with its 95 % interval over the n questions that entered it."""

_RESAMPLES = 2000
# A statistic that says nothing below so many games: a slope, a difference of two halves.
_FEWEST = 8


@dataclass(frozen=True)
class Game:
    """One verdict as the judge gave it."""

    item: str
    """What is resampled together: the question."""
    comparison: tuple[Any, ...]
    """Same for the two orders of one comparison."""
    value: float
    """The policy's share of the win, 0 to 1; of ratings, the rating."""
    policy_first: bool | None
    """Whether the policy's answer was shown first; None where only one answer was shown."""
    length: int
    """Characters of the policy's answer."""
    other_length: int | None
    """Characters of the answer that it was compared with."""


def judge_bias(benchmark: Any, tasks: Sequence[Task], verdicts: Mapping[Key, Verdict], judge_kind: str) -> dict[str, Statistic]:
    """Statistics of the verdicts of one evaluation, metric -> `Statistic`; those that the design cannot give are absent.

    `flip_rate`, `first_preference`, `longer_preference`, `ties`: shares, 0 to 1. `length_slope`: change of the win share (of
    ratings, of the rating) per doubling of the answer's length against the other's (of ratings, of its own length).
    `failed`, `unread`: share of judgments without a verdict, and of those whose reply held none.
    """
    if not isinstance(benchmark, JudgedBenchmark) or not tasks:
        return {}
    pairwise = benchmark.unit == "percent"
    games = []
    for task in tasks:
        verdict = verdicts.get(task.key)
        if verdict is None or verdict.value is None or "rule" in (verdict.raw or {}):
            # A rule of the benchmark (equal answers) is not the judge's opinion.
            continue
        other = len(benchmark.compared(task)[1][-1]["content"]) if pairwise else None
        # A reward model reads one answer at a time: position does not exist.
        first = benchmark.policy_first(task, verdict) if pairwise and judge_kind != "reward_model" else None
        comparison = (task.question.id, task.turn, task.sample)
        games.append(Game(task.question.id, comparison, verdict.value, first, len(task.answer), other))
    found = {"flip_rate": flip_rate(games), "first_preference": first_preference(games)} if pairwise else {}
    if pairwise:
        found |= {"longer_preference": longer_preference(games), "ties": share([(g.item, g.value == 0.5) for g in games])}
    found |= {"length_slope": length_slope(games)} | failures(tasks, verdicts)
    return {name: statistic for name, statistic in found.items() if statistic is not None}


def flip_rate(games: Sequence[Game]) -> Statistic | None:
    """Share of comparisons whose two orders end differently (win, tie or loss of the policy); None without both orders."""
    orders: dict[tuple[Any, ...], list[Game]] = defaultdict(list)
    for game in games:
        if game.policy_first is not None:
            orders[game.comparison].append(game)
    both = [pair for pair in orders.values() if len(pair) == 2 and pair[0].policy_first != pair[1].policy_first]
    return share([(a.item, np.sign(a.value - 0.5) != np.sign(b.value - 0.5)) for a, b in both])


def first_preference(games: Sequence[Game]) -> Statistic | None:
    """Win share of the answer shown first if both answers were equally good: 0.5 + (share when first - share when second) / 2.

    Where every comparison is made in both orders it is the plain share of the first. Where a coin chose one order (AlpacaEval)
    the difference takes out how good the policy is. None unless both positions occur often enough.
    """
    placed = [game for game in games if game.policy_first is not None]
    seconds = sum(not game.policy_first for game in placed)
    if min(seconds, len(placed) - seconds) < _FEWEST / 2:
        return None
    first = np.array([game.policy_first for game in placed], dtype=float)
    values = np.array([game.value for game in placed], dtype=float)

    def estimate(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 0.5 + (sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]) / 2

    columns = np.stack([first * values, first, (1 - first) * values, 1 - first], axis=1)
    return bootstrap([game.item for game in placed], columns, estimate)


def longer_preference(games: Sequence[Game]) -> Statistic | None:
    """Win share of the longer answer, a tie half; equal lengths left out."""
    shares = [
        (g.item, g.value if g.length > g.other_length else 1 - g.value)
        for g in games
        if g.other_length is not None and g.length != g.other_length
    ]
    return share(shares)


def length_slope(games: Sequence[Game]) -> Statistic | None:
    """Least-squares slope of the value on log2(length / other length), or log2(length) of ratings, bootstrapped by question."""
    told = [g for g in games if g.length > 0 and (g.other_length is None or g.other_length > 0)]
    x = np.array([np.log2(g.length / (g.other_length or 1)) for g in told])
    y = np.array([g.value for g in told])
    if len(told) < _FEWEST or np.ptp(x) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()  # the slope stays, the sums keep their digits

    def estimate(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        n, sx, sy, sxx, sxy = sums.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sxy - sx * sy / n) / (sxx - sx * sx / n)

    return bootstrap([g.item for g in told], np.stack([np.ones_like(x), x, y, x * x, x * y], axis=1), estimate)


def failures(tasks: Sequence[Task], verdicts: Mapping[Key, Verdict]) -> dict[str, Statistic | None]:
    """`failed`: share of answered tasks without a verdict; `unread`: share whose reply came and held none."""
    asked = [task for task in tasks if not task.unanswered]
    failed, unread = [], []
    for task in asked:
        verdict = verdicts.get(task.key)
        lost = verdict is None or verdict.value is None
        failed.append((task.question.id, lost))
        unread.append((task.question.id, lost and bool(verdict and (verdict.raw or {}).get("replies"))))
    return {"failed": share(failed), "unread": share(unread)}


def share(values: Sequence[tuple[str, Any]]) -> Statistic | None:
    """Mean of (item, value in [0, 1]) with its interval over items."""
    if not values:
        return None
    interval = mean_interval([float(value) for _, value in values], [item for item, _ in values], support=(0.0, 1.0))
    n = len({item for item, _ in values})
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": n}


def bootstrap(
    items: Sequence[str], columns: NDArray[np.float64], estimate: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Statistic:
    """`estimate` (sums [m, k] -> [m]) of all rows of `columns` [n, k], with a percentile bootstrap interval over items.

    Without any spread in the draws there is no interval: the data cannot say how sure they are.
    """
    order: dict[str, int] = {}
    index = np.array([order.setdefault(item, len(order)) for item in items])
    count = len(order)
    sums = np.stack([np.bincount(index, column, count) for column in columns.T], axis=1)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    draws = estimate(times @ sums)
    draws = draws[np.isfinite(draws)]
    value = float(estimate(sums.sum(axis=0, keepdims=True))[0])
    if count < 2 or len(draws) == 0 or np.ptp(draws) < 1e-12:
        return {"value": value, "low": None, "high": None, "n": count}
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": count}
