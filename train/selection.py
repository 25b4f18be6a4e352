"""Which two answers of a prompt make its preference pair. Pure functions on rewards and lengths.

Score of an answer = reward - length_penalty * length (RLHF Workflow, Eq. 9). The order of these scores is kept to the
end: the upstream code re-orients a pair by raw reward afterwards, which undoes the penalty whenever it mattered.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean, pstdev

from core.errors import RecipeError


@dataclass(frozen=True)
class Candidate:
    """One sampled answer. `length` is in the unit of the penalty; `truncated` means cut off at max_tokens."""

    reward: float | None
    """None: it could not be scored, and is neither chosen nor rejected."""
    length: int
    text: str
    truncated: bool = False


@dataclass(frozen=True)
class Pair:
    """Indices into the candidates. `margin` is the difference of penalised scores; None when truncation alone decides."""

    chosen: int
    rejected: int
    margin: float | None


@dataclass(frozen=True)
class Rules:
    """How to select. `truncated`: keep as any other, drop, or penalise (rank below every finished answer)."""

    rule: str = "max_min"
    length_penalty: float = 0.0
    min_margin: float = 0.0
    truncated: str = "keep"
    k: int = 1
    """Pairs a prompt that top_k makes at most."""

    def __post_init__(self) -> None:
        if self.rule not in (*RULES, TOURNAMENT):
            raise RecipeError(f"Pair rule {self.rule!r} is not known; use one of {', '.join([*RULES, TOURNAMENT])}.")
        if self.truncated not in ("keep", "drop", "penalise"):
            raise RecipeError(f"truncated is {self.truncated!r}; use keep, drop or penalise.")
        if self.min_margin < 0:
            raise RecipeError(f"min_margin is {self.min_margin}; set it to 0 or more.")
        if self.k < 1:
            raise RecipeError(f"k is {self.k}; set it to 1 or more.")


Selection = tuple[list[Pair], str | None]
"""Pairs and None, or no pairs and the name of the rule that removed the prompt."""


TOURNAMENT = "tournament"
"""The rule that takes the pair of an annotator's knockout as it is."""


def select_pairs(candidates: list[Candidate], rules: Rules, seed: int = 0, knockout: tuple[int, int] | None = None) -> Selection:
    """Pairs of one prompt, or the reason why there is none. `knockout`: the tournament's (winner, loser), if it had both.

    Reasons, in the order they are looked for: too_few_samples, unscored, truncated, duplicate_texts, tie (no_final under
    rule tournament), below_min_margin.
    """
    if len(candidates) < 2:
        return [], "too_few_samples"
    indices = [i for i, c in enumerate(candidates) if c.reward is not None]
    if len(indices) < 2:
        return [], "unscored"
    indices = [i for i in indices if rules.truncated != "drop" or not candidates[i].truncated]
    if len(indices) < 2:
        return [], "truncated"
    if rules.rule == TOURNAMENT:
        return tournament_pair(candidates, indices, rules, knockout)
    indices = first_of_each_text(candidates, indices)
    if len(indices) < 2:
        return [], "duplicate_texts"
    ranks = {i: rank(candidates[i], rules) for i in indices}
    if len(set(ranks.values())) == 1:
        return [], "tie"
    pairs = RULES[rules.rule](ranks, rules, random.Random(seed))
    return (pairs, None) if pairs else ([], "below_min_margin")


def first_of_each_text(candidates: list[Candidate], indices: list[int]) -> list[int]:
    """Without later answers of the same text."""
    first: dict[str, int] = {}
    for i in indices:
        first.setdefault(candidates[i].text.strip(), i)
    return sorted(first.values())


