"""Our stored evaluations in lm-evaluation-harness's results layout (0.4.13, lm_eval/loggers/evaluation_tracker.py).

`<folder>/<model>/results_<date>.json` and one `samples_<task>_<date>.jsonl` a task: a line a question and filter, with lm-eval's
keys and hashes. Questions that failed have no line; `n-samples` says how many were asked.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from core.errors import RecipeError
from evals.benchmark import Question
from evals.closed_form import standard_error
from evals.formats.lm_eval import benchmark_of, metrics_of
from evals.formats.saved import Stored, file_name, write_text
from evals.knowledge.lm_tasks import mmlu_categories
from evals.knowledge.tasks import pooled_standard_error


@dataclass(frozen=True)
class _Sample:
    """What one question contributes to one task's file."""

    doc_id: int
    doc: Mapping[str, Any]
    target: Any
    arguments: Sequence[Sequence[Any]]
    responses: Sequence[Any]
    metrics: Mapping[str, float]
    """lm-eval's `metric,filter` -> value."""
    filtered: Mapping[str, Sequence[Any]]
    """Filter -> filtered responses."""


def write(model: str, rows: Stored, folder: Path) -> list[Path]:
    """Write the layout; returns the paths. Raises RecipeError for a benchmark that lm-eval has no task for."""
    tasks: dict[str, list[_Sample]] = defaultdict(list)
    asked: dict[str, int] = defaultdict(int)
    for question in rows.questions:
        for task, make in _tasks(question):
            asked[task] += 1
            sample = make(rows, question)
            if sample is not None:
                tasks[task].append(sample)
    now = datetime.now().isoformat()
    date, home = now.replace(":", "-"), folder / file_name(model)
    written = [
        write_text(
            home / f"samples_{task}_{date}.jsonl",
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for s in samples for line in _lines(s)),
        )
        for task, samples in tasks.items()
    ]
    content = _aggregated(tasks) | {
        "n-shot": dict.fromkeys(asked, rows.settings.get("shots", 0)),
        "n-samples": {task: {"original": count, "effective": len(tasks.get(task, ()))} for task, count in asked.items()},
        "config": {"model": model, "limit": rows.settings.get("limit"), "settings": dict(rows.settings), "data": rows.version},
        "date": datetime.now().timestamp(),
        "lm_eval_version": rows.settings.get("lm_eval", ""),
        "model_name": model,
        "model_name_sanitized": file_name(model),
    }
    return [write_text(home / f"results_{date}.json", json.dumps(content, indent=2, ensure_ascii=False)), *written]


def _tasks(question: Question) -> list[tuple[str, Callable[[Stored, Question], _Sample | None]]]:
    """The lm-eval tasks that ask this question, and how to put it into each."""
    data = question.data
    if "task" in data and "row" in data:
        return [(data["task"], _knowledge)]
    if "mc1" in data and "mc2" in data:
        return [(f"truthfulqa_{metric}", lambda rows, q, m=metric: _truthful(rows, q, m)) for metric in ("mc1", "mc2")]
    if "entry_point" in data and "task_id" in data:
        return [("humaneval", _human_eval)]
    raise RecipeError(
        "lm-eval has no task for this benchmark here; export gsm8k, mmlu, arc_challenge, truthful_qa or human_eval, or leave "
        "--format out."
    )


def _knowledge(rows: Stored, question: Question) -> _Sample | None:
    answer, judgment = rows.answers.get((question.id, 1, 0)), rows.judgments.get((question.id, 1, 0, 1))
    if answer is None or judgment is None or judgment.value is None:
        return None
    data, detail = question.data, answer.detail
    if detail["type"] == "generate_until":
        arguments, responses = [[answer.prompt, detail["generation_kwargs"]]], [[answer.text]]
    else:
        arguments = [[answer.prompt, continuation] for continuation in detail["continuations"]]
        responses = [[_pair(*one)] for one in detail["logprobs"]]
    wanted = metrics_of(benchmark_of(data["task"]), data["task"])
    metrics = {theirs: judgment.raw[ours] for ours, theirs in wanted.items()}
    filtered = {
        name: [_pair(*one) if isinstance(one, list) else one for one in given] for name, given in judgment.raw["filtered"].items()
    }
    return _Sample(data["doc_id"], data["row"], _target(data["row"]), arguments, responses, metrics, filtered)


def _target(row: Mapping[str, Any]) -> Any:
    """The gold answer as the task's `doc_to_target` gives it: a text, or the index of a choice."""
    return row["choices"]["label"].index(row["answerKey"]) if "answerKey" in row else row["answer"]


