"""Tournaments: which answers a prompt's K answers are compared with, and what the outcomes say about each. Pure.

A tournament is a generator: it yields the comparisons it wants next, is sent their outcomes in the same order, and
returns a `Ranking`. Whoever owns the model therefore runs those of many prompts in step and fills its batches:

    rankings = play([knockout(8, seed=1), round_robin(4)], judge)     # judge: [(tournament, i, j)] -> [Outcome]

Comparisons a prompt: `round_robin` K (K - 1) / 2; `knockout` at most `knockout_comparisons(K)`, linear in K (K = 8: 28
and 11). Scores are log-odds (nats): of two answers scored a and b the first is preferred with probability
sigmoid(a - b), so they are comparable within a prompt only.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from core.errors import RecipeError

Matches = list[tuple[int, int]]
Tournament = Generator[Matches, "list[Outcome]", "Ranking"]

# Precision (1/variance, nats^-2) of the normal prior on scores. A comparison decided with certainty would send them to
# infinity; at 0.001 it ends near 7 nats, and a probability of 0.7 moves by less than 0.001.
PRIOR = 1e-3

_NEWTON_STEPS = 100
_NEWTON_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Outcome:
    """Of a comparison (i, j): the probability that i is better, and whether both orders of presentation agreed on who is."""

    probability: float
    agree: bool


@dataclass(frozen=True)
class Ranking:
    """What a tournament says about one prompt's answers."""

    scores: list[float]
    """Bradley-Terry scores (nats), one an answer, mean 0; higher is better."""
    comparisons: list[tuple[int, int, float]]
    """(i, j, P(i beats j)) for i < j, each pair of answers once."""
    consistency: float
    """Share of the comparisons whose two orders agree; 1 where there were none."""
    pair: tuple[int, int] | None = None
    """(winner, loser) of a knockout whose winner beats its loser."""


def fit_bradley_terry(k: int, comparisons: list[tuple[int, int, float]], prior: float = PRIOR) -> list[float]:
    """Scores s of `k` answers (nats, mean 0) from comparisons (i, j, P(i beats j)).

    They maximise sum of p log sigmoid(s_i - s_j) + (1 - p) log sigmoid(s_j - s_i), less prior / 2 |s|^2: Bradley and Terry
    1952 with fractional wins (0.5 is a tie), by Newton's method with halved steps. The objective is strictly concave, so
    the answer is unique whichever answers were compared; one that was never compared scores 0.
    Raises RecipeError for a prior that is not above 0.
    """
    import numpy as np

    if prior <= 0:
        raise RecipeError(f"The prior is {prior}; set it above 0, else an answer that always wins has no finite score.")
    scores = np.zeros(k)
    if not comparisons:
        return scores.tolist()
    first, second = (np.array([c[side] for c in comparisons], dtype=int) for side in (0, 1))
    share = np.array([c[2] for c in comparisons], dtype=float)

    def objective(s: Any) -> float:
        gap = s[first] - s[second]
        return float(-(share * np.logaddexp(0, -gap) + (1 - share) * np.logaddexp(0, gap)).sum() - prior / 2 * s @ s)

    value = objective(scores)
    for _ in range(_NEWTON_STEPS):
        won = np.exp(-np.logaddexp(0, scores[second] - scores[first]))
        gradient, curvature = -prior * scores, prior * np.eye(k)
        np.add.at(gradient, first, share - won)
        np.add.at(gradient, second, won - share)
        weight = won * (1 - won)
        for rows, columns, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(curvature, (rows, columns), sign * weight)
        step = np.linalg.solve(curvature, gradient)
        while (moved := objective(scores + step)) < value and np.abs(step).max() > _NEWTON_TOLERANCE:
            step /= 2
        scores, value = scores + step, moved
        if np.abs(step).max() <= _NEWTON_TOLERANCE:
            break
    return (scores - scores.mean()).tolist()


def round_robin(k: int) -> Tournament:
    """Every two of `k` answers once: K (K - 1) / 2 comparisons, all asked at once."""
    matches = [(i, j) for i in range(k) for j in range(i + 1, k)]
    outcomes = (yield matches) if matches else []
    return _ranking(k, dict(zip(matches, outcomes, strict=True)))


