"""TruthfulQA, generation (arXiv 2109.07958): is an answer nearer to the true reference answers than to the false ones?

Official decoding (sylinrl/TruthfulQA): greedy, 50 tokens, until a blank line, after the primer and the question, without a
chat template; the model itself writes "A:", which is stripped before the answer is compared. lm-evaluation-harness keeps it
and allows 256 tokens: its reading of the same answer is stored beside ours, and named. Data: `TruthfulQA.csv`; the variants
are those of `evals.knowledge.truthful_qa`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import MissingInput
from evals.benchmark import Benchmark, Message, Question, ScoreRow, read_text, require_asset, sample
from evals.closed_form import failure_bounds, standard_error
from evals.knowledge.text_overlap import METRICS, SETTINGS, libraries, overlap
from evals.knowledge.truthful_qa import primed_open
from evals.scoring import percentage
from evals.statistics import mean_interval

STOP = "\n\n"
AS_LM_EVAL = "lm_eval_"
"""Prefix of the metrics of the answer as lm-eval reads it, its "A:" kept."""

NO_COMMENT = "I have no comment."
"""Always a true reference (lm_eval/tasks/truthfulqa/utils.py, `preprocess_function`)."""


class TruthfulQAGeneration(Benchmark):
    """bleu_acc: share of the answers whose BLEU is greater against a true reference than against every false one."""

    name = "truthful_qa_generation"
    verdict = "metrics"
    # The choices come first because their questions are what training data are checked against.
    assets = {"official": ("choices", "answers"), "2025": ("choices", "answers")}
    headline = "bleu_acc"
    default_decoding = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 50, "stop": [STOP]}
    identity = {"primer": "truthfulqa_gen of lm-eval"}

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        rows = read_answers(require_asset(files, "answers", self.name))
        questions = [
            Question(str(index), row["category"], (row["question"],), {"true": row["true"], "false": row["false"]})
            for index, row in enumerate(rows)
        ]
        return sample(questions, limit, sample_seed)

    def answer_settings(self, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
        chat = bool(entry.get("chat_template"))
        system = stage_settings.get("system_prompt") if chat else None
        return super().answer_settings(entry, stage_settings) | {"chat_template": chat, "system_prompt": system}

    def messages(self, question: Question, earlier_answers: list[str]) -> list[Message]:
        """One user turn of primer and question; without a chat template its text is continued as it is."""
        return [{"role": "user", "content": primed_open(question.turns[0])}]

    def decoding(self, question: Question, turn: int, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        chosen = self.default_decoding | dict(overrides or {})
        return super().decoding(question, turn, overrides) | {"stop": tuple(chosen["stop"])}

    def metrics_settings(self) -> dict[str, Any]:
        return {"strip_a": True, **SETTINGS, **libraries()}

    def measure(self, question: Question, answer: str) -> dict[str, float]:
        """`METRICS` of the stripped answer, and under `AS_LM_EVAL` of the answer as it is."""
        stripped = overlap(strip_a(answer), question.data["true"], question.data["false"])
        kept = overlap(answer, question.data["true"], question.data["false"])
        return stripped | {f"{AS_LM_EVAL}{metric}": value for metric, value in kept.items()}

    def scores(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> list[ScoreRow]:
        """Accuracies in percent, similarities 0..100, their differences -100..100."""
        found = [values[question.id] for question in questions]
        return [score_row(m, [v and v[m] for v in found], headline=m == self.headline) for m in METRICS]

    def statistics(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> dict[str, Any]:
        """lm-eval's own numbers of the same answers, on its scale (accuracies as fractions)."""
        known = [v for question in questions if (v := values[question.id]) is not None]
        return {"as_lm_eval": {m: float(np.mean([v[f"{AS_LM_EVAL}{m}"] for v in known])) for m in METRICS} if known else {}}


def score_row(metric: str, values: Sequence[float | None], *, headline: bool = False) -> ScoreRow:
    """Mean of one of `METRICS` over questions, None where one failed; accuracies in percent.

    `stderr` is lm-eval's: standard deviation over questions (ddof 1) over the root of their number.
    """
    known = [value for value in values if value is not None]
    error = standard_error(known) if known else None
    if metric.endswith("_acc"):
        row = percentage(metric, values, headline=headline, proportion=True)
        return replace(row, stderr=None if row.value is None or error is None else 100 * error)
    low, high = (0.0, 100.0) if metric.endswith("_max") else (-100.0, 100.0)
    failed = len(values) - len(known)
    worst, best = failure_bounds(sum(known), len(known), failed, low, high)
    if not known:
        return ScoreRow(metric, None, None, None, "withheld: no answer", 0, failed, worst, best)
    interval = mean_interval(known, support=(low, high))
    ends = interval.low, interval.high
    return ScoreRow(metric, interval.value, *ends, interval.method, len(known), failed, worst, best, stderr=error)


def strip_a(answer: str) -> str:
    """The answer without white space around it and without a leading "A:"."""
    return answer.strip().removeprefix("A:").strip()


def references(text: str, *, true: bool) -> list[str]:
    """A column of `TruthfulQA.csv` (answers between semicolons) -> references, each with a full stop at its end.

    lm_eval/tasks/truthfulqa/utils.py, `preprocess_function`: true ones always hold `NO_COMMENT`.
    """
    found = [f"{answer.removesuffix('.')}." for answer in map(str.strip, text.split(";")) if answer]
    return [*found, NO_COMMENT] if true and NO_COMMENT not in found else found


def read_answers(path: Path) -> list[dict[str, Any]]:
    """{"question", "category", "true", "false"} of each row of `TruthfulQA.csv`, plain or .gz, in its order.

    Raises MissingInput for a file that is something else.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(path).removeprefix("\ufeff"))))
    wanted = {"Question", "Category", "Correct Answers", "Incorrect Answers"}
    if not rows or not wanted <= rows[0].keys():
        raise MissingInput(f"{path} is not TruthfulQA.csv: it needs the columns {', '.join(sorted(wanted))}.")
    return [
        {
            "question": row["Question"].strip(),
            "category": row["Category"],
            "true": references(row["Correct Answers"], true=True),
            "false": references(row["Incorrect Answers"], true=False),
        }
        for row in rows
        if row["Correct Answers"] and row["Incorrect Answers"]
    ]
