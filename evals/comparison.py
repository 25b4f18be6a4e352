"""Is one checkpoint better than another? Paired tests on the questions that both answered, in one word each. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from evals.closed_form import adjusted_effect, holm
from evals.statistics import Difference, paired_difference

Verdict = Literal["IMPROVED", "REGRESSED", "NO EVIDENCE", "UNDERPOWERED"]

ALPHA = 0.05

RELEVANT = {"percent": 2.0, "rating": 0.2}
"""Smallest difference that one would act on, by unit: 2 points of a percentage; 0.2 of MT-Bench's 1 to 10, which its own
authors' readers treat as news. A test that could not have seen so much is called underpowered rather than negative."""


@dataclass(frozen=True)
class Comparison:
    """One benchmark's paired test of a checkpoint against another."""

    benchmark: str
    unit: str
    difference: Difference
    adjusted_p: float
    """Holm-adjusted over the benchmarks compared."""
    verdict: Verdict
    wins: int
    ties: int
    losses: int
    """Questions on which the first is better, equal, worse."""


def compare(pairs: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], units: Mapping[str, str]) -> list[Comparison]:
    """Paired tests per benchmark, p and the smallest visible effect adjusted over all of them (Holm).

    `pairs`: benchmark -> (question id -> value) of both checkpoints, in the benchmark's unit and higher is better; only
    shared questions count. `units`: benchmark -> a key of RELEVANT, or another name where nothing is known about size.
    Raises ValueError when a benchmark's checkpoints share no question.
    """
    found: list[Comparison] = []
    for benchmark, (first, second) in pairs.items():
        shared = sorted(first.keys() & second.keys())
        if not shared:
            raise ValueError(f"no question of {benchmark} was answered by both")
        a, b = [first[question] for question in shared], [second[question] for question in shared]
        difference = paired_difference(a, b)
        wins, losses = sum(x > y for x, y in zip(a, b, strict=True)), sum(x < y for x, y in zip(a, b, strict=True))
        ties = len(shared) - wins - losses
        found.append(Comparison(benchmark, units[benchmark], difference, 1.0, "NO EVIDENCE", wins, ties, losses))
    tested = []
    for one, p in zip(found, holm([one.difference.p for one in found]), strict=True):
        seen = replace(one.difference, mde=adjusted_effect(one.difference.mde, len(found)))
        tested.append(replace(one, difference=seen, adjusted_p=p, verdict=verdict(seen, p, one.unit)))
    return tested


def compare_parts(
    values: tuple[Mapping[str, float], Mapping[str, float]], part_of: Mapping[str, str], unit: str
) -> list[Comparison]:
    """`compare` of one benchmark's parts (`part_of`: question id -> part) in place of benchmarks: p adjusted over the parts.

    Parts that the two share no question of are left out.
    """
    pairs: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for question in sorted(values[0].keys() & values[1].keys() & part_of.keys()):
        for side, known in zip(pairs.setdefault(part_of[question], ({}, {})), values, strict=True):
            side[question] = known[question]
    return compare(pairs, dict.fromkeys(pairs, unit))


def verdict(difference: Difference, adjusted_p: float, unit: str) -> Verdict:
    """The word for a paired test: significant in one direction, or not; and if not, whether it could have been."""
    if adjusted_p < ALPHA and difference.value != 0:
        return "IMPROVED" if difference.value > 0 else "REGRESSED"
    relevant = RELEVANT.get(unit)
    if difference.mde is None or (relevant is not None and difference.mde > relevant):
        return "UNDERPOWERED"
    return "NO EVIDENCE"
