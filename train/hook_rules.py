"""The hooks that ship: pure functions of the run's history, decided by paired tests on the same questions."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import RecipeError
from train.hook_history import PROXY, Decision, History, Record


@dataclass(frozen=True)
class PairedTest:
    """Mean of (a - b) over the questions that both answered, with its interval."""

    difference: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}], n = {self.n}"


def paired_bootstrap(
    a: Mapping[str, float], b: Mapping[str, float], seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> PairedTest:
    """Percentile bootstrap over shared questions (Efron & Tibshirani 1993, ch. 13). Raises ValueError when none are shared."""
    import numpy as np

    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ValueError("no question was answered by both")
    differences = np.array([a[question] - b[question] for question in shared])
    generator = np.random.default_rng(seed)
    # In blocks: 10,000 resamples of 10,000 questions at once would take 800 MB.
    block = max(1, 4_000_000 // len(shared))
    means = [
        differences[generator.integers(0, len(shared), (min(block, resamples - start), len(shared)))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return PairedTest(float(differences.mean()), float(low), float(high), len(shared))


@dataclass(frozen=True)
class KeepBest:
    """Track the best iterate on one benchmark; go back to it when the newest is worse by a paired test at 95 %."""

    metric: str = "held_out_reward"
    seed: int = 0

    @property
    def rule(self) -> str:
        return f"highest mean {self.metric} over the questions that all iterates answered; the earlier one on a tie"

    def after_iteration(self, history: History) -> Decision:
        evaluated = [record for record in history.records if record.per_question.get(self.metric)]
        if not evaluated:
            return Decision("continue", f"no iterate has {self.metric} values yet", rule=self.rule)
        best = best_record(evaluated, self.metric)
        told = {"best": best.checkpoint, "rule": self.rule}
        newest = history.newest
        if newest not in evaluated:
            return Decision("continue", f"iteration {newest.iteration} has no {self.metric} values", **told)
        if newest is best:
            return Decision("continue", f"iteration {newest.iteration} is the best so far on {self.metric}", **told)
        test = paired_bootstrap(newest.per_question[self.metric], best.per_question[self.metric], self.seed)
        finding = f"iteration {newest.iteration} against iteration {best.iteration} on {self.metric}: {test}"
        if test.high < 0:
            return Decision("roll_back", f"worse: {finding}", best.checkpoint, **told)
        return Decision("continue", f"not shown to be worse: {finding}", **told)


def best_record(records: list[Record], metric: str) -> Record:
    """The record with the highest mean over the questions common to all. Raises RecipeError when there are none."""
    shared = set.intersection(*(set(record.per_question[metric]) for record in records))
    if not shared:
        raise RecipeError(f"The iterates share no {metric} question; evaluate all of them on the same questions.")
    return max(records, key=lambda r: (sum(r.per_question[metric][q] for q in sorted(shared)), -r.iteration))


@dataclass(frozen=True)
class EarlyStop:
    """Stop after `patience` iterations in a row that are not shown to be better than the best iterate before them.

    Better: the 95 % interval of the paired difference on `metric` lies above 0. With few questions nothing can be shown:
    the reason gives the interval, from which a reader sees whether the run stopped for want of gain or of questions.
    """

    metric: str = "held_out_reward"
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise RecipeError(f"early_stop's patience is {self.patience}; set it to 1 or more.")

    def after_iteration(self, history: History) -> Decision:
        evaluated = [record for record in history.records if record.per_question.get(self.metric)]
        earlier, recent = evaluated[: -self.patience], evaluated[-self.patience :]
        if not earlier:
            return Decision("continue", f"{len(evaluated)} iterates have {self.metric} values: too few to stop on")
        best = best_record(earlier, self.metric)
        tests = [paired_bootstrap(r.per_question[self.metric], best.per_question[self.metric], self.seed) for r in recent]
        found = "; ".join(f"iteration {r.iteration}: {test}" for r, test in zip(recent, tests, strict=True))
        against = f"against iteration {best.iteration} on {self.metric}: {found}"
        if any(test.low > 0 for test in tests):
            return Decision("continue", f"better {against}")
        return Decision("stop", f"no evidence of improvement in {self.patience} iterations {against}")


@dataclass(frozen=True)
class OverOptimisation:
    """Act when the newest iterate gained proxy reward by moving further from the first policy, and lost what matters.

    Against the best earlier iterate on a watched metric: the mean proxy reward on the same held-out prompts is higher, the
    KL to the first policy is higher, and the metric falls by a paired test (Gao et al. 2023, arXiv 2210.10760, is the
    phenomenon). `watch`: the gold reward and any benchmarks; the tests share an error of 5 % (Bonferroni). `action`:
    roll_back (to that earlier iterate) or stop.
    """

    watch: tuple[str, ...] = ("held_out_reward",)
    action: str = "roll_back"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.watch, str) or not self.watch:
            raise RecipeError("over_optimisation's watch is a list of benchmarks, e.g. [held_out_reward, alpaca_eval].")
        if self.action not in ("roll_back", "stop"):
            raise RecipeError(f"over_optimisation's action is {self.action!r}; use roll_back or stop.")

    def after_iteration(self, history: History) -> Decision:
        newest = history.newest
        if newest.kl is None or not newest.per_question.get(PROXY):
            return Decision("continue", f"iteration {newest.iteration} has no {'KL' if newest.kl is None else 'proxy reward'}")
        found = []
        for metric in self.watch:
            earlier = [
                r for r in history.records[:-1] if r.kl is not None and r.per_question.get(metric) and r.per_question.get(PROXY)
            ]
            if not earlier or not newest.per_question.get(metric):
                found.append(f"{metric} is not there to compare")
                continue
            best = best_record(earlier, metric)
            proxy = mean_difference(newest.per_question[PROXY], best.per_question[PROXY])
            confidence = 1 - 0.05 / len(self.watch)
            test = paired_bootstrap(newest.per_question[metric], best.per_question[metric], self.seed, confidence=confidence)
            finding = (
                f"against iteration {best.iteration}: proxy reward {proxy:+.4g}, KL {newest.kl - best.kl:+.4g}, {metric} {test}"
            )
            if proxy > 0 and newest.kl > best.kl and test.high < 0:
                checkpoint = best.checkpoint if self.action == "roll_back" else None
                return Decision(self.action, f"iteration {newest.iteration} over-optimises {finding}", checkpoint)
            found.append(finding)
        return Decision("continue", f"no over-optimisation shown: {'; '.join(found)}")


@dataclass(frozen=True)
class Budget:
    """Stop before the next iteration would spend more than `gpu_hours` or `dollars`, if it costs what the last one did.

    Dollars are those of the judges, and of GPU time at `dollars_per_gpu_hour`. Everything before the loop counts as
    iteration 0, which forecasts nothing: the next one is then stopped only where the limit is reached already.
    """

    gpu_hours: float | None = None
    dollars: float | None = None
    dollars_per_gpu_hour: float = 0.0

    def __post_init__(self) -> None:
        if self.gpu_hours is None and self.dollars is None:
            raise RecipeError("The budget hook has no limit; set options.gpu_hours, options.dollars or both.")

    def after_iteration(self, history: History) -> Decision:
        limits = (("GPU-hours", self.gpu_hours, self._gpu_hours), ("dollars", self.dollars, self._dollars))
        told, stop = [], False
        for unit, limit, spent_by in limits:
            if limit is None:
                continue
            spent, newest = sum(map(spent_by, history.records)), history.newest
            following = spent_by(newest) if newest.iteration > 0 else 0.0
            stop |= spent >= limit or spent + following > limit
            told.append(f"{spent:.2f} of {limit:g} {unit} spent, the next iteration about {following:.2f}")
        return Decision("stop" if stop else "continue", "; ".join(told))

    def _gpu_hours(self, record: Record) -> float:
        return record.gpu_hours

    def _dollars(self, record: Record) -> float:
        return record.dollars + self.dollars_per_gpu_hour * record.gpu_hours


def mean_difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Mean of a - b over the questions of both. Raises RecipeError when there are none."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise RecipeError("The iterates share no held-out prompt; evaluate all of them on the same ones.")
    return sum(a[question] - b[question] for question in shared) / len(shared)
