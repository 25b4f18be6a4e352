"""Held-out reward: what the run's reward models think of the policy's answers to prompts that no training saw.

The gold model, trained on pairs that the proxy never saw, is the judge of over-optimisation: proxy up while gold falls.
Values are raw Bradley-Terry rewards, comparable only between policies of one run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.benchmark import Message, Question, ScoreRow, read_jsonl, require_asset, sample
from evals.judges.judge import Judge, Key, Task, VerdictBenchmark, split_failed
from evals.statistics import mean_interval
from evals.verdict import Verdict


class HeldOutReward(VerdictBenchmark):
    """The held-out prompts of the run's data artifact: rows {"id", "source", "messages"}."""

    name = "held_out_reward"
    verdict = "reward"
    assets = {"run": ("questions",)}
    headline = "reward"
    unit = "reward"
    # What the training maximises is the expected reward under the policy itself: its own distribution, untempered.
    default_decoding = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 512}

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        """`turns` holds the last user message; earlier messages of a conversation are kept in `data`."""
        questions = [
            Question(row["id"], row["source"], (row["messages"][-1]["content"],), {"messages": row["messages"]})
            for row in read_jsonl(require_asset(files, "questions", self.name))
        ]
        return sample(questions, limit, sample_seed)

    def messages(self, question: Question, earlier_answers: list[str]) -> list[Message]:
        return list(question.data["messages"])

    def conversation(self, task: Task) -> list[Message]:
        """What the reward models score: the prompt's messages and the policy's answer."""
        return [*task.question.data["messages"], {"role": "assistant", "content": task.answer}]

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        judged, failed = split_failed(self.tasks(questions, answers, judge.kind), verdicts)
        tokens = [float(row.output_tokens) for row in answers.values()]
        length = mean_interval(tokens)
        rows = [
            ScoreRow("answer_tokens", length.value, length.low, length.high, length.method, len(tokens), 0, higher_is_better=None)
        ]
        roles = [role for role in ("gold", "proxy") if judged and f"{role}_reward" in (judged[0][1].raw or {})]
        if not roles:
            return [ScoreRow(self.headline, None, None, None, "no verdicts", 0, len(failed), headline=True), *rows]
        prompts = [task.question.id for task, _ in judged]
        for role in roles:
            interval = mean_interval([(verdict.raw or {})[f"{role}_reward"] for _, verdict in judged], prompts)
            method = f"mean {role} reward; {interval.method}"
            fields = (interval.value, interval.low, interval.high, method, len(judged), len(failed))
            rows.append(ScoreRow(f"{role}_reward", *fields))
            if role == roles[0]:
                rows.insert(0, ScoreRow(self.headline, *fields, headline=True))
        return rows
