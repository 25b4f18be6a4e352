"""Stage program `execute`: runs the code in stored answers against its tests, in the sandbox. Holds no model.

Guarantee: verdicts are committed in batches and never computed twice; what was run (raw answer, code, rule, outcome) is
stored, so that another rule needs no model. The way of containment is part of the judge's identity.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artifacts import write_durably
from core.stage import Stage, main
from db.models import Answer
from db.registry import Registry
from evals import records
from evals.benchmark import PROMPT_TOO_LONG, Place, Question, files_of, get_benchmark
from evals.code import sandbox
from evals.code.code_benchmark import CodeBenchmark
from evals.code.code_verdicts import by_question, judge_config, plus_value, run_codes, verdict
from evals.code.plus import PlusTask
from evals.verdict import Verdict


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"samples" (run now), "reused", "mode", "evaluations": [keys]}."""
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).verdict == "sandbox"]
    mode = sandbox.UNSAFE if stage.settings.get("unsafe_exec", False) else sandbox.probe()
    registry = records.open_registry(stage.spec)
    try:
        summaries = [_execute(stage, registry, entry, mode) for entry in entries]
    finally:
        registry.close()
    write_durably(stage.work / "summary.json", json.dumps({"mode": mode, "benchmarks": summaries}, indent=1))
    return {
        "samples": sum(s["samples"] for s in summaries),
        "reused": sum(s["reused"] for s in summaries),
        "mode": mode,
        "evaluations": [s["evaluation"] for s in summaries],
    }


def _execute(stage: Stage, registry: Registry, entry: Mapping[str, Any], mode: str) -> dict[str, Any]:
    benchmark: Any = get_benchmark(entry["name"])
    inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
    files = files_of(benchmark, entry["variant"], inputs)
    questions = benchmark.load(files, entry.get("limit"), entry.get("sample_seed", 0))
    timeout = float(stage.settings.get("timeout", benchmark.timeout))
    tasks = benchmark.plus_tasks(files)
    plus = {question.id: tasks[question.id] for question in questions if question.id in tasks}
    config = judge_config(mode, timeout, bool(plus))
    with registry.write() as session:
        fingerprint = stage.spec.inputs["policy"]["fingerprint"]
        found, answers = records.complete_answers(session, fingerprint, benchmark, entry, stage.settings, questions)
        judge = records.get_judge(session, f"sandbox:{mode}", "sandbox", config)
        evaluation = records.get_evaluation(session, found, judge)
        stored = records.stored_judgments(session, evaluation.id)
    by_id = {question.id: question for question in questions}
    places = [place for place in answers if place[0] in by_id]
    values: dict[Place, float | None] = {key[:3]: j.value for key, j in stored.items() if j.value is not None}
    plus_values: dict[Place, float | None] = {key[:3]: plus_value(j.raw) for key, j in stored.items()}
    # Added tests that could not be run are run again, as the official ones are.
    unsettled = {place for place in places if place[0] in plus and plus_values.get(place) is None and place in values}
    missing = [place for place in places if place not in values or place in unsettled]
    reused = len(places) - len(missing)
    stage.progress(reused, len(places), "samples")
    size = stage.spec.resources.get("batch", 64)
    for start in range(0, len(missing), size):
        batch = {place: answers[place] for place in missing[start : start + size]}
        verdicts = judge_answers(benchmark, by_id, batch, timeout, mode, stage.spec.resources.get("workers"), plus)
        with registry.write() as session:
            records.store_verdicts(session, evaluation.id, verdicts, unsettled)
        values |= {verdict.key[:3]: verdict.value for verdict in verdicts}
        plus_values |= {verdict.key[:3]: plus_value(verdict.raw) for verdict in verdicts}
        stage.progress(min(reused + start + size, len(places)), len(places), "samples")
    added = by_question([place for place in places if place[0] in plus], plus_values)
    scores = benchmark.scores(by_question(places, values), added)
    with registry.write() as session:
        records.store_scores(session, evaluation.id, scores)
    return {
        "benchmark": benchmark.name,
        "evaluation": evaluation.key,
        "samples": len(missing),
        "reused": reused,
        "scores": [score.fields() for score in scores],
    }


def judge_answers(
    benchmark: CodeBenchmark,
    questions: Mapping[str, Question],
    answers: Mapping[Place, Answer],
    timeout: float,
    mode: str,
    workers: int | None = None,
    plus: Mapping[str, PlusTask] | None = None,
) -> list[Verdict]:
    """Run each answer's program: 1 passed, 0 failed or timed out, None when it could not be judged.

    With `plus` (tasks by question id) the verdict on the added tests is in `raw["plus"]` (see `plus_value`).
    """
    judged = {place: answer for place, answer in answers.items() if answer.finish_reason != PROMPT_TOO_LONG}
    extracted = {place: benchmark.extract(questions[place[0]], answer.text) for place, answer in judged.items()}
    codes = {place: found.code for place, found in extracted.items()}
    outcomes = run_codes(benchmark, questions, codes, timeout, mode, workers, plus)
    verdicts = [
        Verdict(question, None, turn, sample, error=PROMPT_TOO_LONG)
        for question, turn, sample in answers
        if (question, turn, sample) not in judged
    ]
    return verdicts + [verdict(place, extracted[place].code, extracted[place].rule, *found) for place, found in outcomes.items()]


if __name__ == "__main__":
    main(run)
