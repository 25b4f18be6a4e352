"""Stage program `metrics`: scores stored answers against references with text metrics. Holds no model.

Guarantee: the metrics of every answer are stored beside its verdict; what was computed once is not computed again. What
decides them (libraries, how an answer is cleaned) is part of the judge's identity.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from core.artifacts import write_durably
from core.stage import Stage, main
from db.models import Answer, Evaluation
from db.registry import Registry
from evals import records
from evals.benchmark import PROMPT_TOO_LONG, Question, ScoreRow, files_of, get_benchmark
from evals.verdict import Verdict

JUDGE = "metrics"


class MetricsBenchmark(Protocol):
    """What a benchmark with `verdict = "metrics"` has beside the methods of `Benchmark`. One turn, one sample."""

    def metrics_settings(self) -> dict[str, Any]:
        """What decides the metrics beside answer and references, for the judge's identity."""

    def measure(self, question: Question, answer: str) -> dict[str, float]:
        """Metric -> value of one answer, the headline metric among them."""

    def scores(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> list[ScoreRow]:
        """Metrics over all questions from {question id: values, or None where there is no answer}."""

    def statistics(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> dict[str, Any]:
        """For `evaluation.statistics`."""


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"answers" (measured now), "reused", "evaluations": [keys]}."""
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).verdict == "metrics"]
    registry = records.open_registry(stage.spec)
    try:
        summaries = [_measure(stage, registry, entry) for entry in entries]
    finally:
        registry.close()
    write_durably(stage.work / "summary.json", json.dumps({"benchmarks": summaries}, indent=1))
    return {
        "answers": sum(s["answers"] for s in summaries),
        "reused": sum(s["reused"] for s in summaries),
        "evaluations": [s["evaluation"] for s in summaries],
    }


def _measure(stage: Stage, registry: Registry, entry: Mapping[str, Any]) -> dict[str, Any]:
    benchmark: Any = get_benchmark(entry["name"])
    inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
    questions = benchmark.load(files_of(benchmark, entry["variant"], inputs), entry.get("limit"), entry.get("sample_seed", 0))
    with registry.write() as session:
        fingerprint = stage.spec.inputs["policy"]["fingerprint"]
        found, answers = records.complete_answers(session, fingerprint, benchmark, entry, stage.settings, questions)
        judge = records.get_judge(session, JUDGE, "none", benchmark.metrics_settings())
        evaluation = records.get_evaluation(session, found, judge)
        stored = records.stored_judgments(session, evaluation.id)
    values: dict[str, dict[str, float] | None] = {key[0]: j.raw for key, j in stored.items() if j.value is not None}
    missing = [question for question in questions if question.id not in values]
    reused = len(questions) - len(missing)
    stage.progress(reused, len(questions), "answers")
    size = stage.spec.resources.get("batch", 64)
    for start in range(0, len(missing), size):
        batch = {q.id: measured(benchmark, q, answers[q.id, 1, 0]) for q in missing[start : start + size]}
        with registry.write() as session:
            records.store_verdicts(session, evaluation.id, [_verdict(benchmark.headline, *item) for item in batch.items()])
        values |= batch
        stage.progress(min(reused + start + size, len(questions)), len(questions), "answers")
    scores, statistics = benchmark.scores(questions, values), benchmark.statistics(questions, values)
    with registry.write() as session:
        row = session.get_one(Evaluation, evaluation.id)
        row.statistics = {**(row.statistics or {}), **statistics}
        records.store_scores(session, evaluation.id, scores)
    return {
        "benchmark": benchmark.name,
        "evaluation": evaluation.key,
        "answers": len(missing),
        "reused": reused,
        "scores": [score.fields() for score in scores],
    }


def measured(benchmark: MetricsBenchmark, question: Question, answer: Answer) -> dict[str, float] | None:
    """The answer's metrics; None where the prompt was too long for an answer."""
    return None if answer.finish_reason == PROMPT_TOO_LONG else benchmark.measure(question, answer.text)


def _verdict(headline: str, question: str, values: dict[str, float] | None) -> Verdict:
    if values is None:
        return Verdict(question, None, error=PROMPT_TOO_LONG)
    return Verdict(question, values[headline], raw=values)


if __name__ == "__main__":
    main(run)