def _truthful(rows: Stored, question: Question, metric: str) -> _Sample | None:
    answer, judgment = rows.answers.get((question.id, 1, 0)), rows.judgments.get((question.id, 1, 0, 1))
    if answer is None or judgment is None or judgment.value is None:
        return None
    known = dict(zip(answer.detail["choices"], answer.detail["logprobs"], strict=True))
    targets = question.data[metric]
    doc = {"question": question.turns[0]}
    doc |= {
        f"{m}_targets": {"choices": list(question.data[m]), "labels": list(question.data[m].values())} for m in ("mc1", "mc2")
    }
    responses = [[_pair(known[choice], None)] for choice in targets]
    arguments = [[answer.prompt, f" {choice}"] for choice in targets]
    return _Sample(
        int(question.id), doc, 0, arguments, responses, {"acc,none": judgment.raw[metric]}, {"none": [r[0] for r in responses]}
    )


def _human_eval(rows: Stored, question: Question) -> _Sample | None:
    places = sorted(place for place in rows.answers if place[0] == question.id)
    judged = [(rows.answers[place], rows.judgments.get((*place, 1))) for place in places]
    known = [(answer, judgment) for answer, judgment in judged if judgment is not None and judgment.value is not None]
    if not known:
        return None
    doc = dict(question.data)
    number = int(question.id.rpartition("/")[2]) if question.id.rpartition("/")[2].isdigit() else 0
    target = f"{doc['test']}\ncheck({doc['entry_point']})"
    # pass@1 of a problem with n samples is the share that passes (Chen et al. 2021)
    passed = sum(judgment.value for _, judgment in known) / len(known)
    return _Sample(
        number,
        doc,
        target,
        [[known[0][0].prompt, {"until": []}]],
        [[answer.text for answer, _ in known]],
        {"pass@1,create_test": passed},
        {"create_test": [[judgment.raw.get("code", answer.text) for answer, judgment in known]]},
    )


def _pair(logprob: float, greedy: bool | None) -> list[str]:
    """lm-eval writes numbers of responses as text; where it is not known what greedy decoding writes, "None"."""
    return [str(logprob), str(greedy)]


def _lines(sample: _Sample) -> Iterator[dict[str, Any]]:
    named = {f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(given)} for i, given in enumerate(sample.arguments)}
    for name in dict.fromkeys(key.split(",")[1] for key in sample.metrics):
        metrics = {key.split(",")[0]: value for key, value in sample.metrics.items() if key.split(",")[1] == name}
        yield {
            "doc_id": sample.doc_id,
            "doc": sample.doc,
            "target": str(sample.target),
            "arguments": named,
            "resps": sample.responses,
            "filtered_resps": sample.filtered.get(name, sample.responses),
            "filter": name,
            "metrics": list(metrics),
            "doc_hash": _sha256(json.dumps(sample.doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(str(sample.arguments[0][0])),
            "target_hash": _sha256(str(sample.target)),
        } | metrics


def _aggregated(tasks: Mapping[str, Sequence[_Sample]]) -> dict[str, Any]:
    """`results`, `groups`, `group_subtasks`, `higher_is_better` and `task_hashes`."""
    results: dict[str, dict[str, Any]] = {}
    hashes = {}
    for task, samples in sorted(tasks.items()):
        results[task] = {"alias": task}
        for key in samples[0].metrics:
            values = [sample.metrics[key] for sample in samples]
            error = standard_error(values)
            results[task] |= {key: sum(values) / len(values), key.replace(",", "_stderr,"): "N/A" if error is None else error}
        lines = [line for sample in samples for line in _lines(sample)]
        hashes[task] = _sha256("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))
    subjects = {task: samples for task, samples in tasks.items() if task.startswith("mmlu_")}
    groups: dict[str, list[str]] = {}
    if subjects:
        for task in sorted(subjects):
            groups.setdefault(f"mmlu_{mmlu_categories()[task.removeprefix('mmlu_')]}", []).append(task)
    grouped = {name: _group(name, [subjects[task] for task in members]) for name, members in groups.items()}
    if subjects:
        grouped = {"mmlu": _group("mmlu", list(subjects.values()))} | grouped
        groups = {"mmlu": list(groups)} | groups
    better = {task: {key.split(",")[0]: True for key in samples[0].metrics} for task, samples in tasks.items()}
    found = {"results": grouped | results, "group_subtasks": groups, "higher_is_better": better, "task_hashes": hashes}
    return found | ({"groups": grouped} if grouped else {})


def _group(name: str, parts: Sequence[Sequence[_Sample]]) -> dict[str, Any]:
    """A group of MMLU: the mean weighted by size and its pooled standard error."""
    values = [[sample.metrics["acc,none"] for sample in part] for part in parts]
    flat = [value for part in values for value in part]
    error = pooled_standard_error(values)
    return {"alias": name, "acc,none": sum(flat) / len(flat), "acc_stderr,none": "N/A" if error is None else error}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
