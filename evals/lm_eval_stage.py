"""Stage program `lm_eval_stage`: GSM8K, MMLU and ARC-Challenge through lm-evaluation-harness, on local files.

lm-eval builds the requests, its model classes answer them, its filters and metrics judge them. Between the two lies our
registry instead of lm-eval's request cache, whose key does not hold the model.
Guarantee: answers are committed in chunks of questions and never asked for again; the raw responses are stored, so that
metrics can be derived again without the model; the model is not loaded when everything is stored. A prompt is never cut:
one that leaves no room for its answer is a failed question (`prompt_too_long`).
"""

import json
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import write_durably
from core.stage import Stage, main
from db.models import Evaluation
from db.record import complete_answer_set
from db.registry import Registry
from evals import records
from evals.benchmark import PROMPT_TOO_LONG, Question, files_of, get_benchmark
from evals.knowledge.lm_eval_models import BATCH, make_lm
from evals.knowledge.lm_tasks import load_tasks, write_tasks
from evals.knowledge.logprobs import leading_bos
from evals.knowledge.tasks import KnowledgeBenchmark
from evals.verdict import Verdict

JUDGE = "lm-eval metrics"
NOT_FINITE = "not_finite"
CHUNK = {"transformers": 4 * BATCH, "vllm": 512}
"""Questions that are committed together, by engine: a crash costs at most so many; vLLM wants many at once. Overridden by
`resources["chunk"]`."""


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"questions" (answered now), "reused", "evaluations": [keys]}."""
    # read when `datasets` is first imported: nothing here may ask the hub
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).kind == "lm_eval"]
    registry = records.open_registry(stage.spec)
    try:
        policy = Policy(stage)
        summaries = [_evaluate(stage, registry, entry, policy) for entry in entries]
    finally:
        registry.close()
    write_durably(stage.work / "summary.json", json.dumps({"benchmarks": summaries}, indent=1))
    return {
        "questions": sum(s["questions"] for s in summaries),
        "reused": sum(s["reused"] for s in summaries),
        "evaluations": [s["evaluation"] for s in summaries],
    }


class Policy:
    """The policy as an `lm_eval.api.model.LM`, loaded when it is first needed."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._lm: Any = None

    def __call__(self) -> Any:
        if self._lm is None:
            settings, resources = self._stage.settings, self._stage.spec.resources
            self._lm = make_lm(
                settings["engine"],
                self._stage.input("policy"),
                dtype=settings.get("dtype", "auto"),
                max_model_len=settings["max_model_len"],
                resources=resources,
                seed=settings["seed"],
            )
        return self._lm


