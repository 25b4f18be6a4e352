"""From whole solutions to verdicts: run against the benchmark's own tests and the added ones. No model, no registry."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from evals.benchmark import Place, Question
from evals.code import sandbox
from evals.code.code_benchmark import CodeBenchmark
from evals.code.extraction import EXTRACTION_RULE
from evals.code.plus import PlusTask, plus_program, references
from evals.verdict import Verdict


def judge_config(mode: str, timeout: float, plus: bool) -> dict[str, Any]:
    """What else distinguishes these verdicts: part of the judge's identity."""
    config = {"mode": mode, "timeout": timeout, "extraction": EXTRACTION_RULE, "tests": sandbox.TESTS}
    return config | ({"plus": "evalplus"} if plus else {})


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


def verdict(place: Place, code: str, rule: str, outcome: sandbox.Outcome, added: sandbox.Outcome | None) -> Verdict:
    """What is stored of one sample."""
    question, turn, sample = place
    broken = outcome.status == "error"
    raw = {"code": code, "rule": rule, "status": outcome.status, "detail": outcome.detail, "seconds": round(outcome.seconds, 3)}
    if added is not None:
        raw["plus"] = {"status": added.status, "detail": added.detail, "seconds": round(added.seconds, 3)}
    error = f"sandbox: {outcome.detail}" if broken else None
    return Verdict(question, None if broken else float(outcome.passed), turn, sample, error=error, raw=raw)


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
