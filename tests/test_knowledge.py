"""GSM8K, MMLU and ARC-Challenge: their data give lm-eval's published requests and metrics, and their scores are lm-eval's."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import RecipeError
from evals.benchmark import Question, get_benchmark, read_jsonl
from evals.knowledge.lm_tasks import load_tasks, mmlu_categories, write_tasks
from evals.knowledge.tasks import pooled_standard_error
from evals.lm_eval_stage import judge_answers
from harness.plan import Inputs, Ref, build_evaluation
from harness.recipe import Evaluate
from harness.resolve import resolve_benchmarks
from tests.knowledge_runs import files

STAGE = {"engine": "transformers", "dtype": "float32"}
V020 = {
    "hendrycksTest": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nChoices:\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
        "D. {{choices[3]}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    },
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "filter_list": [
            {
                "name": "strict-match",
                "filter": [{"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
"""How the tasks of version 0 asked, as settings of today's lm-eval (v0.2.0, lm_eval/tasks/)."""


@pytest.fixture(scope="module")
def targets(data) -> dict:
    return json.loads((data / "lm_eval_v0.2.0_dummy_targets.json").read_text())["targets"]


def _version_0(family: str, rows: list[dict], folder: Path):
    """Today's task object asking in the way of version 0, over the rows in the order of v0.2.0's evaluator."""
    from lm_eval.tasks import TaskManager

    shuffled = list(rows)
    random.Random(42).shuffle(shuffled)
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shuffled))
    config = V020[family] | {
        "task": "version_0",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "num_fewshot": 0,
    }
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load([config])["tasks"]["version_0"]
    task.build_all_requests()
    return task


def _metrics(task, answers: Iterator[dict]) -> dict[str, float]:
    questions = [Question(str(i), "", (), {"task": "version_0", "doc_id": i}) for i in range(len(task.eval_docs))]
    stored = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    results = judge_answers({"version_0": task}, questions, stored)
    names = results["0"]["metrics"]
    return {name: sum(results[question.id]["metrics"][name] for question in questions) / len(questions) for name in names}


def _hash(requests: list) -> str:
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()


QUICK = ("abstract_algebra", "econometrics", "high_school_us_history", "human_aging")


@pytest.mark.parametrize("chosen", [QUICK, pytest.param(None, marks=pytest.mark.slow)], ids=["four", "all"])
def test_mmlu_has_the_requests_and_metrics_of_lm_evals_dummy_model(chosen, targets, data, tmp_path) -> None:
    by_subject: dict[str, list[dict]] = {}
    for row in read_jsonl(data / "mmlu/test.jsonl.gz"):
        by_subject.setdefault(row["subject"], []).append(row)
    listed = sorted(name.split("-")[1] for name in targets if name.startswith("hendrycks") and name.endswith("loglikelihood"))
    assert len(listed) == 37
    for subject in chosen or listed:
        task = _version_0("hendrycksTest", by_subject[subject], tmp_path / subject)
        assert _hash([instance.args for instance in task.instances]) == targets[f"hendrycksTest-{subject}-v0-loglikelihood"]
        dummy = random.Random(42)
        answers = (
            {"text": "", "finish_reason": "scored", "detail": {"type": "loglikelihood", "logprobs": logprobs}}
            for logprobs in [[[-dummy.random(), False] for _ in range(4)] for _ in by_subject[subject]]
        )
        found = _metrics(task, answers)
        expected = targets[f"hendrycksTest-{subject}-v0-res.json"]["results"][f"hendrycksTest-{subject}"]
        assert found == pytest.approx({"acc,none": expected["acc"], "acc_norm,none": expected["acc_norm"]}, abs=1e-12)


