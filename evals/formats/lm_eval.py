"""lm-evaluation-harness's results: `samples_<task>_<date>.jsonl` and `results_<date>.json`, one folder a model.

Samples are scored again by this project's statistics and carry their verdicts; a results file alone is a published number.
Scores are on lm-eval's scale (fractions) as `harness rescore` prints them, in percent once imported.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import MissingInput, RecipeError
from evals.benchmark import Question, ScoreRow, get_benchmark, read_text
from evals.closed_form import standard_error, wilson
from evals.formats.saved import PublishedScore, SavedAnswer, SavedEvaluation, SavedOutputs, Stored, read_rows
from evals.scoring import percentage
from evals.verdict import Verdict

JUDGE = "metrics"
_NAME = re.compile(r"^(samples|results)_(?:(?P<task>.+)_)?(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl?(?:\.gz)?$")
_TRUTHFUL = {"truthfulqa_mc1": ("mc1", "acc,none"), "truthfulqa_mc2": ("mc2", "acc,none")}


@dataclass(frozen=True)
class _Run:
    """The newest samples file of one model and task."""

    model: str
    task: str
    date: str
    path: Path
    notes: tuple[str, ...] = ()


class LMEvalFormat:
    """Serves gsm8k, mmlu, arc_challenge, truthful_qa and human_eval; any other task whose metrics are proportions is scored
    under its own name."""

    benchmark = "lm_eval"
    options: Mapping[str, tuple[str, ...]] = {}
    assets = ()
    import_scale = 100.0
    """From lm-eval's fractions to the registry's percent."""

    def read(self, paths: Sequence[Path], options: Mapping[str, str], files: Mapping[str, Path]) -> list[SavedEvaluation]:
        """One evaluation a model and benchmark; MMLU's subjects together, mc1 and mc2 of TruthfulQA together."""
        runs = _newest(paths)
        if not runs:
            raise MissingInput(
                "There is no samples_<task>_<date>.jsonl among these files; run lm-eval with --log_samples, or take the numbers "
                "of a results file with `harness import lm_eval FILES --published`."
            )
        shots = _shots(paths)
        groups: dict[tuple[str, str], list[_Run]] = defaultdict(list)
        for run in runs:
            groups[run.model, benchmark_of(run.task)].append(run)
        return [_evaluation(model, name, group, shots) for (model, name), group in sorted(groups.items())]

    def read_outputs(self, paths: Sequence[Path]) -> list[SavedOutputs]:
        raise RecipeError("lm-eval's files hold answers that are judged already; import them without --outputs.")

    def write(self, model: str, rows: Stored, folder: Path) -> list[Path]:
        from evals.formats.lm_eval_export import write

        return write(model, rows, folder)

    def read_published(self, paths: Sequence[Path]) -> list[PublishedScore]:
        """The known benchmarks' metrics in results files, in percent, with an interval from the published standard error."""
        found: list[PublishedScore] = []
        for path in paths:
            match = _NAME.match(path.name)
            if match and match[1] == "samples":
                continue
            found += _published(path, _results(path))
        if not found:
            raise MissingInput("These files hold no result of gsm8k, mmlu, arc_challenge, truthful_qa or human_eval.")
        return found


def benchmark_of(task: str) -> str:
    """Our name for the benchmark that an lm-eval task belongs to; the task's own name where it is none of ours."""
    if task in _TRUTHFUL:
        return "truthful_qa"
    if task in ("humaneval", "humaneval_instruct"):
        return "human_eval"
    return "mmlu" if task.startswith("mmlu_") or task == "mmlu" else task


def metrics_of(benchmark: str, task: str) -> dict[str, str]:
    """Our metric -> lm-eval's `metric,filter` in the samples of a task; {} for a benchmark that is none of ours."""
    if benchmark == "truthful_qa":
        return dict([_TRUTHFUL[task]])
    if benchmark == "human_eval":
        return {"pass@1": "pass@1,create_test"}
    return dict(get_benchmark(benchmark).metrics) if benchmark in ("gsm8k", "mmlu", "arc_challenge") else {}


def _newest(paths: Sequence[Path]) -> list[_Run]:
    """Of several runs of a task by a model, the newest."""
    found: dict[tuple[str, str], list[_Run]] = defaultdict(list)
    for path in map(Path, paths):
        match = _NAME.match(path.name)
        if match and match[1] == "samples" and match["task"]:
            run = _Run(path.resolve().parent.name, match["task"], match["date"], path)
            found[run.model, run.task].append(run)
    runs = []
    for several in found.values():
        several.sort(key=lambda run: run.date)
        note = f"{several[-1].task}: the newest of {len(several)} runs is taken, of {several[-1].date}."
        runs.append(replace(several[-1], notes=(note,) if len(several) > 1 else ()))
    return sorted(runs, key=lambda run: (run.model, run.task))


