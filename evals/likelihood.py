"""Stage program `likelihood`: scores given choices by their log-probability under the policy, in transformers or vLLM.

Guarantee: questions are committed in batches and never scored twice; the log-probability of every choice is stored, so
that metrics can be derived again without the model. The model is not loaded when everything is stored.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from core.artifacts import write_durably
from core.errors import MissingInput
from core.stage import Stage, main
from db.models import Evaluation
from db.record import complete_answer_set
from db.registry import Registry
from evals import records
from evals.benchmark import DEFAULT_CONTEXT, PROMPT_TOO_LONG, Question, ScoreRow, context_setting, files_of, get_benchmark
from evals.knowledge.logprobs import Likelihood, encode_text, leading_bos, make_likelihood
from evals.verdict import Verdict
from train.chat import render

JUDGE = "log-probability"

Logprobs = Mapping[str, float]
"""{choice: summed log-probability in nats} after one context."""


class LikelihoodBenchmark(Protocol):
    """What a benchmark with `kind = "likelihood"` has beside the methods of `Benchmark`.

    Its `answer_settings` hold `likelihood_settings`, whose "delimiter" stands between a context and a choice.
    """

    def contexts(self, question: Question) -> list[str]:
        """The texts after each of which every choice is scored; one for most benchmarks."""

    def choices(self, question: Question) -> list[str]:
        """The distinct texts to be scored after each context."""

    def values(self, question: Question, logprobs: Sequence[Logprobs]) -> dict[str, float]:
        """Metric -> value of one question, the headline metric among them; `logprobs` has one element a context."""

    def scores(self, questions: list[Question], values: Mapping[str, dict[str, float] | None]) -> list[ScoreRow]:
        """Metrics over all questions from {question id: values, or None where the question could not be scored}."""

    def statistics(self, questions: list[Question]) -> dict[str, Any]:
        """For `evaluation.statistics`: what is known of the questions without any model."""


def likelihood_settings(entry: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides log-probabilities beside texts and weights, for `answer_settings`.

    With the chat template the whole context becomes one user turn (after the system prompt, if any), and the space before
    the answer goes, as in lm-evaluation-harness 0.4.13 under --apply_chat_template (`ConfigurableTask.construct_requests`).
    A context other than the default is named where vLLM is the engine; transformers has the model's own.
    """
    chat, engine = bool(entry.get("chat_template")), stage_settings.get("likelihood_engine", "transformers")
    return {
        "dtype": stage_settings.get("dtype", "auto"),
        "engine": engine,
        "chat_template": chat,
        "system_prompt": stage_settings.get("system_prompt") if chat else None,
        "delimiter": "" if chat else " ",
        "bos": "one, where the tokenizer writes one",
    } | (context_setting(stage_settings) if engine == "vllm" else {})


def run(stage: Stage) -> dict[str, Any]:
    """Returns {"questions" (scored now), "reused", "evaluations": [keys]}."""
    entries = [e for e in stage.settings["benchmarks"] if get_benchmark(e["name"]).kind == "likelihood"]
    registry = records.open_registry(stage.spec)
    policy = _Policy(stage)
    try:
        summaries = [_score(stage, registry, entry, policy) for entry in entries]
    finally:
        policy.close()
        registry.close()
    write_durably(stage.work / "summary.json", json.dumps({"benchmarks": summaries}, indent=1))
    return {
        "questions": sum(s["questions"] for s in summaries),
        "reused": sum(s["reused"] for s in summaries),
        "evaluations": [s["evaluation"] for s in summaries],
    }


class _Policy:
    """The model, loaded when it is first needed."""

    def __init__(self, stage: Stage):
        self._stage = stage
        self._model: Likelihood | None = None

    def __call__(self) -> Likelihood:
        if self._model is None:
            settings = self._stage.settings
            self._model = make_likelihood(
                settings.get("likelihood_engine", "transformers"),
                self._stage.input("policy"),
                dtype=settings.get("dtype", "auto"),
                max_model_len=settings.get("max_model_len", DEFAULT_CONTEXT),
                resources=self._stage.spec.resources,
            )
        return self._model

    def close(self) -> None:
        if self._model is not None:
            self._model.close()


