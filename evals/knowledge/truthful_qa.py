"""TruthfulQA, multiple choice (arXiv 2109.07958): does the model find true answers more likely than common falsehoods?

Data in the format of sylinrl/TruthfulQA `mc_task.json`. Its versions give different numbers, so they are variants:
`official` is v0, the 817 questions of the hub and of lm-evaluation-harness; `2025` the 790 of January 2025, which also pair
the best answer with the best incorrect one (mc0). The context is that of lm-evaluation-harness (its six-question primer,
read from the installed package), without a chat template unless the recipe says so, as published numbers are.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import MissingInput
from evals.benchmark import Benchmark, Question, ScoreRow, read_text, require_asset, sample
from evals.knowledge.lm_tasks import package_tasks
from evals.likelihood import Logprobs, likelihood_settings
from evals.scoring import percentage

_TARGETS = ("mc0", "mc1", "mc2")


class TruthfulQA(Benchmark):
    """mc1: is the gold choice the likeliest; mc2: share of the probability that the true choices hold.

    mc0, where the data have it: is the best answer likelier than the best incorrect one.
    """

    name = "truthful_qa"
    kind = "likelihood"
    verdict = "likelihood"
    assets = {"starter": ("choices",), "official": ("choices",), "2025": ("choices",)}
    headline = "mc2"
    identity = {"primer": "truthfulqa_mc1 of lm-eval"}

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        rows = read_choices(require_asset(files, "choices", self.name))
        questions = [
            Question(str(i), "", (row["question"],), {t: row[f"{t}_targets"] for t in _TARGETS if f"{t}_targets" in row})
            for i, row in enumerate(rows)
        ]
        return sample(questions, limit, sample_seed)

    def answer_settings(self, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
        return super().answer_settings(entry, stage_settings) | likelihood_settings(entry, stage_settings)

    def contexts(self, question: Question) -> list[str]:
        """The primer, the question, and "A:"."""
        return [primed(question.turns[0])]

    def choices(self, question: Question) -> list[str]:
        """Choices of MC2, then those of MC1 and MC0 that are not among them (none in v0): each is scored once."""
        data = question.data
        return list(data["mc2"] | data["mc1"] | data.get("mc0", {}))

    def values(self, question: Question, logprobs: Sequence[Logprobs]) -> dict[str, float]:
        """{"mc1": 0 or 1, "mc2": in [0, 1]}, and "mc0" where there is one."""
        (sums,) = logprobs
        found = {"mc2": mc2(question.data["mc2"], sums), "mc1": mc1(question.data["mc1"], sums)}
        return found | ({"mc0": mc1(question.data["mc0"], sums)} if "mc0" in question.data else {})

    def scores(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> list[ScoreRow]:
        """mc1, mc2 and, where there is one, mc0, in percent; and what no knowledge at all would score."""
        found = [values[question.id] for question in questions]
        rows = [
            percentage("mc2", [v and v["mc2"] for v in found], headline=True),
            percentage("mc1", [v and v["mc1"] for v in found], proportion=True),
        ]
        if questions and "mc0" in questions[0].data:
            rows.append(percentage("mc0", [v and v["mc0"] for v in found], proportion=True))
        return [*rows, *baseline_rows(baselines(questions), len(questions))]

    def statistics(self, questions: list[Question]) -> dict[str, Any]:
        return {"baselines": baselines(questions)}


def read_choices(path: Path) -> list[dict[str, Any]]:
    """Rows of `mc_task.json`, plain or .gz. Raises MissingInput for a file that is something else."""
    try:
        rows = json.loads(read_text(path))
    except ValueError as error:
        raise MissingInput(f"{path} is not valid JSON ({error}); fetch it again.") from error
    if not isinstance(rows, list) or not all(
        isinstance(r, dict) and {"question", "mc1_targets", "mc2_targets"} <= r.keys() for r in rows
    ):
        raise MissingInput(f"{path} is not TruthfulQA's mc_task.json: its rows need question, mc1_targets and mc2_targets.")
    return rows


def primed(question: str) -> str:
    """lm-eval's context of `truthfulqa_mc1`: primer, question, "A:", without a space at the end."""
    return _template("truthfulqa_mc1").render(question=question)


def primed_open(question: str) -> str:
    """lm-eval's context of `truthfulqa_gen`: primer and question; the model itself begins with "A:"."""
    return _template("truthfulqa_gen").render(question=question)


def mc1(targets: Mapping[str, int], logprobs: Mapping[str, float]) -> float:
    """1 if the first choice, the gold, has the largest summed log-probability; a tie goes to it (lm-eval's argmax)."""
    return float(np.argmax([logprobs[choice] for choice in targets]) == 0)


def mc2(targets: Mapping[str, int], logprobs: Mapping[str, float]) -> float:
    """Normalised probability mass of the true choices, without length normalisation.

    The maximum is subtracted first: exp of a long choice's sum underflows to 0, and all of them to 0/0.
    """
    sums = np.array([logprobs[choice] for choice in targets])
    mass = np.exp(sums - sums.max())
    true = np.array(list(targets.values())) == 1
    return float(mass[true].sum() / mass.sum())


def baselines(questions: list[Question]) -> dict[str, dict[str, Any]]:
    """{metric: {"value" in percent, "method"}} of guessing and of always taking the longest choice, from the questions alone.

    v0: mc1_chance 22.6, mc1_longest 40.15, mc2_chance 44.8: a model that only learned length would look good.
    """
    found = {
        "mc1_chance": (chance(questions, "mc1"), "expected score of guessing"),
        "mc1_longest": (longest(questions, "mc1"), "always the longest choice"),
        "mc2_chance": (
            float(np.mean([np.mean(list(question.data["mc2"].values())) for question in questions])),
            "score of equal log-probabilities",
        ),
    }
    if questions and "mc0" in questions[0].data:
        found["mc0_longest"] = (longest(questions, "mc0"), "always the longer choice")
    return {metric: {"value": 100 * value, "method": method} for metric, (value, method) in found.items()}


def chance(questions: list[Question], targets: str) -> float:
    """Expected share of right guesses among the choices of `targets`, of which one is right."""
    return float(np.mean([1 / len(question.data[targets]) for question in questions]))


def longest(questions: list[Question], targets: str) -> float:
    """Share of the questions whose right choice, the first, has most characters (the first of equals counts)."""
    choices = [list(question.data[targets]) for question in questions]
    return float(np.mean([max(texts, key=len) == texts[0] for texts in choices]))


def baseline_rows(found: Mapping[str, Mapping[str, Any]], count: int) -> list[ScoreRow]:
    """Baselines as scores, so that they stand beside the model's: facts about the questions, without intervals."""
    return [
        ScoreRow(metric, one["value"], None, None, f"baseline: {one['method']}", count, 0, higher_is_better=None)
        for metric, one in found.items()
    ]


@cache
def _template(task: str) -> Any:
    """lm-eval's context template of a task. Raises MissingInput when lm-eval is not installed."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    path = package_tasks() / "truthfulqa" / f"{task}.yaml"
    # The task's own tags (!function) name lm-eval's code, which is neither needed nor run here.
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    task_file = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(task_file["doc_to_text"])
