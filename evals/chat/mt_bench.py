"""MT-Bench: two-turn questions, each turn rated from 1 to 10.

Reference: FastChat's `llm_judge` (`common.py`, `gen_judgment.py`), single-answer grading. The score is the mean rating over
both turns. A reward model rates 1 + 9 x sigmoid(reward of the answer - reward of the reference answer), and only questions
that have one.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmark import Message, Question, ScoreRow, read_jsonl, require_asset, sample
from evals.closed_form import failure_bounds
from evals.judges.judge import Judge, JudgedBenchmark, Key, Prompt, Reading, Reply, Task, fill, split_failed
from evals.statistics import mean_interval
from evals.verdict import Verdict

LOWEST, HIGHEST = 1, 10
NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""Categories that are judged with the reference answer (FastChat `NEED_REF_CATS`)."""
PARAMETERS = {"temperature": 0, "max_tokens": 2048}

_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_BACKUP = re.compile(r"\[(\d+\.?\d*)\]")


SECOND_PATTERN, OUTSIDE = "second pattern", "outside 1..10"
"""Flags of ratings that count as upstream counts them and yet need a look."""


def find_rating(text: str) -> tuple[float, str | None] | None:
    """(rating, its flag): the first [[n]], else the first [n]; None when there is neither."""
    match = _RATING.search(text)
    backup = match is None
    match = match or _RATING_BACKUP.search(text)
    if match is None:
        return None
    rating = float(match.group(1))
    return rating, SECOND_PATTERN if backup else None if LOWEST <= rating <= HIGHEST else OUTSIDE


@lru_cache(maxsize=4)
def judge_templates(path: Path) -> dict[str, dict[str, str]]:
    """name -> row of `judge_prompts.jsonl`, with `system_prompt` and `prompt_template`."""
    return {row["name"]: row for row in read_jsonl(path)}