def _results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, EOFError) as error:
        raise MissingInput(f"{path} cannot be read as JSON ({error}); give a results_<date>.json of lm-eval.") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise MissingInput(f"{path} has no `results`; give a results_<date>.json of lm-eval.")
    return content


def _shots(paths: Sequence[Path]) -> dict[tuple[str, str], int]:
    """(model, task) -> shots, from the results files that lie beside the samples."""
    found: dict[tuple[str, str], int] = {}
    for path in map(Path, paths):
        match = _NAME.match(path.name)
        if match and match[1] == "results":
            found |= {(path.resolve().parent.name, task): shots for task, shots in _results(path).get("n-shot", {}).items()}
    return found


def _evaluation(model: str, name: str, runs: Sequence[_Run], shots: Mapping[tuple[str, str], int]) -> SavedEvaluation:
    values: dict[str, dict[str, float]] = {}
    filtered: dict[str, dict[str, Any]] = defaultdict(dict)
    questions: dict[str, Question] = {}
    answers: dict[str, SavedAnswer] = {}
    notes = [note for run in runs for note in run.notes]
    for run in runs:
        seen: set[tuple[str, str]] = set()
        for row in read_rows(run.path):
            question = _question(name, run, row)
            place = question.id, str(row.get("filter", "none"))
            if place in seen:
                notes.append(f"{run.task}: question {question.id} is there twice; the last row counts.")
            seen.add(place)
            questions[question.id] = question
            values.setdefault(question.id, {}).update(_values(name, run, row))
            filtered[question.id][place[1]] = row.get("filtered_resps")
            # TruthfulQA's two tasks ask the same questions; the answer kept is that with more choices
            answer = _answer(question.id, row)
            if question.id not in answers or len(answer.detail.get("logprobs", ())) > len(
                answers[question.id].detail.get("logprobs", ())
            ):
                answers[question.id] = answer
    asked = list(questions.values())
    rows, statistics = _scores(name, asked, values, notes)
    headline = next((row.metric for row in rows if row.headline), rows[0].metric)
    verdicts = [
        Verdict(
            question.id,
            values[question.id].get(headline),
            error=None if headline in values[question.id] else "missing",
            raw=values[question.id] | {"filtered": filtered[question.id]},
        )
        for question in asked
    ]
    config = {"tasks": sorted(run.task for run in runs)}
    known = {shots[model, run.task] for run in runs if (model, run.task) in shots}
    if len(known) == 1:
        config["shots"] = known.pop()
    return SavedEvaluation(
        model=model,
        judge=JUDGE,
        judge_kind="none",
        judge_config=config,
        scores=[_fraction(row) for row in rows],
        verdicts=verdicts,
        answers=list(answers.values()),
        statistics=statistics,
        notes=notes,
        benchmark=name,
    )


def _question(name: str, run: _Run, row: Mapping[str, Any]) -> Question:
    doc, number = row.get("doc"), row.get("doc_id")
    if not isinstance(doc, dict) or not isinstance(number, int):
        raise MissingInput(f"{run.path}: a row has no `doc` or `doc_id`; give lm-eval's own samples files.")
    text = str(doc.get("question") or doc.get("prompt") or "")
    if name in ("gsm8k", "mmlu", "arc_challenge"):
        benchmark: Any = get_benchmark(name)
        identity, category = benchmark.question_id(run.task, number, doc), benchmark.question_category(run.task)
    else:
        identity, category = str(doc.get("task_id", number)), ""
    return Question(identity, category, (text,), {"task": run.task, "doc_id": number, "row": doc})


def _values(name: str, run: _Run, row: Mapping[str, Any]) -> dict[str, float]:
    """The row's metrics under our names; of tasks that are none of ours, under lm-eval's."""
    given = {f"{metric},{row.get('filter', 'none')}": row[metric] for metric in row.get("metrics", ()) if metric in row}
    known = metrics_of(name, run.task)
    if known:
        return {ours: float(given[theirs]) for ours, theirs in known.items() if theirs in given}
    return {metric: float(value) for metric, value in given.items() if isinstance(value, int | float)}


