"""AlpacaEval 2: the policy's answers against a baseline's, one weighted judgment each.

Reference: alpaca_eval 0.6.6, annotator `weighted_alpaca_eval_gpt4_turbo`, whose prompt and sampling are read from the
installed package. Verdict scale: preference - 1, i.e. 0 the baseline wins, 1 the policy wins.
"""

import hashlib
import importlib.util
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core.errors import MissingInput
from evals.benchmark import Message, Question, ScoreRow, read_jsonl, require_asset, sample
from evals.chat.alpaca_eval_metrics import LC, LC_NOREG, Judged, coefficients, controllable, fit_rows, length_row, raw_rows
from evals.chat.length_control import Fit, read_difficulty, read_gamed
from evals.judges.judge import Judge, JudgedBenchmark, Key, Prompt, Reading, Reply, Task, fill, split_failed
from evals.verdict import Verdict

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
OFFICIAL_JUDGE = "gpt-4-1106-preview"
"""The gamed rows of the length-controlled fit carry this judge's length bias and serve no other."""


def is_switched(instruction: str) -> bool:
    """Whether the policy's answer is shown first (as output_1); alpaca_eval's seeded coin, seed 0."""
    return random.Random("is_switched_outputs" + instruction + "0").choices([False, True], k=1)[0]


def preference_from_logprobs(top: Mapping[str, float], switched: bool) -> float | None:
    """Preference in [1, 2] (2: the policy) from the first token's top log-probabilities; None when neither label is there.

    P(m) is normalised over "m" (output_1) and "M" (output_2); in the order shown the preference is 2 - P(m).
    """
    first, second = top.get("m", -math.inf), top.get("M", -math.inf)
    highest = max(first, second)
    if highest == -math.inf:
        return None
    total = highest + math.log(math.exp(first - highest) + math.exp(second - highest))
    shown = 2 - math.exp(first - total)
    return 3 - shown if switched else shown


@cache
def judge_template() -> tuple[list[Message], dict[str, Any], str]:
    """(messages with {instruction}, {output_1}, {output_2}; sampling parameters; sha256 of the prompt file).

    The file's ChatML markers are turned into messages before anything is filled in. Raises MissingInput without the package.
    """
    found = importlib.util.find_spec("alpaca_eval")
    if found is None or found.origin is None:
        raise MissingInput("AlpacaEval's judge prompt comes with the package alpaca-eval; run `pip install rlhf-harness[evals]`.")
    folder = Path(found.origin).parent / "evaluators_configs"
    config = yaml.safe_load((folder / ANNOTATOR / "configs.yaml").read_text())[ANNOTATOR]
    text = (folder / config["prompt_template"]).read_text()
    messages = []
    for part in text.split("<|im_start|>")[1:]:
        role, content = part.split("\n", 1)
        messages.append({"role": role.strip(), "content": content.split("<|im_end|>", 1)[0].strip()})
    wanted = ("max_tokens", "temperature", "logprobs", "top_logprobs")
    parameters = {name: config["completions_kwargs"][name] for name in wanted}
    return messages, parameters, hashlib.sha256(text.encode()).hexdigest()


