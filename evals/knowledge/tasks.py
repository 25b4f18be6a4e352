"""GSM8K, MMLU and ARC-Challenge as lm-evaluation-harness defines them.

Each is a task of the installed lm-eval on local files (`lm_tasks`), run by the stage `evals.lm_eval_stage`; here is what
the leaderboard knows of it: questions, settings that are its identity, and how per-question values become scores. The
numbers of shots are the paper's (arXiv 2405.07863, table 6: 8, 5, 25); lm-eval's own default for GSM8K is 5.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from evals.benchmark import Benchmark, Question, ScoreRow, context_setting, read_jsonl, require_asset, sample
from evals.closed_form import standard_error
from evals.knowledge.lm_tasks import CATEGORIES, FEWSHOT_SEED, LocalTask, lm_eval_version, mmlu_categories
from evals.scoring import percentage


class KnowledgeBenchmark(Benchmark):
    """A benchmark that lm-eval runs. A subclass names its tasks, its shots and its metrics."""

    kind = "lm_eval"
    verdict = "lm_eval"
    assets = {"official": ("questions", "shots")}
    default_decoding = {}
    shots: ClassVar[int]
    """Worked examples before each question, unless the recipe says otherwise."""
    metrics: ClassVar[dict[str, str]]
    """Our metric -> lm-eval's `metric,filter`; all are 0 or 1 per question; in the order of lm-eval's files."""
    task_version: ClassVar[str]
    """`metadata.version` of lm-eval's task."""
    shot_sampler: ClassVar[str]
    """How lm-eval picks the shots: "first_n", or "default": drawn for each question in turn, so that a limited run has
    other shots than the full one."""
    max_gen_toks: ClassVar[int | None] = None
    """Tokens that an answer may have (lm-eval's default 256); None where nothing is generated."""

    @abstractmethod
    def tasks(self, files: Mapping[str, Path]) -> dict[str, LocalTask]:
        """Task name -> task with all its rows."""

    def question_id(self, task: str, doc_id: int, row: Mapping[str, Any]) -> str:
        """The question's name in the registry, from lm-eval's task, its document number, and the row."""
        return str(doc_id)

    def question_category(self, task: str) -> str:
        return ""

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        """Questions with data {"task", "doc_id", "row"}: where lm-eval finds them."""
        found = [
            Question(
                self.question_id(name, number, row),
                self.question_category(name),
                (row["question"],),
                {"task": name, "doc_id": number, "row": row},
            )
            for name, task in self.tasks(files).items()
            for number, row in enumerate(task.splits["test"])
        ]
        return sample(found, limit, sample_seed)

    def shots_of(self, entry: Mapping[str, Any]) -> int:
        """Shots of one entry of the stage's `benchmarks`."""
        given = entry.get("shots")
        return self.shots if given is None else int(given)

    def answer_settings(self, entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
        limit = entry.get("limit")
        settings = {
            "limit": limit,
            "sample_seed": entry.get("sample_seed", 0) if limit else 0,
            "lm_eval": lm_eval_version(),
            "task_version": self.task_version,
            "shots": self.shots_of(entry),
            "shot_sampler": self.shot_sampler if self.shot_sampler != "default" else f"seed {FEWSHOT_SEED}",
            "engine": stage_settings["engine"],
            "dtype": stage_settings.get("dtype", "auto"),
            "chat_template": bool(entry.get("chat_template", False)),
        }
        if self.max_gen_toks is not None:
            settings["max_gen_toks"] = (entry.get("decoding") or {}).get("max_tokens", self.max_gen_toks)
        if settings["chat_template"]:
            settings["system_prompt"] = stage_settings.get("system_prompt")
        if settings["engine"] == "vllm":  # transformers has the model's own context
            settings |= context_setting(stage_settings)
        return settings | self.identity

    def values(self, results: Mapping[str, float]) -> dict[str, float]:
        """Our metrics of one question from lm-eval's `{metric,filter: value}`."""
        return {ours: float(results[theirs]) for ours, theirs in self.metrics.items()}

    def scores(self, questions: Sequence[Question], values: Mapping[str, Mapping[str, float] | None]) -> list[ScoreRow]:
        """Every metric in percent over all questions, with a Wilson interval and lm-eval's standard error.

        `values`: {question id: {metric: 0 or 1}, or None where the question could not be answered}.
        """
        rows = []
        for metric in self.metrics:
            found = [known and known[metric] for known in (values[question.id] for question in questions)]
            row = percentage(metric, found, headline=metric == self.headline, proportion=True)
            rows.append(replace(row, stderr=self._stderr(questions, found) if row.value is not None else None))
        return rows

    def _stderr(self, questions: Sequence[Question], values: Sequence[float | None]) -> float | None:
        """In percent: sample standard deviation (ddof 1) over the root of n (lm_eval/api/metrics.py, `mean_stderr`)."""
        return _percent(standard_error([value for value in values if value is not None]))

    def statistics(self, questions: Sequence[Question], values: Mapping[str, Mapping[str, float] | None]) -> dict[str, Any]:
        """For `evaluation.statistics`: results of parts of the benchmark; {} without parts."""
        return {}

    def notes(self, files: Mapping[str, Path]) -> list[str]:
        """What a reader of the score must know of the data used."""
        return []


class GSM8K(KnowledgeBenchmark):
    """Grade-school word problems (arXiv 2110.14168); shots drawn from the training set.

    The headline is flexible extraction (the answer's last number): the strict one wants "#### 42", which a model answering
    under a chat template does not write however well it reckons. Both are stored.
    """

    name = "gsm8k"
    headline = "exact_match_flexible"
    metrics = {"exact_match_flexible": "exact_match,flexible-extract", "exact_match_strict": "exact_match,strict-match"}
    shots = 8
    task_version = "3.0"
    shot_sampler = "default"
    max_gen_toks = 256

    def tasks(self, files: Mapping[str, Path]) -> dict[str, LocalTask]:
        return {"gsm8k": LocalTask("gsm8k", "gsm8k/gsm8k.yaml", _splits(self.name, files, train="shots"))}


class ARCChallenge(KnowledgeBenchmark):
    """Science exam questions (arXiv 1803.05457); shots drawn from the training set.

    The headline is `acc_norm`, the choice of largest log-probability per character, as the published 25-shot numbers are;
    `acc`, without that division, stands beside it.
    """

    name = "arc_challenge"
    headline = "acc_norm"
    metrics = {"acc": "acc,none", "acc_norm": "acc_norm,none"}
    shots = 25
    task_version = "1.0"
    shot_sampler = "default"
    train_rows: ClassVar[int] = 1119
    """Rows of the published training set, which the hub's 25-shot draw is made from."""

    def tasks(self, files: Mapping[str, Path]) -> dict[str, LocalTask]:
        return {"arc_challenge": LocalTask("arc_challenge", "arc/arc_challenge.yaml", _splits(self.name, files, train="shots"))}

    def question_id(self, task: str, doc_id: int, row: Mapping[str, Any]) -> str:
        return str(row["id"])

    def notes(self, files: Mapping[str, Path]) -> list[str]:
        have = len(read_jsonl(require_asset(files, "shots", self.name)))
        if have == self.train_rows:
            return []
        return [
            f"The shots are drawn from {have:,} of the {self.train_rows:,} training rows: they are other examples than those "
            "behind published 25-shot numbers."
        ]


class MMLU(KnowledgeBenchmark):
    """57 subjects of four-way questions (arXiv 2009.03300); shots are the first of each subject's development set.

    The headline is accuracy over all questions, which is the mean of the subjects weighted by their size (lm-eval's group
    `mmlu`); subjects and the four categories are in the statistics.
    """

    name = "mmlu"
    headline = "acc"
    metrics = {"acc": "acc,none"}
    shots = 5
    task_version = "1.0"
    shot_sampler = "first_n"

    def tasks(self, files: Mapping[str, Path]) -> dict[str, LocalTask]:
        by_subject: dict[str, dict[str, list[Any]]] = {}
        for split, rows in _splits(self.name, files, dev="shots").items():
            for row in rows:
                by_subject.setdefault(row["subject"], {"dev": [], "test": []})[split].append(row)
        return {
            f"mmlu_{subject}": LocalTask(f"mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", splits)
            for subject, splits in sorted(by_subject.items())
            if splits["test"]
        }

    def question_id(self, task: str, doc_id: int, row: Mapping[str, Any]) -> str:
        return f"{task.removeprefix('mmlu_')}/{doc_id}"

    def question_category(self, task: str) -> str:
        return task.removeprefix("mmlu_")

    def _stderr(self, questions: Sequence[Question], values: Sequence[float | None]) -> float | None:
        """In percent, from the variance within subjects, as lm-eval aggregates the group."""
        return _percent(pooled_standard_error(_by_subject(questions, values).values()))

    def statistics(self, questions: Sequence[Question], values: Mapping[str, Mapping[str, float] | None]) -> dict[str, Any]:
        """{"subjects" and "categories": {name: {"acc" and "stderr" in percent, "n", "n_failed"}}}."""
        found = _by_subject(questions, [(values[question.id] or {}).get("acc") for question in questions], keep_failed=True)
        of = mmlu_categories()
        categories = {name: [s for s in found if of.get(s) == name] for name in CATEGORIES}
        return {
            "subjects": {subject: _part([subject], found) for subject in sorted(found)},
            "categories": {name: _part(subjects, found) for name, subjects in categories.items() if subjects},
        }


def pooled_standard_error(parts: Iterable[Sequence[float]]) -> float | None:
    """Standard error of the mean over all values of all parts, from the variance within parts (lm-evaluation-harness 0.4.13,
    lm_eval/api/metrics.py, `pooled_sample_stderr`): sqrt(sum (n_i - 1) s_i^2 / (N - k) / N). None when every part has one value.
    """
    arrays = [np.asarray(part, dtype=float) for part in parts if len(part)]
    n, freedom = sum(map(len, arrays)), sum(len(array) - 1 for array in arrays)
    if freedom <= 0:
        return None
    return math.sqrt(sum(float(((a - a.mean()) ** 2).sum()) for a in arrays) / freedom / n)


def _by_subject(
    questions: Sequence[Question], values: Sequence[float | None], keep_failed: bool = False
) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for question, value in zip(questions, values, strict=True):
        if keep_failed or value is not None:
            found.setdefault(question.category, []).append(value)
    return found


def _part(subjects: Sequence[str], found: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    known = {subject: [value for value in found[subject] if value is not None] for subject in subjects}
    values = [value for part in known.values() for value in part]
    return {
        "acc": 100 * sum(values) / len(values) if values else None,
        "stderr": _percent(pooled_standard_error(known.values())),
        "n": len(values),
        "n_failed": sum(len(found[subject]) for subject in subjects) - len(values),
    }


def _splits(name: str, files: Mapping[str, Path], **shots: str) -> dict[str, list[dict[str, Any]]]:
    """{split of the shots: its rows, "test": the questions}."""
    found = {split: read_jsonl(require_asset(files, asset, name)) for split, asset in shots.items()}
    return found | {"test": read_jsonl(require_asset(files, "questions", name))}


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
