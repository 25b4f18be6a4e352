"""The stage that runs lm-eval: equal to lm-eval's own run, resumed by question, keyed by weights."""

import gzip
import json

import pytest
from sqlalchemy import select

from db.models import Answer, AnswerSet, Evaluation, Judgment, Score
from db.registry import Registry
from evals import lm_eval_stage
from evals.benchmark import PROMPT_TOO_LONG, get_benchmark
from evals.knowledge.lm_eval_models import make_lm
from tests.knowledge_runs import LIMIT, PATHS, entry, files, lm_evals_own, rows, run_here


@pytest.fixture
def evaluate(make_spec, tiny_llama, registry, data):
    """`evaluate(*entries, into=registry, **resources) -> metrics`."""

    def run(*entries: dict, into: Registry = registry, **resources) -> dict:
        return run_here(make_spec, into, data, tiny_llama, list(entries), **resources)

    return run


@pytest.mark.parametrize("name", PATHS)
def test_equals_lm_evals_own_run_on_the_same_weights(name, evaluate, registry, data, tiny_llama, tmp_path) -> None:
    evaluate(entry(name))
    theirs = lm_evals_own(data, name, tiny_llama, tmp_path / "tasks")
    benchmark = get_benchmark(name)
    answers = {answer.question_id: answer for answer in rows(registry, Answer)}
    judged = {judgment.question_id: judgment for judgment in rows(registry, Judgment)}
    compared = 0
    for task, samples in theirs["samples"].items():
        for sample in samples:
            row = benchmark.tasks(files(data, name))[task].splits["test"][sample["doc_id"]]
            ours = benchmark.question_id(task, sample["doc_id"], row)
            assert answers[ours].prompt == sample["arguments"][0][0]
            if name == "gsm8k":
                assert answers[ours].text == sample["resps"][0][0]
            else:
                expected = [response[0][0] for response in sample["resps"]]
                assert [logprob for logprob, _ in answers[ours].detail["logprobs"]] == pytest.approx(expected, abs=1e-4)
            for metric, key in benchmark.metrics.items():
                theirs_name, found_by = key.split(",")
                if sample["filter"] == found_by:
                    assert judged[ours].raw[metric] == sample[theirs_name]
                    compared += 1
    assert compared == LIMIT * len(benchmark.metrics)
    sizes = {task: theirs["n-samples"][task]["effective"] for task in theirs["results"]}
    for score in rows(registry, Score):
        key = benchmark.metrics[score.metric]
        mean = sum(theirs["results"][task][key] * n for task, n in sizes.items()) / LIMIT
        assert (score.value, score.n, score.n_failed) == (pytest.approx(100 * mean), LIMIT, 0)


def test_a_run_that_dies_is_resumed_by_question_and_ends_as_the_unbroken_one(
    evaluate, registry, data, tiny_llama, tmp_path, monkeypatch
) -> None:
    class Killed(Exception):
        pass

    asked: list[int] = []

    def dying(*arguments, **options):
        """A fault that cannot be had otherwise: the process dies in its second chunk."""
        lm = make_lm(*arguments, **options)
        real = lm.generate_until

        def generate_until(requests, **more):
            asked.append(len(requests))
            if len(asked) == 2:
                raise Killed
            return real(requests, **more)

        lm.generate_until = generate_until
        return lm

    monkeypatch.setattr(lm_eval_stage, "make_lm", dying)
    with pytest.raises(Killed):
        evaluate(entry("gsm8k"), chunk=4)
    first = rows(registry, Answer)
    assert len(first) == 4

    resumed = evaluate(entry("gsm8k"), chunk=4)
    assert asked[2:] == [LIMIT - 4]
    assert (resumed["reused"], resumed["questions"]) == (4, LIMIT - 4)

    def never(*arguments, **options):
        raise AssertionError("the model was loaded although every answer is stored")

    monkeypatch.setattr(lm_eval_stage, "make_lm", never)
    again = evaluate(entry("gsm8k"), chunk=4)
    assert (again["reused"], again["questions"]) == (LIMIT, 0)
    broken = {a.question_id: a.text for a in rows(registry, Answer)}

    monkeypatch.setattr(lm_eval_stage, "make_lm", make_lm)
    unbroken = Registry.open(f"sqlite:///{tmp_path / 'unbroken.db'}")
    evaluate(entry("gsm8k"), into=unbroken, chunk=4)
    assert {a.question_id: a.text for a in rows(unbroken, Answer)} == broken
    unbroken.close()


