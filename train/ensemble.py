"""Several scorers as one: standardised, combined, and asked whether they agree. Pure functions on plain numbers.

Rewards of different scorers have different units, so each member is standardised over all samples of the iteration.
Combinations of reward models against over-optimisation: Coste et al. 2023, "Reward Model Ensembles Help Mitigate
Overoptimization" (arXiv 2310.02743, section 4): mean, worst case, and the mean less a multiple of the spread.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from core.errors import RecipeError

Rewards = Sequence[float | None]
"""One a sample; None where the scorer gave none."""


def standardise(rewards: Rewards) -> list[float | None]:
    """z-scores by the mean and population standard deviation of those that are there; all 0 where they do not vary."""
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return list(rewards)
    mean, sigma = fmean(known), pstdev(known)
    return [None if reward is None else (reward - mean) / sigma if sigma > 0 else 0.0 for reward in rewards]


def lower_confidence(values: Sequence[float]) -> float:
    """Mean less one population standard deviation over the members."""
    return fmean(values) - pstdev(values)


COMBINE: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean, "worst": min, "lower_confidence": lower_confidence}
"""name -> a sample's standardised rewards, one a member -> its reward."""


def combine(members: Sequence[Rewards], how: str) -> list[float | None]:
    """The reward of each sample from the raw rewards of all members; None where any member gave none.

    Raises RecipeError for an unknown combination.
    """
    if how not in COMBINE:
        raise RecipeError(f"combine is {how!r}; use one of {', '.join(COMBINE)}.")
    combined: list[float | None] = []
    for values in zip(*map(standardise, members), strict=True):
        known = [value for value in values if value is not None]
        combined.append(COMBINE[how](known) if len(known) == len(values) else None)
    return combined


def disagreement(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """Share of the members (one raw reward of each answer a member) that put the rejected answer above the chosen one."""
    return fmean(worse > better for better, worse in zip(chosen, rejected, strict=True))