def tournament_pair(candidates: list[Candidate], indices: list[int], rules: Rules, knockout: tuple[int, int] | None) -> Selection:
    """The knockout's own pair: its winner beat its loser, whatever scores were fitted to the few comparisons made."""
    if knockout is None:
        return [], "no_final"
    if not set(knockout) <= set(indices):
        return [], "unscored" if any(candidates[i].reward is None for i in knockout) else "truncated"
    better, worse = (candidates[i] for i in knockout)
    if better.text.strip() == worse.text.strip():
        return [], "duplicate_texts"
    if rules.truncated == "penalise" and better.truncated != worse.truncated:
        return ([], "truncated") if better.truncated else ([Pair(*knockout, None)], None)
    margin = better.reward - worse.reward
    return ([Pair(*knockout, margin)], None) if margin >= rules.min_margin or not rules.min_margin else ([], "below_min_margin")


Rank = tuple[bool, float]
"""(counts as finished, penalised score): compared in that order."""


def rank(candidate: Candidate, rules: Rules) -> Rank:
    score = candidate.reward - rules.length_penalty * candidate.length
    return (not candidate.truncated or rules.truncated != "penalise", score)


def _pair(ranks: dict[int, Rank], better: int, worse: int, min_margin: float) -> Pair | None:
    """The pair in rank order, or None when it is a tie or its margin is too small."""
    (finished_better, score_better), (finished_worse, score_worse) = ranks[better], ranks[worse]
    if finished_better != finished_worse:
        return Pair(better, worse, None) if finished_better else None
    margin = score_better - score_worse
    return Pair(better, worse, margin) if margin > 0 and margin >= min_margin else None


def _best(ranks: dict[int, Rank]) -> int:
    return max(ranks, key=lambda i: (ranks[i], -i))


def _worst(ranks: dict[int, Rank]) -> int:
    return min(ranks, key=lambda i: (ranks[i], i))


def max_min(ranks: dict[int, Rank], rules: Rules, generator: random.Random) -> list[Pair]:
    """Best against worst."""
    pair = _pair(ranks, _best(ranks), _worst(ranks), rules.min_margin)
    return [pair] if pair else []


def max_random(ranks: dict[int, Rank], rules: Rules, generator: random.Random) -> list[Pair]:
    """Best against a random one of the rest: of those that are worse by the margin, each equally likely.

    Upstream's rule of this name is not random: the rejected answer is always the first, or the second.
    """
    best = _best(ranks)
    pairs = [pair for i in sorted(ranks) if (pair := _pair(ranks, best, i, rules.min_margin))]
    return [generator.choice(pairs)] if pairs else []


def max_low_sigma(ranks: dict[int, Rank], rules: Rules, generator: random.Random) -> list[Pair]:
    """Best against the answer just below mean - 2 sigma of the prompt's scores, or the worst where none is that low.

    With many samples the worst answer is an outlier that teaches little (Xiao et al. 2025, arXiv 2502.16825). Mean and
    population sigma are of the finished answers; cut-off ones that are penalised lie below any score.
    """
    scores = [score for finished, score in ranks.values() if finished]
    level = fmean(scores) - 2 * pstdev(scores) if scores else -math.inf
    below = {i: rank for i, rank in ranks.items() if rank <= (True, level)}
    rejected = _best(below) if below else _worst(ranks)
    pair = _pair(ranks, _best(ranks), rejected, rules.min_margin)
    return [pair] if pair else []


def top_k(ranks: dict[int, Rank], rules: Rules, generator: random.Random) -> list[Pair]:
    """The i-th best against the i-th worst for i = 1 to k: no answer is in two pairs, and k = 1 is max_min."""
    order = sorted(ranks, key=lambda i: (ranks[i], -i), reverse=True)
    worst = sorted(ranks, key=lambda i: (ranks[i], i))
    pairs, used = [], set()
    for better, worse in list(zip(order, worst, strict=True))[: rules.k]:
        pair = None if {better, worse} & used else _pair(ranks, better, worse, rules.min_margin)
        if pair is None:  # the two ends have met
            break
        used |= {better, worse}
        pairs.append(pair)
    return pairs


def all_margin(ranks: dict[int, Rank], rules: Rules, generator: random.Random) -> list[Pair]:
    """Every two answers that differ by the margin."""
    return [pair for i in sorted(ranks) for j in sorted(ranks) if (pair := _pair(ranks, i, j, rules.min_margin))]


