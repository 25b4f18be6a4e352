"""An LLM judge as annotator: any OpenAI-compatible endpoint grades answers, or compares them two at a time.

It uses the judges' own machinery (`evals.judges`): replicas, retries, limits, a budget in dollars, and replies that are
kept the moment they arrive, so that none is paid for twice. A sample whose judgment fails gets no reward.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import RecipeError
from core.seeds import derive_seed
from train.annotation_cache import AnnotationCache, ReplyStore
from train.chat import Message
from train.tournament import TOURNAMENTS, Outcome, Ranking, play

if TYPE_CHECKING:
    from evals.judges.judge import Prompt, Reading, Reply, Task

MODES = ("grade", "compare")
CRITERIA = (
    "whether it does what the user asks, whether what it says is true, and whether it is clear and no longer than it needs to be"
)
_GRADE = """You grade an AI assistant's answer to the last message of a conversation. Judge {criteria}. Length alone is no merit.

[Conversation]
{conversation}
[End of conversation]

[Answer to grade]
{answer}
[End of answer]

Say in a few sentences what is good and bad about the answer. Then end with a grade from 1 (useless) to 10 (could hardly be \
better) on a line of its own, in exactly this form: Grade: [[5]]"""
_COMPARE = """You compare two AI assistants' answers to the last message of a conversation. Judge {criteria}. Neither length \
nor the order in which the answers are shown is a merit.

[Conversation]
{conversation}
[End of conversation]

[Answer A]
{first}
[End of answer A]

[Answer B]
{second}
[End of answer B]

Say in a few sentences how the answers differ. Then end with your verdict on a line of its own, in exactly one of these forms: \
Verdict: [[A]] when A is better, Verdict: [[B]] when B is better, Verdict: [[tie]] when neither is."""
_READ = {
    "grade": re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]"),
    "compare": re.compile(r"\[\[\s*(A|B|tie)\s*\]\]", re.IGNORECASE),
}
_SHARES = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Judged:
    """What the judge said of one prompt's answers."""

    rewards: list[float | None]
    failed: int
    """Judgments without a verdict."""
    ranking: Ranking | None = None
    """In mode compare; None where a comparison failed."""


@dataclass
class _Asked:
    """What a session asks for: the part of a benchmark that it uses."""

    mode: str
    criteria: str
    max_tokens: int
    name: str = field(default="annotation", init=False)

    def decided(self, task: "Task") -> None:
        return None

    def prompt(self, task: "Task", files: Mapping[str, Path]) -> "Prompt":
        from evals.judges.judge import Prompt, fill

        values = {"criteria": self.criteria, "conversation": task.question.data["conversation"]}
        if self.mode == "grade":
            text = fill(_GRADE, values | {"answer": task.answer})
        else:
            first, second = task.question.data["answers"][:: 1 if task.game == 1 else -1]
            text = fill(_COMPARE, values | {"first": first, "second": second})
        return Prompt([{"role": "user", "content": text}], {"temperature": 0.0, "max_tokens": self.max_tokens})

    def read(self, task: "Task", replies: Sequence["Reply"], prompt: "Prompt") -> "Reading":
        from evals.judges.judge import Reading

        return Reading(*read_verdict(self.mode, replies[-1].text))