def knockout_comparisons(k: int) -> int:
    """The most comparisons that a knockout of `k` >= 2 answers takes: floor(K/2) + 2 (ceil(K/2) - 1) + 1, i.e. 11 for 8.

    Fewer are made where two answers meet again (the final of K = 2 is its only match): the first outcome stands.
    """
    return k // 2 + 2 * ((k + 1) // 2 - 1) + 1


def knockout(k: int, seed: int | None = None) -> Tournament:
    """Winners meet winners and losers meet losers down to one of each, who then meet (INPO, arXiv 2407.00617, section 4.1).

    Answers meet in an order shuffled by `seed` (None: as given); in a tie the first of the two counts as the winner. An odd
    answer of the first round goes on in both halves, an odd one of a later round waits for the next. `pair` is the last two,
    if the best half's survivor beats the other's; the scores are the fit to the few comparisons that were made.
    """
    order = list(range(k))
    if seed is not None:
        random.Random(seed).shuffle(order)
    played: dict[tuple[int, int], Outcome] = {}

    def beats(i: int, j: int) -> float:
        """P(i beats j) of a played match."""
        return played[i, j].probability if i < j else 1 - played[j, i].probability

    def new(*rounds: Matches) -> Matches:
        wanted = dict.fromkeys((min(match), max(match)) for matches in rounds for match in matches)
        return [match for match in wanted if match not in played]

    def meet(matches: Matches, winners: bool) -> list[int]:
        return [i if (beats(i, j) >= 0.5) == winners else j for i, j in matches]

    first, odd = _couples(order)
    if wanted := new(first):
        played |= dict(zip(wanted, (yield wanted), strict=True))
    best, worst = meet(first, True) + odd, meet(first, False) + odd
    while len(best) > 1:  # both halves are always of one size
        upper, waiting_best = _couples(best)
        lower, waiting_worst = _couples(worst)
        if wanted := new(upper, lower):
            played |= dict(zip(wanted, (yield wanted), strict=True))
        best, worst = meet(upper, True) + waiting_best, meet(lower, False) + waiting_worst
    pair = None
    if k > 1 and best[0] != worst[0]:
        if wanted := new([(best[0], worst[0])]):
            played |= dict(zip(wanted, (yield wanted), strict=True))
        pair = (best[0], worst[0]) if beats(best[0], worst[0]) > 0.5 else None
    return _ranking(k, played, pair)


TOURNAMENTS: dict[str, Callable[[int, int], Tournament]] = {
    "round_robin": lambda k, seed: round_robin(k),
    "knockout": knockout,
}
"""name -> (answers, seed) -> tournament."""


def play(tournaments: list[Tournament], judge: Callable[[list[tuple[int, int, int]]], list[Outcome]]) -> list[Ranking]:
    """Run tournaments in step: `judge` is called once a round with the matches (tournament, i, j) of all that go on."""
    rankings: dict[int, Ranking] = {}
    waiting: dict[int, Matches] = {}

    def advance(t: int, outcomes: list[Outcome] | None) -> None:
        try:
            waiting[t] = tournaments[t].send(outcomes)
        except StopIteration as finished:
            rankings[t] = finished.value

    for t in range(len(tournaments)):
        advance(t, None)
    while waiting:
        asked, waiting = waiting, {}
        outcomes = iter(judge([(t, i, j) for t, matches in asked.items() for i, j in matches]))
        for t, matches in asked.items():
            advance(t, [next(outcomes) for _ in matches])
    return [rankings[t] for t in range(len(tournaments))]


def _couples(answers: list[int]) -> tuple[Matches, list[int]]:
    """Neighbours as matches, and the odd one at the end."""
    paired = len(answers) // 2 * 2
    return list(zip(answers[0:paired:2], answers[1:paired:2], strict=True)), answers[paired:]


def _ranking(k: int, played: dict[tuple[int, int], Outcome], pair: tuple[int, int] | None = None) -> Ranking:
    comparisons = [(i, j, outcome.probability) for (i, j), outcome in sorted(played.items())]
    consistency = sum(outcome.agree for outcome in played.values()) / len(played) if played else 1.0
    return Ranking(fit_bradley_terry(k, comparisons), comparisons, consistency, pair)
