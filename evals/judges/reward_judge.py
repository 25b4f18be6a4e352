"""Reward models as judges: free, deterministic, and not GPT-4.

`RewardModelJudge` compares: the verdict is the Bradley-Terry probability that the policy's answer beats the one it is
compared with, sigmoid(r(policy) - r(other)). `HeldOutRewardJudge` reports raw rewards of the run's own reward models.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.fingerprint import digest
from evals.benchmark import Message
from evals.held_out_reward import HeldOutReward
from evals.judges.judge import JudgedBenchmark, Task
from evals.verdict import Verdict
from train.scorers import padding_identity

# Verdicts per commit: what a crash can cost.
_BATCH = 64


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class RewardModelJudge:
    """One reward model, loaded when it is first asked. `settings`: max_length, dtype; the rest is the benchmark's."""

    kind = "reward_model"

    def __init__(self, checkpoint: Path, fingerprint: str, settings: Mapping[str, Any], resources: Mapping[str, Any]):
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.name = f"reward-model:{fingerprint[:8]}"
        self.max_length: int = settings.get("max_length") or 4096
        self.dtype: str = settings.get("dtype") or "auto"
        self.resources = dict(resources)
        self._scorer: Any = None
        self._known: dict[str, float] = {}

    def config(self, benchmark: JudgedBenchmark, files: Mapping[str, Path]) -> dict[str, Any]:
        config = {"benchmark": benchmark.name, "rule": benchmark.reward_rule}
        return config | {"max_length": self.max_length, "dtype": self.dtype} | padding_identity(self.checkpoint)

    def remember(self, raws: Iterable[Mapping[str, Any]]) -> None:
        """Take over what earlier verdicts of this same judge say of the baselines, which every checkpoint meets again."""
        self._known |= {raw["other"]: raw["other_reward"] for raw in raws if "other" in raw}

    def score(self, conversations: list[list[Message]]) -> list[float]:
        """Raw reward of each conversation."""
        if self._scorer is None:
            self._scorer = load_scorer(self.checkpoint, self.max_length, self.dtype, self.resources)
        return self._scorer.score(conversations)

    def judge(
        self,
        benchmark: JudgedBenchmark,
        files: Mapping[str, Path],
        tasks: Sequence[Task],
        store: Callable[[list[Verdict]], None],
    ) -> int:
        """See `evals.judges.judge.Judge`. Returns the number of conversations scored."""
        answered = _store_unanswered(tasks, store)
        scored = 0
        for start in range(0, len(answered), _BATCH):
            batch = answered[start : start + _BATCH]
            pairs = [benchmark.compared(task) for task in batch]
            others = {digest(theirs): theirs for _, theirs in pairs}
            unknown = [key for key in others if key not in self._known]
            rewards = self.score([ours for ours, _ in pairs] + [others[key] for key in unknown])
            self._known |= dict(zip(unknown, rewards[len(pairs) :], strict=True))
            scored += len(rewards)
            verdicts = []
            for task, (_, theirs), mine in zip(batch, pairs, rewards[: len(pairs)], strict=True):
                key = digest(theirs)
                probability = sigmoid(mine - self._known[key])
                raw = {"reward": mine, "other_reward": self._known[key], "other": key, "probability": probability}
                verdicts.append(replace(_verdict(task, benchmark.value_of(probability), raw), shown=theirs))
            store(verdicts)
        return scored


class HeldOutRewardJudge:
    """The run's reward models on its own held-out prompts. The value is the gold reward, or the proxy's without a gold one."""

    kind = "reward_model"

    def __init__(
        self,
        proxy: tuple[Path, str] | None,
        gold: tuple[Path, str] | None,
        settings: Mapping[str, Any],
        resources: Mapping[str, Any],
    ):
        """`proxy`, `gold`: (checkpoint, fingerprint); at least one."""
        models = {"proxy": proxy, "gold": gold}
        self.models = {role: model for role, model in models.items() if model is not None}
        fingerprints = {role: fingerprint for role, (_, fingerprint) in self.models.items()}
        self.fingerprint = digest(fingerprints)
        self.name = "reward-models:" + "+".join(f"{role}-{fingerprint[:8]}" for role, fingerprint in fingerprints.items())
        self.value_role = "gold" if gold is not None else "proxy"
        self.fingerprints = fingerprints
        self.max_length: int = settings.get("max_length") or 4096
        self.dtype: str = settings.get("dtype") or "auto"
        self.resources = dict(resources)

    def config(self, benchmark: HeldOutReward, files: Mapping[str, Path]) -> dict[str, Any]:
        rule = f"raw {self.value_role} reward"
        config = {"benchmark": benchmark.name, "rule": rule, "max_length": self.max_length, "dtype": self.dtype}
        padded = [role for role, (checkpoint, _) in self.models.items() if padding_identity(checkpoint)]
        return config | self.fingerprints | ({"padding_0": padded} if padded else {})

    def judge(
        self,
        benchmark: HeldOutReward,
        files: Mapping[str, Path],
        tasks: Sequence[Task],
        store: Callable[[list[Verdict]], None],
    ) -> int:
        """See `evals.judges.judge.Judge`. One model at a time is held in memory; returns the number of conversations scored."""
        answered = _store_unanswered(tasks, store)
        if not answered:
            return 0
        conversations = [benchmark.conversation(task) for task in answered]
        rewards = {}
        for role, (checkpoint, _) in self.models.items():
            rewards[role] = load_scorer(checkpoint, self.max_length, self.dtype, self.resources).score(conversations)
        verdicts = []
        for i, task in enumerate(answered):
            raw = {f"{role}_reward": values[i] for role, values in rewards.items()}
            verdicts.append(_verdict(task, raw[f"{self.value_role}_reward"], raw))
        store(verdicts)
        return len(self.models) * len(answered)


def load_scorer(checkpoint: Path, max_length: int, dtype: str, resources: Mapping[str, Any]) -> Any:
    """A Bradley-Terry scorer (`train.scorers.Scorer`) of a checkpoint."""
    from train.scorers import make_scorer

    known = {name: value for name, value in resources.items() if value is not None}
    return make_scorer("bradley_terry", checkpoint, max_length=max_length, dtype=dtype, resources=known)


def _verdict(task: Task, value: float | None, raw: dict[str, Any], error: str | None = None) -> Verdict:
    return Verdict(task.question.id, value, task.turn, task.sample, task.game, error, raw)


def _store_unanswered(tasks: Sequence[Task], store: Callable[[list[Verdict]], None]) -> list[Task]:
    """Store a failure for every task without an answer; returns the others."""
    failures = [_verdict(task, None, {"rule": "no answer"}, task.unanswered) for task in tasks if task.unanswered]
    if failures:
        store(failures)
    return [task for task in tasks if not task.unanswered]