class MTBench(JudgedBenchmark):
    """80 questions of two turns (official), or the starter set in the same format."""

    name = "mt_bench"
    assets = {"starter": ("questions", "references"), "official": ("questions", "references", "judge_prompts")}
    optional_assets = {"starter": ("judge_prompts",)}
    headline = "score"
    unit = "rating"
    # FastChat `temperature_config`; its max_new_token is 1024.
    default_decoding = {
        "temperature": {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1, "default": 0.0},
        "top_p": 1.0,
        "max_tokens": 1024,
    }
    reward_rule = "1 + 9 x sigmoid of reward difference to the reference answer"
    other = "reference"
    """Key of the question's data with the answers that a reward model compares the policy's with."""

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        references = {
            row["question_id"]: row["choices"][0]["turns"] for row in read_jsonl(require_asset(files, "references", self.name))
        }
        questions = [
            Question(
                str(row["question_id"]), row["category"], tuple(row["turns"]), {"reference": references.get(row["question_id"])}
            )
            for row in read_jsonl(require_asset(files, "questions", self.name))
        ]
        return sample(questions, limit, sample_seed)

    def judged_turns(self, question: Question, kind: str) -> Sequence[int]:
        if kind == "reward_model" and not question.data["reference"]:
            return ()
        return range(1, len(question.turns) + 1)

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        templates = judge_templates(require_asset(files, "judge_prompts", self.name))
        used = {
            name: [templates[name]["system_prompt"], templates[name]["prompt_template"]]
            for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
        }
        return {
            "prompt_sha256": hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest(),
            "parameters": PARAMETERS,
            "parser": _RATING.pattern,
        }

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        with_reference = task.question.category in NEEDS_REFERENCE
        name = ("single-math-v1" if with_reference else "single-v1") + ("-multi-turn" if task.turn == 2 else "")
        template = judge_templates(require_asset(files, "judge_prompts", self.name))[name]
        values = {"question": task.question.turns[0], "answer": task.answer}
        for number, (question, answer) in enumerate(zip(task.question.turns, task.answers, strict=False), 1):
            values |= {f"question_{number}": question, f"answer_{number}": answer}
        if with_reference:
            values |= {f"ref_answer_{number}": text for number, text in enumerate(task.question.data["reference"], 1)}
        messages = [
            {"role": "system", "content": template["system_prompt"]},
            {"role": "user", "content": fill(template["prompt_template"], values)},
        ]
        return Prompt(messages, PARAMETERS)

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        found = find_rating(replies[-1].text)
        if found is None:
            return Reading(None, "the judge gave no rating in brackets")
        rating, flag = found
        return Reading(rating, detail={"rating": rating} | ({"flag": flag} if flag else {}))

    def compared(self, task: Task) -> tuple[list[Message], list[Message]]:
        """Each side is its own conversation: the other side's second turn answers to its own first."""
        sides = []
        for answers in (task.answers, task.question.data[self.other][: task.turn]):
            side: list[Message] = []
            for user, answer in zip(task.question.turns, answers, strict=False):
                side += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            sides.append(side)
        return sides[0], sides[1]

    def value_of(self, probability: float) -> float:
        return LOWEST + (HIGHEST - LOWEST) * probability

    def scores(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> list[ScoreRow]:
        tasks = self.tasks(questions, answers, judge.kind)
        if judge.kind == "reward_model":
            kind = "1 + 9 x sigmoid of reward difference"
            if len({task.question.id for task in tasks}) < len(questions):
                kind += ", with references"
        else:
            kind = "mean rating"
        rows = [_row(self.headline, tasks, verdicts, kind, headline=True)]
        for turn in sorted({task.turn for task in tasks}):
            rows.append(_row(f"turn{turn}", [t for t in tasks if t.turn == turn], verdicts, kind))
        for category in dict.fromkeys(task.question.category for task in tasks):
            rows.append(_row(f"category:{category}", [t for t in tasks if t.question.category == category], verdicts, kind))
        return rows

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        """{"flagged": {flag: ratings}} of the ratings that need a look."""
        flags = [(verdict.raw or {}).get("flag") for verdict in verdicts.values()]
        return {"flagged": count_flags(flags)}


def count_flags(flags: Iterable[str | None]) -> dict[str, int]:
    """How many ratings have each flag; both flags are there even at 0."""
    found = Counter(flag for flag in flags if flag)
    return {flag: found[flag] for flag in (SECOND_PATTERN, OUTSIDE)}


def _row(metric: str, tasks: Sequence[Task], verdicts: Mapping[Key, Verdict], kind: str, headline: bool = False) -> ScoreRow:
    judged, failed = split_failed(tasks, verdicts)
    ratings = [verdict.value for _, verdict in judged if verdict.value is not None]
    return rating_row(metric, ratings, [task.question.id for task, _ in judged], len(failed), kind, headline)


def rating_row(
    metric: str, ratings: Sequence[float], questions: Sequence[str], n_failed: int, kind: str, headline: bool = False
) -> ScoreRow:
    """Mean of ratings [n] with its interval over `questions` [n] and its bounds if the failed ones had been 1 or 10."""
    if not ratings:
        return ScoreRow(metric, None, None, None, "no verdicts", 0, n_failed, LOWEST, HIGHEST, headline)
    values = np.array(ratings, dtype=float)
    # A judge may leave the scale (a rating of 0 or 12 counts upstream); then it bounds nothing.
    inside = values.min() >= LOWEST and values.max() <= HIGHEST
    interval = mean_interval(values, questions, support=(LOWEST, HIGHEST) if inside else None)
    worst, best = failure_bounds(float(values.sum()), len(values), n_failed, LOWEST, HIGHEST)
    whole = (interval.low, interval.high, f"{kind}; {interval.method}", len(values), n_failed, worst, best)
    return ScoreRow(metric, interval.value, *whole, headline=headline, stderr=interval.stderr)