RULES: dict[str, Callable[[dict[int, Rank], Rules, random.Random], list[Pair]]] = {
    "max_min": max_min,
    "max_random": max_random,
    "max_low_sigma": max_low_sigma,
    "top_k": top_k,
    "all_margin": all_margin,
}


def penalised_scores(candidates: list[Candidate], rules: Rules) -> list[float | None]:
    """The number that each answer was ranked by, for losses that regress on it; None without a reward.

    reward - length_penalty * length. Where cut-off answers rank below every finished one, which is no number, all of them
    are lowered by what brings the best of them down to the worst finished one: their order and distances stay.
    """
    ranks = {i: rank(c, rules) for i, c in enumerate(candidates) if c.reward is not None}
    finished = [score for counts, score in ranks.values() if counts]
    cut = [score for counts, score in ranks.values() if not counts]
    excess = max(0.0, max(cut) - min(finished)) if cut and finished else 0.0
    scores = {i: score if counts else score - excess for i, (counts, score) in ranks.items()}
    return [scores.get(i) for i in range(len(candidates))]


def win_rates(scores: Sequence[float | None], comparisons: Sequence[Sequence[float]] = ()) -> list[float | None]:
    """For each of K sampled answers, its mean probability over all K of beating one: an answer of the policy that was sampled
    from (SPPO, arXiv 2405.00675, Algorithm 1; itself counts as a draw). Those without a score have none and count for nobody.

    `comparisons`: (i, j, P(i beats j)) as a scorer that compares measured them. Where they hold every two scored answers the
    probabilities are these; else s(score - score_k), s the logistic function. That is the Bradley-Terry probability of a
    reward model's logits and of scores fitted to comparisons; of other scores (the standardised ones of an ensemble, a
    judge's grades from 1 to 10, a rule's 0 and 1) it is a convention, in which their unit decides how sure a win is.
    """
    known = [i for i, score in enumerate(scores) if score is not None]
    measured = {(i, j): p for i, j, p in comparisons} | {(j, i): 1 - p for i, j, p in comparisons}
    if not all((i, j) in measured for i, j in permutations(known, 2)):
        measured = {(i, j): _sigmoid(scores[i] - scores[j]) for i, j in permutations(known, 2)}
    rates = {i: fmean(0.5 if i == j else measured[i, j] for j in known) for i in known}
    return [rates.get(i) for i in range(len(scores))]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def zero_gap_penalty(gap: Callable[[float], float], steps: int = 40) -> float:
    """The length penalty at which `gap(penalty)`, the mean length of chosen less rejected answers, comes nearest to 0.

    0 where the gap without penalty is not positive. Bisection between 0 and the first of 1e-6, 4e-6, ... whose gap is no
    longer positive: a higher penalty prefers shorter answers, so the gap falls, in steps. The idea of tuning it to a zero
    gap is DICE's (Chen et al. 2024, arXiv 2406.09760). Raises RecipeError when no penalty closes the gap.
    """
    low, at_low = 0.0, gap(0.0)
    if at_low <= 0:
        return 0.0
    high = 1e-6
    while (at_high := gap(high)) > 0:
        low, at_low, high = high, at_high, 4 * high
        if high > 1e6:
            raise RecipeError(f"No length penalty brings the chosen answers' extra {at_low:.0f} to 0; give a number instead.")
    for _ in range(steps):
        if at_high == 0 or high - low <= 1e-9 * high:
            break
        middle = (low + high) / 2
        value = gap(middle)
        low, at_low, high, at_high = (middle, value, high, at_high) if value > 0 else (low, at_low, middle, value)
    return low if low > 0 and at_low < -at_high else high


def truncation_fault(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int], max_length: int) -> str | None:
    """Why a pair cannot be trained at `max_length` tokens of prompt and answer: prompt_fills_max_length,
    equal_after_truncation, or None."""
    room = max_length - len(prompt_ids)
    if room <= 0:
        return "prompt_fills_max_length"
    return "equal_after_truncation" if chosen_ids[:room] == rejected_ids[:room] else None