class AlpacaEval(JudgedBenchmark):
    """805 instructions (official) with the outputs of gpt4_1106_preview, or the starter set in the same format."""

    name = "alpaca_eval"
    assets = {"starter": ("questions",), "official": ("questions",)}
    optional_assets = {"official": ("gamed", "difficulty")}
    headline = LC
    # The recipe's paper states no decoding. 0.7 and 2048 are what most chat models of the leaderboard used.
    default_decoding = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048}
    reward_rule = "sigmoid of reward difference to the baseline's answer"

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        """Question ids are positions in the file, which difficulty is looked up by."""
        rows = read_jsonl(require_asset(files, "questions", self.name))
        questions = [
            Question(
                str(i), row.get("dataset", ""), (row["instruction"],), {"baseline": row["output"], "generator": row["generator"]}
            )
            for i, row in enumerate(rows)
        ]
        return sample(questions, limit, sample_seed)

    def decided(self, task: Task) -> Verdict | None:
        """A tie for an answer equal to the baseline's; a failure for an empty one (alpaca_eval leaves both out of its calls)."""
        if not task.answer.strip():
            return Verdict(task.question.id, None, error="the answer is empty", raw={"rule": "empty answer"})
        if task.answer == task.question.data["baseline"]:
            return Verdict(task.question.id, 0.5, raw={"rule": "equal answers", "preference": 1.5})
        return None

    def judge_config(self, files: Mapping[str, Path]) -> dict[str, Any]:
        _, parameters, prompt_sha256 = judge_template()
        return {"annotator": ANNOTATOR, "prompt_sha256": prompt_sha256, "parameters": parameters, "parser": "logprobs of m, M"}

    def prompt(self, task: Task, files: Mapping[str, Path]) -> Prompt:
        messages, parameters, _ = judge_template()
        baseline, answer = task.question.data["baseline"], task.answer
        first, second = (answer, baseline) if is_switched(task.question.turns[0]) else (baseline, answer)
        values = {"instruction": task.question.turns[0], "output_1": first, "output_2": second}
        return Prompt([m | {"content": fill(m["content"], values)} for m in messages], parameters)

    def read(self, task: Task, replies: Sequence[Reply], prompt: Prompt) -> Reading:
        top = replies[-1].top_logprobs
        if top is None:
            return Reading(None, "the judge gave no log-probabilities; use a model and endpoint that return them")
        switched = is_switched(task.question.turns[0])
        preference = preference_from_logprobs(top, switched)
        if preference is None:
            return Reading(None, "neither m nor M is among the judge's most likely tokens", {"switched": switched})
        return Reading(preference - 1, detail={"preference": preference, "switched": switched})

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
        lengths = length_row([len(row.text) for row in answers.values()])
        judged, tasks = self._judged(questions, answers, verdicts, judge)
        if not tasks:
            return [ScoreRow("win_rate", None, None, None, "no verdicts", 0, judged.n_failed, 0.0, 100.0, True), lengths]
        controlled = [row for rows, _ in self._length_controlled(judged, tasks, judge, files) for row in rows]
        kind = self.reward_rule if judge.kind == "reward_model" else "weighted preference"
        raw = raw_rows(judged, kind, headline=not any(row.metric == self.headline for row in controlled))
        return [lengths, *raw, *controlled]

    def statistics(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
        files: Mapping[str, Path],
    ) -> dict[str, Any]:
        """{"length_controlled": {metric: weights of the fit}}; {} where nothing was fitted."""
        judged, tasks = self._judged(questions, answers, verdicts, judge)
        fits = self._length_controlled(judged, tasks, judge, files)
        return {"length_controlled": {rows[0].metric: coefficients(fit) for rows, fit in fits}} if fits else {}

    def _judged(
        self,
        questions: Sequence[Question],
        answers: Mapping[tuple[str, int, int], Any],
        verdicts: Mapping[Key, Verdict],
        judge: Judge,
    ) -> tuple[Judged, list[Task]]:
        """(what the metrics need of the judged tasks, those tasks)."""
        pairs, failed = split_failed(self.tasks(questions, answers, judge.kind), verdicts)
        tasks = [task for task, _ in pairs]
        columns = (
            [verdict.value for _, verdict in pairs],
            [len(task.question.data["baseline"]) for task in tasks],
            [len(task.answer) for task in tasks],
        )
        return Judged(*(np.array(column, dtype=float) for column in columns), len(failed)), tasks

    def _length_controlled(
        self, judged: Judged, tasks: Sequence[Task], judge: Judge, files: Mapping[str, Path]
    ) -> list[tuple[list[ScoreRow], Fit]]:
        """The official form where the judge is the official one and its files are there; `noreg` for every judge.

        Difficulty belongs to the instruction. (Upstream looks it up by row position after failed rows are dropped.)
        """
        source = files.get("difficulty") or files.get("gamed")
        if source is None or not controllable(judged):
            return []
        difficulty = read_difficulty(source)[[int(task.question.id) for task in tasks]]
        found = []
        if "gamed" in files and judge.kind == "openai" and judge.name == OFFICIAL_JUDGE:
            found.append(fit_rows(LC, judged, difficulty, read_gamed(files["gamed"]), "stable", "", headline=True))
        return [*found, fit_rows(LC_NOREG, judged, difficulty, None, "stable", "", headline=False)]