class JudgeScorer:
    """`settings`: mode (grade | compare), tournament (compare), criteria (None: `CRITERIA`), max_tokens, and those of
    `evals.judges.openai_judge.OpenAIJudge`; its transport's keys come in `resources`. `run`: whose spending the budget counts;
    `scorer`: see `ReplyStore`.

    Raises JudgeError for a judge without key or price.
    """

    def __init__(self, settings: Mapping[str, Any], resources: Mapping[str, Any], cache: AnnotationCache, run: str, scorer: str):
        from evals.judges.openai_judge import OpenAIJudge

        if settings["mode"] not in MODES:
            raise RecipeError(f"annotate.judge.mode is {settings['mode']!r}; use one of {', '.join(MODES)}.")
        self.mode: str = settings["mode"]
        self.tournament: str = settings.get("tournament") or "round_robin"
        self.asked = _Asked(self.mode, settings.get("criteria") or CRITERIA, settings["max_tokens"])
        self.judge = OpenAIJudge(dict(resources) | dict(settings))
        self.replies = ReplyStore(cache, run, scorer)
        self.judge.budget.spent = self.replies.spent_by_run()
        self.seed: int = settings.get("seed", 0)

    def annotate(self, prompts: list[list[Message]], answers: list[list[str]]) -> list[Judged]:
        """What the judge says of each prompt's answers. Raises JudgeError when going on is pointless or the budget is spent."""
        if self.mode == "grade":
            return self._grade(prompts, answers)
        return self._compare(prompts, answers)

    def _grade(self, prompts: list[list[Message]], answers: list[list[str]]) -> list[Judged]:
        tasks = [
            self._task(prompt, row, sample, text=text)
            for row, (prompt, texts) in enumerate(zip(prompts, answers, strict=True))
            for sample, text in enumerate(texts)
        ]
        values = self._ask(tasks)
        judged = []
        for row, texts in enumerate(answers):
            rewards = [values[str(row), 1, sample, 1] for sample in range(len(texts))]
            judged.append(Judged(rewards, sum(reward is None for reward in rewards)))
        return judged

    def _compare(self, prompts: list[list[Message]], answers: list[list[str]]) -> list[Judged]:
        """Tournaments of all prompts in step; each comparison is asked in both orders. Equal answers tie without a call."""
        failed: list[set[int]] = [set() for _ in prompts]
        failures = [0] * len(prompts)
        seeds = [derive_seed(self.seed, "tournament", str(prompt)) for prompt in prompts]
        made = [TOURNAMENTS[self.tournament](len(texts), seed) for texts, seed in zip(answers, seeds, strict=True)]

        def outcomes(matches: list[tuple[int, int, int]]) -> list[Outcome]:
            asked = [(n, m) for n, m in enumerate(matches) if answers[m[0]][m[1]] != answers[m[0]][m[2]]]
            tasks = [
                self._task(prompts[t], n, 0, both=(answers[t][i], answers[t][j]), game=game)
                for n, (t, i, j) in asked
                for game in (1, 2)
            ]
            values = self._ask(tasks)
            found = [Outcome(0.5, True)] * len(matches)
            for n, (t, i, j) in asked:
                first, second = values[str(n), 1, 0, 1], values[str(n), 1, 0, 2]
                if first is None or second is None:
                    failed[t] |= {i, j}
                    failures[t] += (first is None) + (second is None)
                    continue
                found[n] = Outcome((first + 1 - second) / 2, first == 1 - second)
            return found

        judged = []
        for row, ranking in enumerate(play(made, outcomes)):
            rewards = [None if i in failed[row] else score for i, score in enumerate(ranking.scores)]
            judged.append(Judged(rewards, failures[row], None if failed[row] else ranking))
        return judged

    def _task(
        self,
        prompt: list[Message],
        number: int,
        sample: int,
        text: str = "",
        both: tuple[str, str] | None = None,
        game: int = 1,
    ) -> "Task":
        from evals.benchmark import Question
        from evals.judges.judge import Task

        conversation = "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        data = {"conversation": conversation} | ({"answers": list(both)} if both else {})
        return Task(Question(str(number), "annotation", (prompt[-1]["content"],), data), (text,), sample, game)

    def _ask(self, tasks: list["Task"]) -> dict[tuple[str, int, int, int], float | None]:
        if not tasks:
            return {}
        verdicts: dict[tuple[str, int, int, int], float | None] = {}

        def store(rows: Sequence[Any]) -> None:
            verdicts.update({row.key: row.value for row in rows})

        # The session uses of a benchmark only what `_Asked` has.
        judge: Callable[..., int] = self.judge.judge
        judge(self.asked, {}, tasks, store, self.replies)
        return verdicts


def read_verdict(mode: str, text: str) -> tuple[float | None, str | None]:
    """(grade 1..10, or the share of the answer shown first; why there is none). The last verdict of the reply counts."""
    found = _READ[mode].findall(text)
    if not found:
        return None, "the reply holds no verdict"
    if mode == "compare":
        return _SHARES[found[-1].lower()], None
    grade = float(found[-1])
    return (grade, None) if 1 <= grade <= 10 else (None, f"the grade {found[-1]} is not between 1 and 10")
