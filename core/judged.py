"""A verdict on one question, without the registry: what a benchmark combines and the registry reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judged:
    """One verdict on one question, on the benchmark's own scale."""

    turn: int
    sample: int
    game: int
    value: float | None
    """None where it failed."""
    weight: float
    """How often it counts (`raw.weight`: Arena-Hard's strong verdicts)."""


OfQuestion = Callable[[Sequence[Judged]], float | None]
"""What the verdicts on one question say together, higher is better; None where that is nothing."""


def weighted_mean(judged: Sequence[Judged]) -> float | None:
    """Over turns, samples and games; failed verdicts are left out."""
    mass = sum(one.weight for one in judged if one.value is not None)
    return sum(one.weight * one.value for one in judged if one.value is not None) / mass if mass else None