def _evaluate(stage: Stage, registry: Registry, entry: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    benchmark: Any = get_benchmark(entry["name"])
    inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
    files = files_of(benchmark, entry["variant"], inputs)
    questions = benchmark.load(files, entry.get("limit"), entry.get("sample_seed", 0))
    settings = benchmark.answer_settings(entry, stage.settings)
    weights = stage.spec.inputs["policy"]
    with registry.write() as session:
        checkpoint = records.get_checkpoint(session, weights["fingerprint"], Path(weights["path"]))
        found = records.get_answer_set(session, checkpoint, benchmark, entry, stage.settings, len(questions))
        judge = records.get_judge(session, JUDGE, "none", {"lm_eval": settings["lm_eval"]})
        evaluation = records.get_evaluation(session, found, judge)
        answers = {
            place[0]: {"text": a.text, "finish_reason": a.finish_reason, "detail": a.detail}
            for place, a in records.stored_answers(session, found.id).items()
        }
    reused = sum(question.id in answers for question in questions)
    unit = f"questions of {benchmark.name}"
    stage.progress(reused, len(questions), unit)

    # Only what the sample needs: lm-eval takes an empty sample of a task for all of it.
    needed = dict.fromkeys(question.data["task"] for question in questions)
    folder = stage.work / "lm_tasks"
    shutil.rmtree(folder, ignore_errors=True)
    all_tasks = benchmark.tasks(files)
    write_tasks(folder, [all_tasks[name] for name in needed], settings["shots"])
    tasks = load_tasks(folder, list(needed))
    try:
        done = reused
        chunk = stage.spec.resources.get("chunk", CHUNK.get(settings["engine"], BATCH))
        for rows in answer(tasks, questions, answers.keys(), settings, policy, chunk):
            with registry.write() as session:
                records.store_answers(session, found.id, rows)
            answers |= {row["question_id"]: row for row in rows}
            done += len(rows)
            stage.progress(done, len(questions), unit)
        results = judge_answers(tasks, questions, answers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    values = {q.id: results[q.id] and benchmark.values(results[q.id]["metrics"]) for q in questions}
    scores = benchmark.scores(questions, values)
    with registry.write() as session:
        complete_answer_set(session, found.id)
        verdicts = [_verdict(benchmark, q.id, results[q.id], answers[q.id]) for q in questions]
        records.store_verdicts(session, evaluation.id, verdicts)
        records.store_scores(session, evaluation.id, scores)
        session.get_one(Evaluation, evaluation.id).statistics = {
            "bos_tokens": _common([answers[q.id]["detail"]["bos_tokens"] for q in questions]),
            "notes": benchmark.notes(files),
        } | benchmark.statistics(questions, values)
    return {
        "benchmark": benchmark.name,
        "evaluation": evaluation.key,
        "questions": len(questions) - reused,
        "reused": reused,
        "scores": [score.fields() for score in scores],
    }


def build_requests(
    tasks: Mapping[str, Any], questions: Sequence[Question], settings: Mapping[str, Any], policy: Policy
) -> dict[str, list[Any]]:
    """{question id: its `lm_eval.api.instance.Instance`s}, built by lm-eval for exactly these questions in their order."""
    built = {}
    for name, task in tasks.items():
        chosen = [question for question in questions if question.data["task"] == name]
        if "max_gen_toks" in settings:
            task.set_config(key="generation_kwargs", value={"max_gen_toks": settings["max_gen_toks"]}, update=True)
        template = {}
        if settings["chat_template"]:
            # as lm-eval's command does by default: the shots as turns of the conversation
            template = {
                "apply_chat_template": True,
                "fewshot_as_multiturn": True,
                "chat_template": policy().apply_chat_template,
                "tokenizer_name": policy().tokenizer_name,
                "system_instruction": settings["system_prompt"],
            }
        task.build_all_requests(samples=[question.data["doc_id"] for question in chosen], **template)
        for instance in task.instances:
            built.setdefault(chosen[instance.doc_id].id, []).append(instance)
    return built


def answer(
    tasks: Mapping[str, Any],
    questions: Sequence[Question],
    stored: Collection[str],
    settings: Mapping[str, Any],
    policy: Policy,
    chunk: int,
) -> Iterator[list[dict[str, Any]]]:
    """Yields lists of rows (columns of `db.models.Answer`) of the questions that are not `stored`: to be generated, the longest
    first, so that a model too large for memory says so at once; else in their order, where neighbours share shots.

    The requests of all questions are built even so: the shots of a question depend on the draws before it.
    """
    missing = [question for question in questions if question.id not in stored]
    if not missing:
        return
    requests = build_requests(tasks, questions, settings, policy)
    lm = policy()
    if requests[missing[0].id][0].request_type == "generate_until":
        missing.sort(key=lambda question: -len(requests[question.id][0].args[0]))
    for start in range(0, len(missing), chunk):
        yield _answer_chunk(lm, [(q, requests[q.id]) for q in missing[start : start + chunk]])


def _answer_chunk(lm: Any, asked: Sequence[tuple[Question, list[Any]]]) -> list[dict[str, Any]]:
    lengths = {question.id: _tokens(lm, instances) for question, instances in asked}
    fitting = [(question, instances) for question, instances in asked if lengths[question.id]["fits"]]
    flat = [instance for _, instances in fitting for instance in instances]
    responses = iter(getattr(lm, flat[0].request_type)(flat, disable_tqdm=True) if flat else [])
    given = {question.id: [next(responses) for _ in instances] for question, instances in fitting}
    return [_row(lm, question, instances, lengths[question.id], given.get(question.id)) for question, instances in asked]


def _tokens(lm: Any, instances: Sequence[Any]) -> dict[str, Any]:
    """How long a question is: {"prompt": tokens, "bos": how often it begins with BOS, "fits": whether nothing must be cut}."""
    ids = lm.tok_encode(instances[0].args[0])
    starts = leading_bos(lm.tokenizer, ids)
    if instances[0].request_type == "generate_until":
        longest = len(ids) + instances[0].args[1]["max_gen_toks"]
        return {"prompt": len(ids), "bos": starts, "fits": longest <= lm.max_length}
    longest = max(sum(map(len, lm._encode_pair(*instance.args))) for instance in instances)
    # the last token of a continuation is predicted, never read
    return {"prompt": len(ids), "bos": starts, "fits": longest - 1 <= lm.max_length}


def _row(
    lm: Any, question: Question, instances: Sequence[Any], length: Mapping[str, Any], responses: Sequence[Any] | None
) -> dict[str, Any]:
    detail: dict[str, Any] = {"type": instances[0].request_type, "bos_tokens": length["bos"]}
    text, finish, written = "", PROMPT_TOO_LONG, 0
    if detail["type"] == "generate_until":
        detail["generation_kwargs"] = instances[0].args[1]
        if responses is not None:
            text = responses[0]
            written = len(lm.tok_encode(text, add_special_tokens=False)) if text else 0
            # lm-eval returns text alone: why it ended is told from its length
            finish = "length" if written >= instances[0].args[1]["max_gen_toks"] else "stop"
    else:
        detail["continuations"] = [instance.args[1] for instance in instances]
        detail["logprobs"] = None
        if responses is not None:
            finite = all(math.isfinite(logprob) for logprob, _ in responses)
            finish = "scored" if finite else NOT_FINITE
            detail["logprobs"] = [[float(logprob), greedy] for logprob, greedy in responses] if finite else None
    return {
        "question_id": question.id,
        "category": question.category or None,
        "turn": 1,
        "sample": 0,
        "prompt": instances[0].args[0],
        "text": text,
        "finish_reason": finish,
        "prompt_tokens": length["prompt"],
        "output_tokens": written,
        "seed": None,
        "detail": detail,
    }


def judge_answers(
    tasks: Mapping[str, Any], questions: Sequence[Question], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any] | None]:
    """lm-eval's own filters and metrics on stored answers, without a model.

    {question id: {"metrics": {`metric,filter`: value}, "filtered": {filter: response}}, or None for a question without
    an answer}.
    """
    from lm_eval.api.instance import Instance

    results: dict[str, dict[str, Any] | None] = {}
    for question in questions:
        task = tasks[question.data["task"]]
        responses = responses_of(answers[question.id])
        if responses is None:
            results[question.id] = None
            continue
        # the document as `datasets` gives it, which is what the definitions of lm-eval are written for
        doc = task.eval_docs[question.data["doc_id"]]
        kind = answers[question.id]["detail"]["type"]
        instances = [Instance(kind, doc, (), i, resps=[response]) for i, response in enumerate(responses)]
        task._instances = instances
        task.apply_filters()
        filtered = {name: [instance.filtered_resps[name] for instance in instances] for name in instances[0].filtered_resps}
        metrics = {
            f"{metric},{name}": float(value)
            for name, given in filtered.items()
            for metric, value in task.process_results(doc, given).items()
        }
        results[question.id] = {"metrics": metrics, "filtered": filtered}
    return results


def responses_of(answer: Mapping[str, Any]) -> list[Any] | None:
    """What the model said, in the form that lm-eval's tasks take, from an answer's text, finish_reason and detail.

    None where it could not answer.
    """
    if answer["detail"]["type"] == "generate_until":
        return None if answer["finish_reason"] == PROMPT_TOO_LONG else [answer["text"]]
    logprobs = answer["detail"]["logprobs"]
    return None if logprobs is None else [(logprob, bool(greedy)) for logprob, greedy in logprobs]


def _verdict(
    benchmark: KnowledgeBenchmark, question: str, result: Mapping[str, Any] | None, answer: Mapping[str, Any]
) -> Verdict:
    if result is None:
        return Verdict(question, None, error=answer["finish_reason"])
    values = benchmark.values(result["metrics"])
    return Verdict(question, values[benchmark.headline], raw=values | {"filtered": result["filtered"]})


def _common(values: Sequence[int]) -> int | None:
    """The value that all share; None when they differ."""
    return values[0] if len(set(values)) == 1 else None


if __name__ == "__main__":
    main(run)
