"""Arena-Hard v0.1: the policy against a baseline on hard prompts, two games with positions swapped.

Reference: lmarena/arena-hard-auto v0.1 (`gen_judgment.py`, `show_result.py`). Verdict scale: the policy's points in a game,
0, 0.5 or 1; the stored weight is 3 for a strong verdict, else 1. A reward model judges one game, with its probability.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from core.errors import MissingInput
from evals.benchmark import Message, Question, ScoreRow, read_jsonl, read_text, require_asset, sample
from evals.chat.arena_scores import (
    MIN_PROMPTS,
    Game,
    breakdown,
    counted,
    label_counts,
    points,
    score_rows,
    style_battles,
    style_rows,
)
from evals.chat.style_control import Version, text_styles
from evals.judges.judge import Judge, JudgedBenchmark, Key, Prompt, Reading, Reply, Task, fill, split_failed
from evals.statistics import mean_interval
from evals.verdict import Verdict

FOLLOW_UPS = 2
"""Further turns that ask for the verdict after a reply without one."""

# The question that follows a reply without a verdict.
_ASK_AGAIN = "Please finish your judgment now and output your final verdict as one of the labels."


def find_label(text: str, pattern: str) -> tuple[str | None, bool]:
    """(label, whether to ask again): one label, however often repeated; different ones are a failure; none may be asked for."""
    found = {match for match in re.findall(pattern, text) if match}
    if len(found) == 1:
        return found.pop().strip("\n"), False
    return None, not found


@lru_cache(maxsize=4)
def read_config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(read_text(path))


class ArenaHard(JudgedBenchmark):
    """500 prompts with gpt-4-0314 as baseline (official), or the starter set in the same format.

    With one baseline the published Bradley-Terry score equals (wins + ties / 2) / battles, so that is what is computed.
    """

    name = "arena_hard"
    assets = {"starter": ("questions", "baseline"), "official": ("questions", "baseline", "judge_config")}
    optional_assets = {"starter": ("judge_config",)}
    headline = "score"
    default_decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 4096}
    reward_rule = "sigmoid of reward difference to the baseline's answer"
    scoring: ClassVar[Version] = "v0.1"
    """Whose arithmetic scores the games."""

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        baseline = read_baseline(require_asset(files, "baseline", self.name))
        questions = []
        for row in read_jsonl(require_asset(files, "questions", self.name)):
            if row["uid"] not in baseline:
                raise MissingInput(
                    f"The baseline of {self.name} has no answer to question {row['uid']}; run `harness data fetch {self.name}`."
                )
            data = {**baseline[row["uid"]], "cluster": row.get("cluster", "")}
            questions.append(Question(row["uid"], row.get("category", ""), (row["prompt"],), data))
        return sample(questions, limit, sample_seed)

    def games(self, kind: str) -> int:
        # A reward model scores each answer alone, so positions do not exist.
        return 1 if kind == "reward_model" else 2

    def _config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        return read_config(require_asset(files, "judge_config", self.name))

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        config = self._config(files)
        prompts = config["system_prompt"] + "\x1f" + "\x1f".join(config["prompt_template"])
        return {
            "prompt_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
            "parameters": {"temperature": config["temperature"], "max_tokens": config["max_tokens"]},
            "parser": config["regex_pattern"],
            "attempts": 1 + FOLLOW_UPS,
        }

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        config = self._config(files)
        baseline, answer = task.question.data["baseline"], task.answer
        first, second = (baseline, answer) if task.game == 1 else (answer, baseline)
        values = {"question_1": task.question.turns[0], "answer_1": first, "answer_2": second}
        messages = [{"role": "system", "content": config["system_prompt"]}]
        messages += [{"role": "user", "content": fill(template, values)} for template in config["prompt_template"]]
        parameters = {"temperature": config["temperature"], "max_tokens": config["max_tokens"]}
        return Prompt(messages, parameters, 1 + FOLLOW_UPS, config["regex_pattern"])

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        label, again = find_label("\n".join(reply.text for reply in replies), prompt.pattern)
        if label is None:
            error = "the judge gave no verdict label" if again else "the judge gave several different verdict labels"
            return Reading(None, error, ask_again=_ASK_AGAIN if again else None)
        judged = points(label, task.game, self.scoring)
        if judged is None:
            return Reading(None, f"{label!r} is not a verdict label", {"label": label})
        return Reading(judged[0], detail={"label": label, "weight": judged[1]})

    def compared(self, task: Task) -> tuple[list[Message], list[Message]]:
        user = {"role": "user", "content": task.question.turns[0]}
        answers = (task.answer, task.question.data["baseline"])
        ours, theirs = ([user, {"role": "assistant", "content": answer}] for answer in answers)
        return ours, theirs

    def value_of(self, probability: float) -> float:
        return probability

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        tokens = [float(row.output_tokens) for row in answers.values()]
        length = mean_interval(tokens)
        counts = {"n": len(tokens), "n_failed": 0, "higher_is_better": None, "stderr": length.stderr}
        rows: list[ScoreRow] = []
        labels = judge.kind != "reward_model"
        rule = {} if labels else {"rule": self.reward_rule}
        for suffix, part in self._parts(questions, answers, judge):
            games = self._games(part, verdicts)
            rows += score_rows(games, self.scoring, suffix=suffix, headline=not suffix, labels=labels, **rule)
            rows += self._style(part, games, answers, suffix)[0]
        return [*rows, ScoreRow("avg_tokens", length.value, length.low, length.high, length.method, **counts)]

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        """{"labels", "style" (by suffix-less category), and the breakdowns that the questions have: "categories",
        "subcategories", "clusters"}."""
        tasks = self.tasks(questions, answers, judge.kind)
        games = self._games(tasks, verdicts)
        found: dict[str, Any] = {}
        of = {
            "categories": {q.id: q.category for q in questions},
            "subcategories": {q.id: q.data.get("subcategory", "") for q in questions},
            "clusters": {q.id: q.data.get("cluster", "") for q in questions},
        }
        for name, group in of.items():
            if len(set(group.values())) > 1:
                found[name] = breakdown(games, group, self.scoring)
        if judge.kind != "reward_model":
            judged, _ = split_failed(tasks, verdicts)
            found["labels"] = label_counts([(task.game, (verdict.raw or {}).get("label", "")) for task, verdict in judged])
        style = {}
        for suffix, part in self._parts(questions, answers, judge):
            style[suffix.removeprefix("_") or self.headline] = self._style(part, self._games(part, verdicts), answers, suffix)[1]
        return found | {"style": style}

    def _parts(
        self, questions: Sequence[Question], answers: Mapping[tuple[str, int, int], Any], judge: Judge
    ) -> list[tuple[str, list[Task]]]:
        """(suffix of the metrics, tasks): what is scored apart."""
        tasks = self.tasks(questions, answers, judge.kind)
        if self.headline_category is None:
            return [("", tasks)]
        names = dict.fromkeys([self.headline_category, *(task.question.category for task in tasks)])
        return [
            (category_suffix(name, self.headline_category), [task for task in tasks if task.question.category == name])
            for name in names
        ]

    def _games(self, tasks: Sequence[Task], verdicts: Mapping[Key, Verdict]) -> list[Game]:
        return [_game(task, verdicts.get(task.key)) for task in tasks]

    def _style(
        self, tasks: Sequence[Task], games: Sequence[Game], answers: Mapping[tuple[str, int, int], Any], suffix: str
    ) -> tuple[list[ScoreRow], dict[str, Any]]:
        """(rows, statistics) of style control for this policy alone; no rows below MIN_PROMPTS prompts."""
        used = {(game.prompt, game.sample) for game in counted(games, self.scoring)}
        prompts = len({prompt for prompt, _ in used})
        if prompts < MIN_PROMPTS:
            return [], {"left_out": f"{prompts} judged prompts are too few; {MIN_PROMPTS} are needed"}
        compared = {(task.question.id, task.sample): task for task in tasks}
        keys = [key for key in compared if key in used]
        details = [getattr(answers[question, 1, number], "detail", None) or {} for question, number in keys]
        texts = [compared[key].answer for key in keys] + [compared[key].question.data["baseline"] for key in keys]
        stored = [detail.get("style") for detail in details] + [compared[key].question.data.get("style") for key in keys]
        found, unit = text_styles(texts, stored)
        ours, theirs = (dict(zip(keys, half, strict=True)) for half in (found[: len(keys)], found[len(keys) :]))
        failed = sum(game.points is None for game in games)
        rows, statistics = style_rows(
            style_battles([(games, ours, theirs)], self.scoring), self.scoring, "all", unit, [failed], suffix
        )
        return rows[0], statistics


def read_baseline(path: Path) -> dict[str, dict[str, Any]]:
    """Question id -> {"baseline": text, "baseline_model", "style": the row's metadata or None} of a model_answer file."""
    return {
        row["uid"]: {
            "baseline": row["messages"][-1]["content"]["answer"],
            "baseline_model": row.get("model", ""),
            "style": row.get("metadata") or row.get("conv_metadata"),
        }
        for row in read_jsonl(path)
    }


def category_suffix(category: str, headline: str | None) -> str:
    """What the names of a category's metrics end in, so that several categories never overwrite each other."""
    return "" if headline in (None, category) else f"_{category}"


def _game(task: Task, verdict: Verdict | None) -> Game:
    value = None if verdict is None else verdict.value
    weight = 1 if value is None else int((verdict.raw or {}).get("weight", 1))
    return Game(task.question.id, task.game, value, weight, task.sample)