def test_gsm8k_has_the_requests_and_metric_of_lm_evals_dummy_model(targets, data, tmp_path) -> None:
    task = _version_0("gsm8k", read_jsonl(data / "gsm8k/test.jsonl.gz"), tmp_path / "gsm8k")
    asked = [(instance.args[0], instance.args[1]["until"]) for instance in task.instances]
    assert _hash(asked) == targets["gsm8k-v0-greedy_until"]
    lol = {"text": "lol", "finish_reason": "stop", "detail": {"type": "generate_until"}}
    found = _metrics(task, iter([lol] * len(asked)))
    assert found == {"exact_match,strict-match": targets["gsm8k-v0-res.json"]["results"]["gsm8k"]["acc"]}


@pytest.mark.parametrize("name, size", [("gsm8k", 1319), ("mmlu", 14042), ("arc_challenge", 1172)])
def test_every_question_has_a_name_of_its_own(name, size, data) -> None:
    questions = get_benchmark(name).load(files(data, name))
    assert len(questions) == len({question.id for question in questions}) == size
    sampled = get_benchmark(name).load(files(data, name), 50, 3)
    assert len(sampled) == 50 and {q.id for q in sampled} <= {q.id for q in questions}
    assert sampled != get_benchmark(name).load(files(data, name), 50, 4)


def test_the_references_of_gsm8k_are_right_by_both_extractions(data, tmp_path) -> None:
    benchmark = get_benchmark("gsm8k")
    questions = benchmark.load(files(data, "gsm8k"), 200, 0)
    tasks = benchmark.tasks(files(data, "gsm8k"))
    write_tasks(tmp_path, list(tasks.values()), 0)
    loaded = load_tasks(tmp_path, list(tasks))

    def judged(text):
        answers = {
            q.id: {"text": text(q.data["row"]["answer"]), "finish_reason": "stop", "detail": {"type": "generate_until"}}
            for q in questions
        }
        results = judge_answers(loaded, questions, answers)
        values = {q.id: benchmark.values(results[q.id]["metrics"]) for q in questions}
        return {row.metric: row.value for row in benchmark.scores(questions, values)}

    assert judged(lambda answer: answer) == {"exact_match_flexible": 100.0, "exact_match_strict": 100.0}
    # what a chat model writes: right, but without the four hashes
    chatty = judged(lambda answer: "The answer is **" + answer.split("#### ")[1] + "**")
    assert chatty == {"exact_match_flexible": 100.0, "exact_match_strict": 0.0}


def test_shots_that_are_not_there_are_refused(data, tmp_path) -> None:
    tasks = get_benchmark("mmlu").tasks(files(data, "mmlu"))
    with pytest.raises(RecipeError, match="mmlu_anatomy has 5 rows to take shots from"):
        write_tasks(tmp_path, [tasks["mmlu_anatomy"]], 6)


def test_the_papers_shots_unless_the_recipe_says_otherwise() -> None:
    shots = {name: get_benchmark(name).answer_settings({}, STAGE)["shots"] for name in ("gsm8k", "mmlu", "arc_challenge")}
    assert shots == {"gsm8k": 8, "mmlu": 5, "arc_challenge": 25}
    gsm8k = get_benchmark("gsm8k")
    settings = gsm8k.answer_settings({"shots": 0, "decoding": {"max_tokens": 64}, "limit": 5, "sample_seed": 7}, STAGE)
    assert (settings["shots"], settings["max_gen_toks"], settings["sample_seed"]) == (0, 64, 7)
    assert gsm8k.answer_settings({"sample_seed": 7}, STAGE) == gsm8k.answer_settings({"sample_seed": 8}, STAGE)
    for name in ("gsm8k", "mmlu", "arc_challenge"):
        assert {"lm_eval", "task_version", "shot_sampler", "chat_template", "engine", "dtype"} <= set(
            get_benchmark(name).answer_settings({}, STAGE)
        )


