"""TruthfulQA, multiple choice: the numbers are those of the definition and of lm-eval, and nothing is scored twice."""

import hashlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MissingInput, RecipeError
from core.stage import Spec, Stage
from db.models import Answer, AnswerSet, Checkpoint, Evaluation, Judge, Judgment, Score
from evals import likelihood
from evals.benchmark import BENCHMARKS
from evals.knowledge import lm_tasks, truthful_qa
from evals.knowledge.logprobs import Likelihood, make_likelihood
from evals.knowledge.truthful_qa import TruthfulQA, mc1, mc2
from harness.plan import BenchmarkInput, Inputs, Ref, build_evaluation
from harness.recipe import Evaluate

ROOT = Path(__file__).resolve().parent.parent
logprob = st.floats(-60, -0.01)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Likelihood:
    return make_likelihood("transformers", tiny_llama, resources={"choices": 3, "threads": 1})


@pytest.fixture(scope="module")
def questions(starter: Path):
    return TruthfulQA().load({"choices": starter / "truthful_qa.json"})


@pytest.fixture
def score(make_spec):
    """`score(settings, inputs, **fields) -> metrics`: the stage's program in this process."""

    def run(settings: dict, inputs: dict[str, Path], **fields) -> dict:
        stage = Stage(Spec.load(make_spec("likelihood", settings, inputs, **fields)))
        stage.work.mkdir(parents=True, exist_ok=True)
        return likelihood.run(stage) | {"work": stage.work}

    return run


def entry(**fields) -> dict:
    return {"name": "truthful_qa", "variant": "starter", "version": "starter@test", "limit": None, "decoding": {}} | fields


@given(st.lists(st.tuples(logprob, st.booleans()), min_size=2, max_size=8))
def test_metrics_equal_their_definitions(rows: list[tuple[float, bool]]):
    targets = {f"c{i}": int(true) for i, (_, true) in enumerate(rows)}
    sums = {f"c{i}": value for i, (value, _) in enumerate(rows)}
    masses = {name: math.exp(value) for name, value in sums.items()}
    assert mc2(targets, sums) == pytest.approx(sum(masses[n] for n, t in targets.items() if t) / sum(masses.values()), abs=1e-12)
    assert mc1(targets, sums) == float(all(sums["c0"] >= value for value in sums.values()))


def test_mc2_survives_sums_whose_exponentials_are_zero():
    targets = {"true": 1, "false": 0}
    assert mc2(targets, {"true": -2000.0, "false": -2000.0}) == pytest.approx(0.5)
    assert mc2(targets, {"true": -2000.0, "false": -3000.0}) == 1.0


def test_metrics_equal_lm_eval_s_own(questions):
    utils = pytest.importorskip("lm_eval.tasks.truthfulqa.utils", reason="lm-eval's extras are not installed")
    for question in questions:
        targets = question.data["mc2"]
        sums = {choice: -3.0 - 0.37 * len(choice) % 11 for choice in targets}
        theirs = utils.process_results_mc2(
            {"mc2_targets": {"labels": list(targets.values())}}, [(v, False) for v in sums.values()]
        )
        assert mc2(targets, sums) == pytest.approx(theirs["acc"], abs=1e-12)


def test_the_context_is_lm_eval_s(questions):
    (context,) = TruthfulQA().contexts(questions[0])
    assert context.endswith(f"\n\nQ: {questions[0].turns[0]}\nA:")
    assert context.count("\nA:") == 7 and context.startswith("Q: ")


def test_without_lm_eval_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch, questions):
    """A fault that cannot be had otherwise: the package not being installed."""
    monkeypatch.setattr(lm_tasks, "find_spec", lambda name: None)
    truthful_qa._template.cache_clear()
    with pytest.raises(MissingInput, match="pip install lm-eval"):
        TruthfulQA().contexts(questions[0])


def test_each_choice_is_scored_once(questions):
    for question in questions:
        choices = TruthfulQA().choices(question)
        assert len(choices) == len(set(choices)) and set(choices) == set(question.data["mc1"]) | set(question.data["mc2"])