def _answer(question: str, row: Mapping[str, Any]) -> SavedAnswer:
    arguments = [list(given.values()) for given in dict(row.get("arguments") or {}).values()]
    responses = [_literal(first) for first in (given[0] for given in row.get("resps") or () if given)]
    prompt = str(arguments[0][0]) if arguments else ""
    if responses and all(isinstance(response, list | tuple) and len(response) == 2 for response in responses):
        logprobs = [[float(logprob), str(greedy) == "True"] for logprob, greedy in responses]
        detail = {"type": "loglikelihood", "continuations": [given[1] for given in arguments], "logprobs": logprobs}
        return SavedAnswer(question, "", prompt=prompt, detail=detail)
    return SavedAnswer(question, str(responses[0]) if responses else "", prompt=prompt, detail={"type": "generate_until"})


def _literal(value: Any) -> Any:
    """Log-probability and greedy flag as lm-eval writes them: a list, or its text in files of older versions."""
    if isinstance(value, str) and re.fullmatch(r"[\[(]-?[\d.e+-]+, (True|False)[\])]", value):
        return ast.literal_eval(value)
    return value


def _scores(
    name: str, questions: Sequence[Question], values: Mapping[str, Mapping[str, float]], notes: list[str]
) -> tuple[list[ScoreRow], dict[str, Any]]:
    """(rows in percent, statistics); what cannot be scored is told in `notes`."""
    if name in ("gsm8k", "mmlu", "arc_challenge"):
        benchmark: Any = get_benchmark(name)
        full = {q.id: values[q.id] if set(benchmark.metrics) <= values[q.id].keys() else None for q in questions}
        return benchmark.scores(questions, full), benchmark.statistics(questions, full)
    metrics = dict.fromkeys(metric for q in questions for metric in values[q.id])
    first = {"truthful_qa": "mc2", "human_eval": "pass@1"}.get(name, next(iter(metrics), None))
    rows = []
    for metric in metrics:
        found = [values[q.id].get(metric) for q in questions]
        known = [value for value in found if value is not None]
        if not all(0 <= value <= 1 for value in known):
            notes.append(f"{metric} of {name} is not a proportion and is left out.")
            continue
        row = percentage(metric, found, headline=metric == first, proportion=set(known) <= {0.0, 1.0})
        error = standard_error(known)
        rows.append(replace(row, stderr=None if error is None else 100 * error))
    if not rows:
        raise MissingInput(f"The samples of {name} hold no metric that is a proportion; rescore the tool's own results file.")
    return rows, {}


def _fraction(row: ScoreRow) -> ScoreRow:
    numbers = {field: getattr(row, field) for field in ("value", "low", "high", "stderr", "worst", "best")}
    return replace(row, **{field: None if value is None else value / 100 for field, value in numbers.items()})


def _published(path: Path, content: Mapping[str, Any]) -> list[PublishedScore]:
    model = str(content.get("model_name") or path.resolve().parent.name)
    found = []
    for task, given in content["results"].items():
        name = benchmark_of(task)
        if name == "mmlu" and task != "mmlu":
            continue
        for ours, theirs in metrics_of(name, task).items():
            if not isinstance(given.get(theirs), int | float):
                continue
            headline = ours == get_benchmark(name).headline
            row = _published_row(ours, given, theirs, _count(content, task), headline)
            found.append(
                PublishedScore(model, row, judge=f"lm-eval {content.get('lm_eval_version', '')}".strip(), benchmark=name)
            )
    return found


def _published_row(ours: str, given: Mapping[str, Any], theirs: str, n: int, headline: bool) -> ScoreRow:
    value, error = float(given[theirs]), given.get(theirs.replace(",", "_stderr,"))
    if isinstance(error, int | float):
        low, high = max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)
        method = "published; interval of 1.96 published standard errors"
    elif n:
        (low, high), error, method = wilson(value * n, n), None, "published; Wilson interval over questions"
    else:
        low, high, error, method = None, None, None, "published"
    numbers = {"value": value, "low": low, "high": high, "stderr": error}
    percent = {field: None if number is None else 100 * number for field, number in numbers.items()}
    return ScoreRow(ours, method=method, n=n, n_failed=0, headline=headline, **percent)


def _count(content: Mapping[str, Any], task: str) -> int:
    """Questions behind a result: of a task, or of all tasks under a group."""
    sizes = content.get("n-samples", {})
    if task in sizes:
        return int(sizes[task]["effective"])
    return sum(_count(content, child) for child in content.get("group_subtasks", {}).get(task, ()))
