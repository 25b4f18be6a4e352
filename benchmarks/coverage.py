"""How often the 95 % intervals hold the truth, and how often the paired test cries wolf, on simulated benchmarks.

    python -m benchmarks.coverage [--repetitions 2000] [--state FILE] [--seconds 450] [--write docs/results/coverage.md]

Each repetition draws a data set from a known distribution shaped like a benchmark's (U-shaped preferences, two weighted
games of a prompt, two rounded ratings of a question) and calls the functions that score real ones, with their 10,000
resamples. Counts are kept in --state after every 50 repetitions: the same command goes on where a killed run stopped.
Without --state nothing is kept. Needs numpy only.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.closed_form import wilson
from evals.statistics import mean_interval, paired_difference

Array = np.ndarray
Sampler = Callable[[np.random.Generator, int], tuple[Array, Array]]
"""(generator, clusters) -> (values [clusters, k], weights [clusters, k])."""

BATCH = 50
PLAIN_RESAMPLES = 2000
TRUTH_CLUSTERS = 4_000_000


def preferences(centre: float, spread: float = 5.0) -> Sampler:
    """AlpacaEval: one preference in [0, 1] a question, most of them near an end; a judge's P(M) in logits is normal."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        logits = generator.normal(centre, spread, (n, 1))
        return 1 / (1 + np.exp(-logits)), np.ones((n, 1))

    return draw