def test_scores_have_intervals_baselines_and_failures(questions):
    benchmark = TruthfulQA()
    values = {q.id: {"mc1": float(i % 2), "mc2": i / 10} for i, q in enumerate(questions)}
    rows = {row.metric: row for row in benchmark.scores(questions, values)}
    assert rows["mc2"].headline and rows["mc2"].value == pytest.approx(45.0) and rows["mc2"].low < 45 < rows["mc2"].high
    assert rows["mc1"].value == 50.0 and "Wilson" in rows["mc1"].method
    assert rows["mc1_chance"].low is None and not rows["mc1_chance"].headline
    values[questions[0].id] = None
    failed = benchmark.scores(questions, values)[0]
    assert (
        failed.value is None
        and failed.n_failed == 1
        and failed.worst == pytest.approx(45.0)
        and failed.best == pytest.approx(55.0)
    )


def test_official_data_and_its_baselines(data: Path):
    benchmark = TruthfulQA()
    questions = benchmark.load({"choices": data / "truthful_qa" / "v0" / "mc_task.json.gz"})
    assert len(questions) == 817
    assert sum(len(q.data["mc1"]) for q in questions) == 4114
    assert sum(len(benchmark.choices(q)) for q in questions) == 5882
    found = {metric: one["value"] for metric, one in benchmark.statistics(questions)["baselines"].items()}
    assert found == {
        "mc1_chance": pytest.approx(22.6, abs=0.05),
        "mc1_longest": pytest.approx(40.15, abs=0.01),
        "mc2_chance": pytest.approx(44.8, abs=0.05),
    }


def test_the_data_of_2025_pair_the_best_answer_with_the_best_incorrect_one(data: Path):
    benchmark = TruthfulQA()
    questions = benchmark.load({"choices": data / "truthful_qa" / "mc_task.json.gz"})
    assert len(questions) == 790 and all(list(q.data["mc0"].values()) == [1, 0] for q in questions)
    outside = [q for q in questions if not set(q.data["mc0"]) <= set(q.data["mc2"])]
    assert outside and all(set(q.data["mc0"]) <= set(benchmark.choices(q)) for q in outside)
    values = {q.id: benchmark.values(q, [{c: -float(len(c)) for c in benchmark.choices(q)}]) for q in questions}
    scores = {row.metric: row.value for row in benchmark.scores(questions, values)}
    shortest = np.mean([min(q.data["mc0"], key=len) == next(iter(q.data["mc0"])) for q in questions])
    assert scores["mc0"] == pytest.approx(100 * shortest) and 0 < scores["mc0_longest"] < 100


def test_requests_and_metrics_are_those_of_lm_eval_0_2_0_under_its_dummy_model(data: Path):
    """tests/test_version_stable.py of lm-eval v0.2.0: documents shuffled, every log-probability drawn from one generator."""
    targets = json.loads((data / "lm_eval_v0.2.0_dummy_targets.json").read_text())["targets"]
    benchmark = TruthfulQA()
    questions = benchmark.load({"choices": data / "truthful_qa" / "v0" / "mc_task.json.gz"})
    random.Random(42).shuffle(questions)
    requests = [
        (benchmark.contexts(question)[0], f" {choice}")
        for question in questions
        for metric in ("mc1", "mc2")
        for choice in question.data[metric]
    ]
    assert hashlib.sha256(json.dumps(requests).encode()).hexdigest() == targets["truthfulqa_mc-v1-loglikelihood"]
    generator = random.Random(42)
    found: dict[str, list[float]] = {"mc1": [], "mc2": []}
    for question in questions:
        for metric, of in (("mc1", mc1), ("mc2", mc2)):
            targets_of = question.data[metric]
            sums = {choice: -generator.random() for choice in targets_of}
            # v0.2.0 takes what stands before the first false choice for the true ones
            first_false = list(targets_of.values()).index(0)
            found[metric].append(of({choice: int(i < first_false) for i, choice in enumerate(targets_of)}, sums))
    wanted = targets["truthfulqa_mc-v1-res.json"]["results"]["truthfulqa_mc"]
    assert np.mean(found["mc1"]) == wanted["mc1"] == 0.23255813953488372
    assert np.mean(found["mc2"]) == pytest.approx(wanted["mc2"], abs=1e-12)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "mc_task.json"
    for content in ('[{"question": "Why?"}]', "{", '{"question": "Why?"}'):
        path.write_text(content)
        with pytest.raises(MissingInput, match=str(path)):
            TruthfulQA().load({"choices": path})