def _score(stage: Stage, registry: Registry, entry: Mapping[str, Any], policy: _Policy) -> dict[str, Any]:
    benchmark: Any = get_benchmark(entry["name"])
    inputs = {name: Path(value["path"]) for name, value in stage.spec.inputs.items()}
    files = files_of(benchmark, entry["variant"], inputs)
    questions = benchmark.load(files, entry.get("limit"), entry.get("sample_seed", 0))
    settings = benchmark.answer_settings(entry, stage.settings)
    weights = stage.spec.inputs["policy"]
    with registry.write() as session:
        checkpoint = records.get_checkpoint(session, weights["fingerprint"], Path(weights["path"]))
        found = records.get_answer_set(session, checkpoint, benchmark, entry, stage.settings, len(questions))
        judge = records.get_judge(session, JUDGE, "none", {})
        evaluation = records.get_evaluation(session, found, judge)
        details = {place[:2]: answer.detail for place, answer in records.stored_answers(session, found.id).items()}
    missing = [q for q in questions if any((q.id, turn) not in details for turn in _turns(benchmark, q))]
    reused = len(questions) - len(missing)
    stage.progress(reused, len(questions), "questions")
    size = stage.spec.resources.get("batch", 32)
    for start in range(0, len(missing), size):
        rows = answer_rows(benchmark, missing[start : start + size], policy(), settings)
        with registry.write() as session:
            records.store_answers(session, found.id, rows)
        details |= {(row["question_id"], row["turn"]): row["detail"] for row in rows}
        stage.progress(min(reused + start + size, len(questions)), len(questions), "questions")
    values = {q.id: question_values(benchmark, q, [details[q.id, t] for t in _turns(benchmark, q)]) for q in questions}
    scores = benchmark.scores(questions, values)
    statistics = benchmark.statistics(questions) | {"leading_bos": sorted({detail["bos"] for detail in details.values()})}
    with registry.write() as session:
        complete_answer_set(session, found.id)
        records.store_verdicts(session, evaluation.id, [_verdict(benchmark.headline, *item) for item in values.items()])
        row = session.get_one(Evaluation, evaluation.id)
        row.statistics = {**(row.statistics or {}), **statistics}
        records.store_scores(session, evaluation.id, scores)
    return {
        "benchmark": benchmark.name,
        "evaluation": evaluation.key,
        "questions": len(missing),
        "reused": reused,
        "scores": [score.fields() for score in scores],
    }


def _turns(benchmark: LikelihoodBenchmark, question: Question) -> range:
    return range(1, len(benchmark.contexts(question)) + 1)


def answer_rows(
    benchmark: LikelihoodBenchmark, questions: Sequence[Question], model: Likelihood, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Columns of `db.models.Answer`, one row a context (its number is the turn): no text; `detail` holds the choices, their
    log-probabilities (None if too long) and how many BOS tokens the context began with."""
    places = [
        (question, turn, rendered(model, context, settings))
        for question in questions
        for turn, context in enumerate(benchmark.contexts(question), 1)
    ]
    delimiter = settings["delimiter"]
    requests = [(text, [f"{delimiter}{choice}" for choice in benchmark.choices(question)]) for question, _, text in places]
    rows = []
    for (question, turn, text), logprobs in zip(places, model.loglikelihoods(requests), strict=True):
        ids = encode_text(model.tokenizer, text)
        rows.append(
            {
                "question_id": question.id,
                "category": question.category or None,
                "turn": turn,
                "sample": 0,
                "prompt": text,
                "text": "",
                "finish_reason": PROMPT_TOO_LONG if logprobs is None else "scored",
                "prompt_tokens": len(ids),
                "output_tokens": 0,
                "seed": None,
                "detail": {
                    "choices": benchmark.choices(question),
                    "logprobs": logprobs,
                    "bos": leading_bos(model.tokenizer, ids),
                },
            }
        )
    return rows


def rendered(model: Likelihood, context: str, settings: Mapping[str, Any]) -> str:
    """The text before a choice: the context as it is, or as a user turn of the chat template."""
    if not settings["chat_template"]:
        return context
    if not model.tokenizer.chat_template:
        raise MissingInput(
            "This checkpoint has no chat template; put its chat_template.jinja there, or set chat_template: false."
        )
    system = [{"role": "system", "content": settings["system_prompt"]}] if settings["system_prompt"] else []
    return render(model.tokenizer, [*system, {"role": "user", "content": context}])[0]


def question_values(
    benchmark: LikelihoodBenchmark, question: Question, details: Sequence[Mapping[str, Any]]
) -> dict[str, float] | None:
    """The question's metrics from its stored answers' details, one a context; None when one could not be scored."""
    if any(detail["logprobs"] is None for detail in details):
        return None
    logprobs = [dict(zip(detail["choices"], detail["logprobs"], strict=True)) for detail in details]
    return benchmark.values(question, logprobs)


def _verdict(headline: str, question: str, values: dict[str, float] | None) -> Verdict:
    if values is None:
        return Verdict(question, None, error=PROMPT_TOO_LONG)
    return Verdict(question, values[headline], raw=values)


if __name__ == "__main__":
    main(run)
