"""What a judge is, and what a benchmark must say to be judged.

A benchmark turns its answers into `Task`s, one per judgment. A judge (an endpoint, `openai_judge`, or a reward model,
`reward_judge`) turns tasks into `Verdict`s, which are stored one by one. The benchmark turns all stored verdicts
into scores. Verdicts derive from the stored raw replies and can be derived again for nothing.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evals.benchmark import Benchmark, Message, Question, ScoreRow
from evals.verdict import Verdict

Key = tuple[str, int, int, int]
"""(question id, turn, sample, game)."""


@dataclass(frozen=True)
class Task:
    """One judgment to make."""

    question: Question
    answers: tuple[str, ...]
    """The policy's answers from turn 1 to the turn that is judged."""
    sample: int = 0
    game: int = 1
    """2: the same comparison with the positions swapped."""
    unanswered: str | None = None
    """Why there is nothing to judge; such a task fails without a call."""

    @property
    def turn(self) -> int:
        return len(self.answers)

    @property
    def answer(self) -> str:
        return self.answers[-1]

    @property
    def key(self) -> Key:
        return self.question.id, self.turn, self.sample, self.game


@dataclass(frozen=True)
class Prompt:
    """What an endpoint is asked."""

    messages: list[Message]
    parameters: dict[str, Any]
    """temperature, max_tokens, and logprobs, top_logprobs where the benchmark reads them."""
    calls: int = 1
    """At most so many: a reply without a verdict may be asked for one."""
    pattern: str = ""
    """Regular expression of the verdict, where the benchmark's own files give it."""


@dataclass(frozen=True)
class Reply:
    """What an endpoint said."""

    text: str
    finish_reason: str | None = None
    top_logprobs: dict[str, float] | None = None
    """Token -> log-probability among the first token's top list; None when the endpoint gave none."""


@dataclass(frozen=True)
class Reading:
    """What a reply means."""

    value: float | None
    error: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    """Stored beside the raw replies: label, weight, flags."""
    ask_again: str | None = None
    """A further user message that may get a verdict out of a reply without one."""


class VerdictBenchmark(Benchmark):
    """A benchmark of tasks and verdicts, whoever gives them."""

    def tasks(self, questions: Sequence[Question], answers: Mapping[tuple[str, int, int], Any], kind: str) -> list[Task]:
        """All judgments of an answer set: every question, turn, sample and game.

        `answers`: (question id, turn, sample) -> row with `text` and `finish_reason`; `kind`: openai | reward_model.
        """
        found = []
        samples: dict[str, set[int]] = {}
        for question_id, _, sample in answers:
            samples.setdefault(question_id, set()).add(sample)
        for question in questions:
            for sample in sorted(samples.get(question.id) or {0}):
                said = [answers[question.id, turn, sample] for turn in range(1, len(question.turns) + 1)]
                for turn in self.judged_turns(question, kind):
                    texts = tuple(row.text for row in said[:turn])
                    too_long = any(row.finish_reason == "prompt_too_long" for row in said[:turn])
                    unanswered = "the policy gave no answer: prompt too long for its context" if too_long else None
                    for game in range(1, self.games(kind) + 1):
                        found.append(Task(question, texts, sample, game, unanswered))
        return found

    def judged_turns(self, question: Question, kind: str) -> Sequence[int]:
        """The turns of this question that are judged."""
        return range(1, len(question.turns) + 1)

    def games(self, kind: str) -> int:
        """Judgments per answer; 2 where positions are swapped."""
        return 1

    @abstractmethod
    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: "Judge",
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        """All metrics; an absent or failed verdict of a task counts as failed. `answers` as in `tasks`."""

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: "Judge",
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        """What is no score, for `evaluation.statistics` (JSON): categories, coefficients of a fit. Arguments as in `scores`.

        The judge stage adds the key "bias": what the verdicts say of the judge (`evals.judges.bias`).
        """
        return {}

    def policy_first(self, task: Task, verdict: Verdict) -> bool | None:
        """Whether the judge saw the policy's answer before the one it is compared with; None where it saw only one.

        By default what the verdict says (`switched`), else, where positions are swapped, the second game.
        """
        switched = (verdict.raw or {}).get("switched")
        if switched is not None:
            return bool(switched)
        return task.game == 2 if self.games("openai") == 2 else None


class JudgedBenchmark(VerdictBenchmark):
    """A benchmark whose answers an endpoint or a reward model can judge."""

    verdict = "judge"
    reward_rule: str
    """How a reward model's numbers become this benchmark's verdict, in words; part of that judge's identity."""

    def decided(self, task: Task) -> Verdict | None:
        """The verdict on an answer that an endpoint is not asked about, e.g. one equal to the baseline's."""
        return None

    @abstractmethod
    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Prompt hashes, sampling and parser of an endpoint judge: its identity beside model and endpoint.

        Raises MissingInput when the official prompts are not there.
        """

    @abstractmethod
    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        """What an endpoint is asked for this task."""

    @abstractmethod
    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        """The verdict in an endpoint's replies so far."""

    @abstractmethod
    def compared(self, task: Task) -> tuple[list[Message], list[Message]]:
        """(the policy's conversation, the one it is compared with), both ending in the answer, for a reward model."""

    @abstractmethod
    def value_of(self, probability: float) -> float:
        """A reward model's probability that the policy's answer is the better one, on this benchmark's scale."""


class Judge(Protocol):
    """Who gives verdicts, for `JudgedBenchmark`s or for the kind of benchmark that its class says."""

    kind: str
    name: str
    fingerprint: str | None
    """Of its weights, where it has any; else the name identifies it."""

    def config(self, benchmark: Any, files: Mapping[str, Path]) -> dict[str, Any]:
        """What belongs to this judge's identity on that benchmark."""

    def judge(
        self,
        benchmark: Any,
        files: Mapping[str, Path],
        tasks: Sequence[Task],
        store: Callable[[list[Verdict]], None],
    ) -> int:
        """Judge every task, handing verdicts (failed ones too) to `store` as they come; returns the calls made.

        Raises JudgeError when going on is pointless.
        """


def split_failed(tasks: Sequence[Task], verdicts: Mapping[Key, Verdict]) -> tuple[list[tuple[Task, Verdict]], list[Task]]:
    """(tasks with a verdict, tasks without)."""
    judged, failed = [], []
    for task in tasks:
        verdict = verdicts.get(task.key)
        if verdict is None or verdict.value is None:
            failed.append(task)
        else:
            judged.append((task, verdict))
    return judged, failed


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put `values` into the `{name}` fields of a template in one pass.

    Unlike str.format and repeated str.replace, inserted text is never looked at again: an answer that holds
    `{output_2}` stays as it is, and other braces of the template are left alone.
    """
    names = "|".join(re.escape(name) for name in values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match.group(1)], template)