def games(centre: float, spread: float = 1.2) -> Sampler:
    """Arena-Hard: two games a prompt that agree more than chance, five labels, strong ones of weight 3."""
    value, weight = np.array([0, 0, 0.5, 1, 1]), np.array([3.0, 1, 1, 1, 3])

    def draw(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        latent = generator.normal(centre, spread, (n, 1)) + generator.normal(0, 0.8, (n, 2))
        label = np.digitize(latent, [-1.5, -0.3, 0.3, 1.5])
        return value[label], weight[label]

    return draw


def ratings(centre: float, spread: float = 2.2) -> Sampler:
    """MT-Bench: two whole ratings a question, the second lower, cut at 1 and 10; strong models crowd at 9 and 10."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        latent = generator.normal(centre, spread, (n, 1)) + generator.normal(0, 1.3, (n, 2)) - [0, 0.8]
        return np.clip(np.round(latent), 1, 10), np.ones((n, 2))

    return draw


def successes(centre: float, spread: float) -> Sampler:
    """HumanEval: one 0 or 1 a problem, solved where the model's margin over the problem's difficulty is positive."""

    def draw(generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        return (generator.normal(centre, spread, (n, 1)) > 0).astype(float), np.ones((n, 1))

    return draw


@dataclass(frozen=True)
class Coverage:
    """One interval to check."""

    name: str
    clusters: int
    sampler: Sampler
    support: tuple[float, float]

    def prepare(self) -> float:
        return true_mean(self.sampler)

    def repeat(self, generator: np.random.Generator, truth: float) -> dict[str, float]:
        values, weights = self.sampler(generator, self.clusters)
        labels = np.repeat(np.arange(self.clusters), values.shape[1])
        found = mean_interval(values.ravel(), labels, weights.ravel(), support=self.support)
        low, high = plain_percentiles(values, weights, generator)
        assert found.low is not None and found.high is not None
        return {
            "below": float(truth < found.low),
            "above": float(truth > found.high),
            "width": found.high - found.low,
            "plain": float(low <= truth <= high),
        }


@dataclass(frozen=True)
class FalseAlarm:
    """One paired test between two models of equal mean; the second one's answers vary more."""

    name: str
    clusters: int
    family: Callable[[float, float], Sampler]
    centre: float
    spread: float

    def prepare(self) -> float:
        """The second model's centre, such that both means are equal."""
        target = true_mean(self.family(self.centre, self.spread), weighted=False)
        low, high = self.centre - 20.0, self.centre + 20.0
        for _ in range(40):
            middle = (low + high) / 2
            mean = true_mean(self.family(middle, 1.5 * self.spread), 400_000, weighted=False)
            low, high = (middle, high) if mean < target else (low, middle)
        return (low + high) / 2

    def repeat(self, generator: np.random.Generator, centre: float) -> dict[str, float]:
        first, _ = self.family(self.centre, self.spread)(generator, self.clusters)
        second, _ = self.family(centre, 1.5 * self.spread)(generator, self.clusters)
        labels = np.repeat(np.arange(self.clusters), first.shape[1])
        found = paired_difference(first.ravel(), second.ravel(), labels)
        assert found.low is not None and found.high is not None
        return {"alarm": float(found.p <= 0.05), "outside": float(not found.low <= 0 <= found.high)}


def true_mean(sampler: Sampler, clusters: int = TRUTH_CLUSTERS, weighted: bool = True) -> float:
    """Mean of a distribution from so many clusters: its error is some hundredths of an interval's width at most."""
    generator, total, mass = np.random.default_rng(2024), 0.0, 0.0
    for _ in range(max(1, clusters // 400_000)):
        values, weights = sampler(generator, 400_000)
        weights = weights if weighted else np.ones_like(weights)
        total, mass = total + float((values * weights).sum()), mass + float(weights.sum())
    return total / mass


def plain_percentiles(values: Array, weights: Array, generator: np.random.Generator) -> tuple[float, float]:
    """The textbook percentile bootstrap over clusters, for comparison."""
    totals, masses = (values * weights).sum(1), weights.sum(1)
    drawn = generator.integers(0, len(totals), (PLAIN_RESAMPLES, len(totals)), dtype=np.uint16)
    low, high = np.percentile(totals[drawn].sum(1) / masses[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


SCENARIOS: list[Coverage | FalseAlarm] = [
    Coverage("AlpacaEval, weak model", 805, preferences(-9), (0, 1)),
    Coverage("AlpacaEval, middling model", 805, preferences(-3), (0, 1)),
    Coverage("AlpacaEval, even model", 805, preferences(0), (0, 1)),
    Coverage("Arena-Hard, weak model", 500, games(-2.5), (0, 1)),
    Coverage("Arena-Hard, middling model", 500, games(-0.8), (0, 1)),
    Coverage("Arena-Hard, even model", 500, games(0), (0, 1)),
    Coverage("MT-Bench, weak model", 80, ratings(3), (1, 10)),
    Coverage("MT-Bench, middling model", 80, ratings(7), (1, 10)),
    Coverage("MT-Bench, strong model", 80, ratings(9.5), (1, 10)),
    FalseAlarm("AlpacaEval", 805, preferences, -2, 4.0),
    FalseAlarm("Arena-Hard", 500, games, -0.8, 1.2),
    FalseAlarm("MT-Bench", 80, ratings, 7.5, 1.8),
    FalseAlarm("HumanEval", 164, successes, 0.5, 1.0),
    Coverage("AlpacaEval, weak model, sample of 64", 64, preferences(-9), (0, 1)),
    Coverage("Arena-Hard, weak model, sample of 50", 50, games(-2.5), (0, 1)),
]


def simulate(state: dict[str, dict[str, float]], repetitions: int, until: float, save: Callable[[], None]) -> bool:
    """Add repetitions to every scenario's sums until all have so many (True) or the time is up."""
    for number, scenario in enumerate(SCENARIOS):
        key = f"{type(scenario).__name__}: {scenario.name}"
        sums = state.setdefault(key, {"repetitions": 0})
        if "truth" not in sums:
            sums["truth"] = scenario.prepare()
        while sums["repetitions"] < repetitions:
            if time.monotonic() > until:
                return False
            for repetition in range(int(sums["repetitions"]), min(repetitions, int(sums["repetitions"]) + BATCH)):
                for name, value in scenario.repeat(np.random.default_rng([number, repetition]), sums["truth"]).items():
                    sums[name] = sums.get(name, 0.0) + value
                sums["repetitions"] += 1
            save()
    return True


def wilson_coverage(probability: float, n: int = 164) -> float:
    """Exact coverage of the Wilson interval: the binomial probabilities of all counts whose interval holds the truth."""
    covered = 0.0
    for k in range(n + 1):
        low, high = wilson(k, n)
        if low <= probability <= high:
            log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            covered += math.exp(log + k * math.log(probability) + (n - k) * math.log1p(-probability))
    return covered


def report(state: dict[str, dict[str, float]]) -> str:
    """Markdown of the sums."""

    def percent(hits: float, n: float) -> str:
        share = hits / n
        return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / n):.1f}"

    lines = [
        "# How often the intervals and tests are right",
        "",
        "Made by `python -m benchmarks.coverage --write docs/results/coverage.md` "
        f"({os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}).",
        "Simulated data sets of the benchmarks' sizes and shapes, scored by `evals.statistics` as real ones are, 10,000",
        "resamples each. ± is the Monte-Carlo standard error of the simulation. The last two rows are a known limit: a model",
        "that wins almost never, on a small sample, shows too few wins for any bootstrap to know their spread.",
        "",
        "## 95 % intervals (`mean_interval`)",
        "",
        "| data | clusters | true mean | repetitions | covered, % | truth below, % | truth above, % | mean width "
        "| plain percentile bootstrap, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    alarms = []
    for scenario in SCENARIOS:
        sums = state.get(f"{type(scenario).__name__}: {scenario.name}", {"repetitions": 0})
        n = sums["repetitions"]
        if not n:
            continue
        if isinstance(scenario, Coverage):
            below, above = sums["below"], sums["above"]
            cells = (scenario.name, scenario.clusters, f"{sums['truth']:.4f}", int(n), percent(n - below - above, n))
            cells += (f"{100 * below / n:.1f}", f"{100 * above / n:.1f}", f"{sums['width'] / n:.4f}", percent(sums["plain"], n))
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        else:
            cells = (scenario.name, scenario.clusters, int(n), percent(sums["alarm"], n), percent(sums["outside"], n))
            alarms.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "## Paired test between two models of equal mean, one of which varies more (`paired_difference`)",
        "",
        "| data | clusters | repetitions | p ≤ 0.05, % | interval without 0, % |",
        "|---|---|---|---|---|",
        *alarms,
        "",
        "## Wilson interval of pass@1, 164 problems (exact, not simulated)",
        "",
        "| true pass@1 | covered, % |",
        "|---|---|",
    ]
    lines += [f"| {p} | {100 * wilson_coverage(p):.1f} |" for p in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)]
    grid = [wilson_coverage(p) for p in np.linspace(0.05, 0.95, 181)]
    lines.append(f"| 0.05 to 0.95, mean | {100 * float(np.mean(grid)):.1f} |")
    lines.append(f"| 0.05 to 0.95, lowest | {100 * min(grid):.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run or go on with the simulation; print, and with --write write, the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--state", type=Path, help="JSON file of the sums so far")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--write", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    state = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}

    def save() -> None:
        if options.state:
            partial = options.state.with_suffix(".part")
            partial.write_text(json.dumps(state))
            partial.replace(options.state)

    complete = simulate(state, options.repetitions, time.monotonic() + options.seconds, save)
    text = report(state)
    print(text)
    if not complete:
        print("Not complete yet; run the same command again.")
    elif options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