def test_the_likelihood_stage_scores_once_and_stores_every_choice(
    registry, starter: Path, tiny_llama: Path, score, model, questions
):
    settings = {"benchmarks": [entry(limit=6, sample_seed=1)], "seed": 0}
    inputs = {"policy": tiny_llama, "data/truthful_qa/choices": starter / "truthful_qa.json"}
    first = score(settings, inputs, registry=registry.url, resources={"batch": 4})
    assert first["questions"] == 6 and len(first["evaluations"]) == 1
    by_id = {q.id: q for q in questions}
    with registry.read() as session:
        answers = session.query(Answer).all()
        assert len(answers) == 6
        expected = []
        for answer in answers:
            question = by_id[answer.question_id]
            choices = answer.detail["choices"]
            sums = dict(zip(choices, model.loglikelihood(answer.prompt, [f" {c}" for c in choices]), strict=True))
            assert answer.detail["logprobs"] == pytest.approx(list(sums.values()), abs=1e-4) and answer.detail["bos"] == 0
            expected.append(mc2(question.data["mc2"], sums))
        (answer_set,) = session.query(AnswerSet)
        assert answer_set.status == "complete"
        recorded = {"chat_template": False, "delimiter": " ", "engine": "transformers", "dtype": "auto"}
        assert recorded.items() <= answer_set.settings.items()
        assert session.query(Checkpoint).count() == 1 and session.query(Judge).one().kind == "none"
        evaluation = session.query(Evaluation).one()
        assert evaluation.status == "complete" and session.query(Judgment).count() == 6
        assert evaluation.statistics["leading_bos"] == [0]
        scores = {s.metric: s for s in session.query(Score)}
        assert scores["mc2"].value == pytest.approx(100 * sum(expected) / 6, abs=1e-3) and scores["mc2"].headline
        baselines = evaluation.statistics["baselines"]
        assert {m: scores[m].value for m in baselines} == {m: pytest.approx(one["value"]) for m, one in baselines.items()}
    assert json.loads((first["work"] / "summary.json").read_text())["benchmarks"][0]["benchmark"] == "truthful_qa"
    again = score(settings, inputs, registry=registry.url)
    assert again["questions"] == 0 and again["reused"] == 6


def test_with_the_chat_template_the_text_is_one_user_turn_and_the_space_goes(
    registry, starter: Path, tiny_llama: Path, score, model, questions
):
    settings = {"benchmarks": [entry(limit=2, chat_template=True)], "seed": 0, "system_prompt": "Be brief."}
    inputs = {"policy": tiny_llama, "data/truthful_qa/choices": starter / "truthful_qa.json"}
    score(settings, inputs, registry=registry.url)
    by_id = {q.id: q for q in questions}
    with registry.read() as session:
        recorded = session.query(AnswerSet).one().settings
        assert (recorded["chat_template"], recorded["delimiter"], recorded["system_prompt"]) == (True, "", "Be brief.")
        for answer in session.query(Answer):
            (context,) = TruthfulQA().contexts(by_id[answer.question_id])
            turns = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{context}<|im_end|>\n<|im_start|>assistant\n"
            assert answer.prompt == turns and answer.detail["bos"] == 1
            assert answer.detail["logprobs"] == pytest.approx(model.loglikelihood(turns, answer.detail["choices"]), abs=1e-4)


