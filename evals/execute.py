"""Stage program `execute`: runs the code in stored answers against its tests, in the sandbox. Holds no model.

Guarantee: verdicts are committed in batches and never computed twice; what was run (raw answer, code, rule, outcome) is
stored, so that another rule needs no model. The way of containment is part of the judge's identity.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import write_durably
from core.stage import Stage, main
from db.models import Answer
from db.registry import Registry
from evals import records, sandbox
from evals.answer import PROMPT_TOO_LONG, Place
from evals.benchmark import Question, files_of, get_benchmark
from evals.code_benchmark import CodeBenchmark
from evals.extraction import EXTRACTION_RULE
from evals.plus import PlusTask, plus_program, references


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
    missing = [place for place in places if place not in values]
    reused = len(places) - len(missing)
    stage.progress(reused, len(places), "samples")
    size = stage.spec.resources.get("batch", 64)
    for start in range(0, len(missing), size):
        batch = {place: answers[place] for place in missing[start : start + size]}
        verdicts = judge_answers(benchmark, by_id, batch, timeout, mode, stage.spec.resources.get("workers"), plus)
        with registry.write() as session:
            records.store_verdicts(session, evaluation.id, verdicts)
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


def judge_config(mode: str, timeout: float, plus: bool) -> dict[str, Any]:
    """What else distinguishes these verdicts: part of the judge's identity."""
    config = {"mode": mode, "timeout": timeout, "extraction": EXTRACTION_RULE, "tests": sandbox.TESTS}
    return config | ({"plus": "evalplus"} if plus else {})


def judge_answers(
    benchmark: CodeBenchmark,
    questions: Mapping[str, Question],
    answers: Mapping[Place, Answer],
    timeout: float,
    mode: str,
    workers: int | None = None,
    plus: Mapping[str, PlusTask] | None = None,
) -> list[records.Verdict]:
    """Run each answer's program: 1 passed, 0 failed or timed out, None when it could not be judged.

    With `plus` (tasks by question id) the verdict on the added tests is in `raw["plus"]` (see `plus_value`).
    """
    judged = {place: answer for place, answer in answers.items() if answer.finish_reason != PROMPT_TOO_LONG}
    extracted = {place: benchmark.extract(questions[place[0]], answer.text) for place, answer in judged.items()}
    codes = {place: found.code for place, found in extracted.items()}
    outcomes = run_codes(benchmark, questions, codes, timeout, mode, workers, plus)
    verdicts = [
        records.Verdict(question, None, turn, sample, error=PROMPT_TOO_LONG)
        for question, turn, sample in answers
        if (question, turn, sample) not in judged
    ]
    return verdicts + [verdict(place, extracted[place].code, extracted[place].rule, *found) for place, found in outcomes.items()]


def run_codes(
    benchmark: CodeBenchmark,
    questions: Mapping[str, Question],
    codes: Mapping[Place, str],
    timeout: float,
    mode: str,
    workers: int | None = None,
    plus: Mapping[str, PlusTask] | None = None,
) -> dict[Place, tuple[sandbox.Outcome, sandbox.Outcome | None]]:
    """{place: (outcome of the benchmark's own tests, of the added ones)} of whole solutions.

    Where the added tests of `plus` need the benchmark's own to pass first, those that failed are not run again; None where
    there are no added tests.
    """
    programs = [benchmark.tested(questions[place[0]], code) for place, code in codes.items()]
    outcomes = dict(zip(codes, sandbox.run_many(programs, timeout, mode, workers), strict=True))
    plus = plus or {}
    known = references({q: plus[q] for q in {place[0] for place in codes} if q in plus}, mode, workers)
    due = [p for p, o in outcomes.items() if p[0] in plus and (o.passed or not benchmark.plus_needs_own)]
    more = {place: plus_program(plus[place[0]], known[place[0]], codes[place]) for place in due}
    ran = sandbox.run_many([program for program, _ in more.values()], [seconds for _, seconds in more.values()], mode, workers)
    added = {place: outcome for place, outcome in outcomes.items() if place[0] in plus} | dict(zip(more, ran, strict=True))
    return {place: (outcome, added.get(place)) for place, outcome in outcomes.items()}


def verdict(place: Place, code: str, rule: str, outcome: sandbox.Outcome, added: sandbox.Outcome | None) -> records.Verdict:
    """What is stored of one sample."""
    question, turn, sample = place
    broken = outcome.status == "error"
    raw = {"code": code, "rule": rule, "status": outcome.status, "detail": outcome.detail, "seconds": round(outcome.seconds, 3)}
    if added is not None:
        raw["plus"] = {"status": added.status, "detail": added.detail, "seconds": round(added.seconds, 3)}
    error = f"sandbox: {outcome.detail}" if broken else None
    return records.Verdict(question, None if broken else float(outcome.passed), turn, sample, error=error, raw=raw)


def plus_value(raw: Mapping[str, Any] | None) -> float | None:
    """Verdict on the added tests, from what was stored: 1, 0, or None where they were not run or could not be judged."""
    status = ((raw or {}).get("plus") or {}).get("status", "error")
    return None if status == "error" else float(status == "passed")


def by_question(places: Sequence[Place], values: Mapping[Place, float | None]) -> dict[str, list[float | None]]:
    """{question id: values of its samples}."""
    grouped: dict[str, list[float | None]] = defaultdict(list)
    for place in places:
        grouped[place[0]].append(values.get(place))
    return dict(grouped)


if __name__ == "__main__":
    main(run)