def test_settings_are_the_identity(evaluate, registry) -> None:
    evaluate(entry("arc_challenge", shots=2))
    evaluate(entry("arc_challenge", shots=1))
    evaluate(entry("arc_challenge", shots=2, chat_template=True))
    found = rows(registry, AnswerSet)
    assert len({one.key for one in found}) == len({one.settings_hash for one in found}) == 3
    first = found[0].settings
    assert (first["shots"], first["shot_sampler"], first["chat_template"], first["lm_eval"]) == (2, "seed 1234", False, "0.4.13")
    prompts = {a.answer_set_id: a.prompt for a in rows(registry, Answer)}
    assert prompts[found[2].id].startswith("<|im_start|>user\n") and prompts[found[2].id].endswith("<|im_start|>assistant\n")
    assert prompts[found[2].id].count("<|im_start|>assistant") == 3  # two shots as turns, and the answer to come
    # this checkpoint's template begins with its BOS token, which is not added a second time
    counts = [evaluation.statistics["bos_tokens"] for evaluation in rows(registry, Evaluation)]
    assert counts == [0, 0, 1]


def test_a_prompt_that_does_not_fit_is_a_failed_question_and_is_never_cut(evaluate, registry) -> None:
    evaluate(entry("mmlu", shots=5, limit=16))
    failed = [answer for answer in rows(registry, Answer) if answer.finish_reason == PROMPT_TOO_LONG]
    assert failed and all(answer.prompt_tokens > 1000 and answer.detail["logprobs"] is None for answer in failed)
    errors = {judgment.question_id for judgment in rows(registry, Judgment) if judgment.error == PROMPT_TOO_LONG}
    assert errors == {answer.question_id for answer in failed}
    (score,) = rows(registry, Score)
    assert (score.value, score.n, score.n_failed) == (None, 16 - len(failed), len(failed))
    assert score.worst < score.best
    (evaluation,) = rows(registry, Evaluation)
    assert sum(part["n_failed"] for part in evaluation.statistics["subjects"].values()) == len(failed)
    assert sum(part["n"] for part in evaluation.statistics["categories"].values()) == 16 - len(failed)


def test_the_missing_training_rows_of_arc_are_said(data) -> None:
    found = files(data, "arc_challenge")
    (note,) = get_benchmark("arc_challenge").notes(found)
    assert "1,056 of the 1,119" in note
    with gzip.open(found["shots"], "rt") as handle:
        assert sum(bool(json.loads(line)) for line in handle) == 1056


@pytest.mark.slow
def test_vllm_answers_as_transformers_does(run_stage, evaluate, registry, data, tiny_llama, tmp_path) -> None:
    names = ("gsm8k", "arc_challenge")
    settings = {"seed": 0, "engine": "vllm", "max_model_len": 1024, "dtype": "float32"}
    settings["benchmarks"] = [entry(name, limit=3) for name in names]
    inputs = {"policy": tiny_llama}
    for name in names:
        inputs |= {f"data/{name}/{asset}": path for asset, path in files(data, name).items()}
    run_stage("evals.lm_eval_stage", "knowledge", settings, inputs, registry=str(registry.url), resources={"threads": 1})
    evaluate(*(entry(name, limit=3) for name in names))
    answers = rows(registry, Answer)
    by_vllm, by_transformers = answers[:6], {(a.prompt): a for a in answers[6:]}
    assert len(answers) == 12
    for answer in by_vllm:
        other = by_transformers[answer.prompt]
        assert answer.text == other.text
        if answer.detail["type"] == "loglikelihood":
            theirs = [logprob for logprob, _ in other.detail["logprobs"]]
            assert [logprob for logprob, _ in answer.detail["logprobs"]] == pytest.approx(theirs, abs=1e-3)
    with registry.read() as session:
        engines = {one.settings["engine"] for one in session.scalars(select(AnswerSet))}
    assert engines == {"vllm", "transformers"}