def test_a_killed_stage_goes_on_after_the_questions_that_it_had_scored(registry, tiny_llama: Path, make_spec, score, tmp_path):
    rows = [
        {
            "question": f"What is {i}?",
            "mc1_targets": {f"It is {i}": 1, "Nothing": 0},
            "mc2_targets": {f"It is {i}": 1, "Nothing": 0},
        }
        for i in range(400)
    ]
    choices = tmp_path / "many.json"
    choices.write_text(json.dumps(rows))
    settings = {"benchmarks": [entry()], "seed": 0}
    inputs = {"policy": tiny_llama, "data/truthful_qa/choices": choices}
    fields = {"registry": registry.url, "resources": {"batch": 1, "threads": 1}}
    spec = make_spec("likelihood", settings, inputs, **fields)
    stage = subprocess.Popen([sys.executable, "-m", "evals.likelihood", str(spec)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while stored(registry) < 5 and time.monotonic() < deadline and stage.poll() is None:
            time.sleep(0.01)
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    before = first_answers(registry)
    assert stage.returncode == -signal.SIGKILL and 5 <= len(before) < 400
    finished = score(settings, inputs, **(fields | {"resources": {"batch": 64}}))
    assert finished["reused"] == len(before) and finished["questions"] == 400 - len(before)
    after = first_answers(registry)
    assert len(after) == 400 and all(after[question] == detail for question, detail in before.items())


def stored(registry) -> int:
    with registry.read() as session:
        return session.query(Answer).count()


def first_answers(registry) -> dict:
    with registry.read() as session:
        return {answer.question_id: answer.detail for answer in session.query(Answer)}


@pytest.mark.slow
def test_mc1_and_mc2_of_a_real_model_equal_lm_eval_s_own_run(data: Path, converted_smollm2):
    command = [sys.executable, "-m", "benchmarks.truthful_qa", "--limit", "4", "--json"]
    command += ["--checkpoint", str(converted_smollm2.file("checkpoint"))]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["here"]["mc1"] == pytest.approx(found["lm_eval"]["mc1"], abs=1e-12)
    assert found["here"]["mc2"] == pytest.approx(found["lm_eval"]["mc2"], abs=1e-5)


def planned(*benchmarks: dict, **fields):
    """The evaluation's stages by name, for benchmarks whose files are not looked at."""
    chosen = Evaluate.model_validate({"benchmarks": list(benchmarks), "held_out_reward": False} | fields)
    settings = {"variant": "official", "version": "official@test", "limit": None, "decoding": {}}
    made = [BENCHMARKS[b.name] for b in chosen.benchmarks]
    inputs = [BenchmarkInput(b.name, b.kind, b.verdict, settings, {"choices": Ref(path="x", fingerprint="y")}) for b in made]
    return build_evaluation(chosen, 1, Ref(path="p", fingerprint="f"), Inputs(None, [], inputs)).nodes


def test_the_plan_hands_template_and_engine_to_the_stages_that_need_them():
    nodes = planned(
        {"name": "truthful_qa", "chat_template": True},
        {"name": "truthful_qa_binary"},
        {"name": "truthful_qa_generation"},
        likelihood_engine="vllm",
    )
    assert {node.program for node in nodes.values()} == {"evals.answer", "evals.likelihood", "evals.metrics"}
    scored = nodes["likelihood[policy]"].settings
    assert scored["likelihood_engine"] == "vllm"
    assert [b.get("chat_template") for b in scored["benchmarks"]] == [True, None]
    assert [b["name"] for b in nodes["metrics[policy]"].settings["benchmarks"]] == ["truthful_qa_generation"]
    with pytest.raises(RecipeError, match="human_eval is always asked through the chat template"):
        planned({"name": "human_eval", "chat_template": False})


@pytest.mark.parametrize("name", ["truthful_qa", "truthful_qa_binary", "truthful_qa_generation"])
def test_what_moves_the_numbers_is_in_the_identity(name: str):
    benchmark, stage = BENCHMARKS[name], {"engine": "vllm", "likelihood_engine": "transformers", "dtype": "float32"}
    plain, chat = (benchmark.answer_settings(entry(name=name, chat_template=on), stage) for on in (False, True))
    assert plain != chat and plain == benchmark.answer_settings(entry(name=name), stage)
    other = benchmark.answer_settings(entry(name=name), stage | {"engine": "transformers", "likelihood_engine": "vllm"})
    assert other != plain
    # no system prompt can be in a text without turns: recipes with different ones rank together
    assert plain == benchmark.answer_settings(entry(name=name), stage | {"system_prompt": "Be brief."})