def test_the_task_version_in_the_identity_is_the_packages(data, tmp_path) -> None:
    for name in ("gsm8k", "arc_challenge", "mmlu"):
        benchmark = get_benchmark(name)
        task = next(iter(benchmark.tasks(files(data, name)).values()))
        write_tasks(tmp_path / name, [task], benchmark.shots)
        loaded = load_tasks(tmp_path / name, [task.name])[task.name]
        assert str(loaded.VERSION) == benchmark.task_version
        assert (loaded.config.fewshot_config.sampler, loaded.config.num_fewshot) == (benchmark.shot_sampler, benchmark.shots)


def test_mmlu_is_weighted_by_size_and_its_error_is_lm_evals() -> None:
    from lm_eval.api.metrics import mean_stderr, pooled_sample_stderr

    mmlu, values, questions = get_benchmark("mmlu"), {}, []
    sizes = {"anatomy": (10, 3), "astronomy": (40, 30), "philosophy": (5, 5), "virology": (8, 1)}
    for subject, (n, right) in sizes.items():
        for i in range(n):
            questions.append(Question(f"{subject}/{i}", subject, ("",)))
            values[f"{subject}/{i}"] = {"acc": float(i < right)}
    (score,) = mmlu.scores(questions, values)
    assert score.value == pytest.approx(100 * 39 / 63)
    parts = [[1.0] * right + [0.0] * (n - right) for n, right in sizes.values()]
    expected = pooled_sample_stderr([mean_stderr(part) for part in parts], [len(part) for part in parts])
    assert score.stderr == pytest.approx(100 * expected)
    statistics = mmlu.statistics(questions, values)
    assert statistics["subjects"]["anatomy"] == {
        "acc": pytest.approx(30.0),
        "stderr": pytest.approx(100 * mean_stderr(parts[0])),
        "n": 10,
        "n_failed": 0,
    }
    assert {name: part["n"] for name, part in statistics["categories"].items()} == {"stem": 50, "humanities": 5, "other": 8}

    values["virology/0"] = None
    (score,) = mmlu.scores(questions, values)
    assert (score.n, score.n_failed, score.value) == (62, 1, None)
    assert mmlu.statistics(questions, values)["subjects"]["virology"]["n_failed"] == 1


def test_parts_of_one_question_have_no_spread() -> None:
    assert pooled_standard_error([[1.0], [0.0]]) is None


def test_mmlus_57_subjects_are_in_four_categories(data) -> None:
    subjects = {row["subject"] for row in read_jsonl(data / "mmlu/test.jsonl.gz")}
    assert subjects == set(mmlu_categories()) and len(subjects) == 57
    assert set(mmlu_categories().values()) == {"stem", "humanities", "social_sciences", "other"}


def test_a_recipes_shots_reach_a_stage_of_their_own(data, monkeypatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))
    listed = [{"name": "gsm8k", "shots": 5}, {"name": "mmlu", "chat_template": True}, {"name": "truthful_qa"}]
    evaluate = Evaluate.model_validate({"benchmarks": listed, "engine": "transformers", "held_out_reward": False})
    inputs = Inputs(base=None, sources=[], benchmarks=resolve_benchmarks(evaluate))
    plan = build_evaluation(evaluate, 42, Ref(path="/policy", fingerprint="p"), inputs)
    assert list(plan.nodes) == ["likelihood[policy]", "knowledge[policy]"]
    node = plan.nodes["knowledge[policy]"]
    assert node.program == "evals.lm_eval_stage" and node.registry
    gsm8k, mmlu = node.settings["benchmarks"]
    assert (gsm8k["shots"], "shots" in mmlu, mmlu["chat_template"]) == (5, False, True)
    assert {"data/gsm8k/shots", "data/mmlu/questions"} <= set(node.inputs)


def test_shots_of_a_benchmark_that_shows_none_are_refused(data, monkeypatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))
    evaluate = Evaluate.model_validate({"benchmarks": [{"name": "truthful_qa", "shots": 5}]})
    with pytest.raises(RecipeError, match="truthful_qa shows no worked examples"):
        resolve_benchmarks(evaluate)
