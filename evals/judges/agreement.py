"""How far a judge agrees with people, with gold labels and with a published ranking. Pure.

Choices are 0 (tie), 1 (the first answer) and 2 (the second), whatever the order in which the two were shown.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evals.judges.bias import Statistic, bootstrap, share

TIE, FIRST, SECOND = 0, 1, 2
_CHOICES = 3


@dataclass(frozen=True)
class Item:
    """Two answers to one instruction, what people chose and what a judge did."""

    id: str
    category: str
    people: tuple[int, ...]
    """The choice of each annotator; one gold label is one annotator."""
    verdicts: tuple[float | None, ...]
    """The judge's win share of the second answer, 0 to 1, in the order shown and, where it was asked twice, in the other;
    None where it failed."""

    @property
    def label(self) -> int | None:
        """What most people chose; None where no choice has more than the others."""
        counts = Counter(self.people).most_common(2)
        return None if len(counts) == 2 and counts[0][1] == counts[1][1] else counts[0][0]


def choice(value: float) -> int:
    """The choice in a win share of the second answer."""
    return SECOND if value > 0.5 else FIRST if value < 0.5 else TIE


def agreement(items: Sequence[Item]) -> dict[str, Statistic]:
    """Metric -> estimate with its 95 % interval by item; metrics that the items cannot give are absent.

    Over items where people prefer one answer: `agreement` (share of games in which the judge chooses it, each order a game),
    `agreement_both_orders` (in both). Over all: `agreement_with_ties` (a judge that knows no ties is wrong on every tie),
    `kappa` (Cohen's, of games), `kappa_orders` (Cohen's, between the two orders), `flip_rate`, `first_preference` (win share of
    the answer shown first), `failed` (items without all verdicts, which enter nothing else). People among themselves:
    `people_pairwise` (two annotators, ties included), `people_ceiling` (one annotator against two others who agree on an
    answer: what a judge as good as one person reaches on `agreement`).
    """
    labelled = [item for item in items if item.label is not None]
    complete = [item for item in labelled if None not in item.verdicts and item.verdicts]
    decided = [item for item in complete if item.label != TIE]
    both = [item for item in complete if len(item.verdicts) == 2]
    found: dict[str, Statistic | None] = {
        "agreement": share([(i.id, choice(v) == i.label) for i in decided for v in i.verdicts]),
        "agreement_both_orders": share(
            [(i.id, all(choice(v) == i.label for v in i.verdicts)) for i in decided if len(i.verdicts) == 2]
        ),
        "kappa": kappa([(i.id, choice(v), i.label) for i in complete for v in i.verdicts]),
        "kappa_orders": kappa([(i.id, choice(i.verdicts[0]), choice(i.verdicts[1])) for i in both]),
        "flip_rate": share([(i.id, choice(i.verdicts[0]) != choice(i.verdicts[1])) for i in both]),
        # In the order shown the first answer is `1`; in the other, `2`.
        "first_preference": share([(i.id, v) for i in both for v in (1 - i.verdicts[0], i.verdicts[1])]),
        "failed": share([(i.id, i not in complete) for i in labelled]) if len(complete) < len(labelled) else None,
        "people_pairwise": share([(i.id, a == b) for i in items for a, b in combinations(i.people, 2)]),
        "people_ceiling": _ceiling(items),
    }
    if len(decided) < len(complete):
        found["agreement_with_ties"] = share([(i.id, choice(v) == i.label) for i in complete for v in i.verdicts])
    return {name: statistic for name, statistic in found.items() if statistic is not None}


def kappa(pairs: Sequence[tuple[str, int, int]]) -> Statistic | None:
    """Cohen's kappa (Cohen 1960) of (item, one's choice, the other's choice), bootstrapped by item."""
    if not pairs:
        return None
    cells = np.zeros((len(pairs), _CHOICES * _CHOICES))
    for row, (_, a, b) in enumerate(pairs):
        cells[row, _CHOICES * a + b] = 1
    if np.isnan(_kappa(cells.sum(axis=0, keepdims=True)))[0]:
        return None
    return bootstrap([item for item, _, _ in pairs], cells, _kappa)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, ties by average ranks. NaN where one side has no spread."""
    x, y = _ranks(np.asarray(a, dtype=float)), _ranks(np.asarray(b, dtype=float))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b (Kendall 1945). NaN where one side has no spread."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    upper = np.triu_indices(len(x), 1)
    dx, dy = (np.sign(v[:, None] - v[None, :])[upper] for v in (x, y))
    scale = np.sqrt((dx * dx).sum() * (dy * dy).sum())
    return float((dx * dy).sum() / scale) if scale > 0 else float("nan")


def rank_agreement(values: ArrayLike, published: ArrayLike, resamples: int = 2000) -> dict[str, Statistic]:
    """`spearman` and `kendall` of models' mean verdicts with a published score, n models each.

    `values` [models, questions] on one set of questions, NaN where a verdict failed; `published` [models]. The interval
    resamples the questions: it says how sure our side of the ranking is, of these models.
    """
    v, target = np.asarray(values, dtype=float), np.asarray(published, dtype=float)
    known = ~np.isnan(v)
    generator, questions = np.random.default_rng(0), v.shape[1]
    filled = np.where(known, v, 0.0)
    times = generator.multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (filled @ times.T) / (known @ times.T)
        ours = filled.sum(axis=1) / known.sum(axis=1)
    found = {}
    for name, statistic in (("spearman", spearman), ("kendall", kendall)):
        draws = np.array([statistic(means[:, i], target) for i in range(resamples) if np.isfinite(means[:, i]).all()])
        draws = draws[np.isfinite(draws)]
        value = statistic(ours, target) if np.isfinite(ours).all() else float("nan")
        if np.isfinite(value) and len(draws):
            low, high = np.percentile(draws, [2.5, 97.5])
            found[name] = {"value": value, "low": float(low), "high": float(high), "n": len(target)}
    return found


def _ceiling(items: Sequence[Item]) -> Statistic | None:
    """One annotator against the others, where these agree on an answer."""
    found = []
    for item in items:
        for i, mine in enumerate(item.people):
            others = set(item.people[:i] + item.people[i + 1 :])
            if len(item.people) > 2 and len(others) == 1 and TIE not in others:
                found.append((item.id, mine in others))
    return share(found)


def _kappa(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each row of counts [m, 9]; NaN where chance alone explains full agreement."""
    table = cells.reshape(-1, _CHOICES, _CHOICES) / cells.sum(axis=1)[:, None, None]
    observed = np.trace(table, axis1=1, axis2=2)
    expected = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isclose(expected, 1), np.nan, (observed - expected) / (1 - expected))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average ranks from 1."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
