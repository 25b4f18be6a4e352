"""Answering: turns see earlier turns, nothing stored is asked again, and a killed stage goes on where it was."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from db.models import Answer, AnswerSet
from evals.answer import Policy, Work, answer_turn
from evals.benchmark import Benchmark, Question

ROOT = Path(__file__).resolve().parent.parent
ENGINE = {"engine": "transformers", "system_prompt": None, "max_model_len": 256, "dtype": "float32", "seed": 3}


def entry(**fields) -> dict:
    return {
        "name": "human_eval",
        "variant": "starter",
        "version": "starter@test",
        "limit": 4,
        "sample_seed": 0,
        "decoding": {"temperature": 1.0, "max_tokens": 12},
    } | fields


class TwoTurns(Benchmark):
    name = "two_turns"
    verdict = "judge"
    assets = {"starter": ("questions",)}
    headline = "score"

    def load(self, files: Mapping[str, Path], limit: int | None = None, sample_seed: int = 0) -> list[Question]:
        return [Question("a", "", ("One?", "Two?")), Question("b", "", ("Why?",)), Question("c", "", ("word " * 600, "Then?"))]


@pytest.fixture(scope="module")
def policy(tiny_llama: Path) -> Policy:
    return Policy(tiny_llama, ENGINE | {"system_prompt": "Be brief."}, {"threads": 1})


def work(overrides: Mapping) -> Work:
    benchmark = TwoTurns()
    return Work(benchmark, overrides, benchmark.load({}), 0, "key", {})


def by_place(rows: list[dict]) -> dict:
    return {(row["question_id"], row["turn"], row["sample"]): row for row in rows}


def test_the_second_turn_sees_the_answer_of_the_first(policy: Policy):
    todo = work({"temperature": 1.0, "max_tokens": 8, "n": 2})
    first = by_place(answer_turn(todo, todo.questions, 1, policy, seed=0))
    second = by_place(answer_turn(todo, todo.questions, 2, policy, seed=0))
    assert set(first) == {(q, 1, s) for q in "abc" for s in (0, 1)} and set(second) == {(q, 2, s) for q in "ac" for s in (0, 1)}
    for sample in (0, 1):
        row = second["a", 2, sample]
        text, ids = policy.prompt(
            [
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": first["a", 1, sample]["text"]},
                {"role": "user", "content": "Two?"},
            ]
        )
        assert row["prompt"] == text and row["prompt_tokens"] == len(ids) and "Be brief." in text
        assert 1 <= row["output_tokens"] <= 8 and row["finish_reason"] in ("stop", "length")
    assert len({row["seed"] for row in [*first.values(), *second.values()]}) == 10


def test_a_prompt_without_room_fails_and_one_with_little_room_gets_it(policy: Policy):
    todo = work({"temperature": 0.0, "max_tokens": 10_000})
    rows = by_place(answer_turn(todo, todo.questions, 1, policy, seed=0))
    long = rows["c", 1, 0]
    assert (long["text"], long["finish_reason"], long["output_tokens"]) == ("", "prompt_too_long", 0)
    assert long["prompt_tokens"] > 256 and "word word" in long["prompt"]
    assert rows["a", 1, 0]["detail"]["max_tokens"] == 256 - rows["a", 1, 0]["prompt_tokens"]


def test_an_answer_depends_on_its_question_and_sample_alone(policy: Policy):
    together, alone = work({"temperature": 1.0, "max_tokens": 8}), work({"temperature": 1.0, "max_tokens": 8})
    rows = by_place(answer_turn(together, together.questions, 1, policy, seed=5))
    (row,) = answer_turn(alone, [alone.questions[1]], 1, policy, seed=5)
    assert row == rows["b", 1, 0]
    other = work({"temperature": 1.0, "max_tokens": 8})
    assert answer_turn(other, [other.questions[1]], 1, policy, seed=6)[0]["seed"] != row["seed"]


def test_what_is_stored_is_not_asked_again(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    todo = work({"temperature": 0.0, "max_tokens": 4})
    todo.texts |= {("a", 1, 0): "Stored.", ("b", 1, 0): "Stored too."}
    assert [q.id for q in todo.unfinished()] == ["a", "c"]
    rows = by_place(answer_turn(todo, todo.questions, 1, policy, seed=0))
    assert set(rows) == {("c", 1, 0)}
    rows = by_place(answer_turn(todo, todo.questions, 2, policy, seed=0))
    assert "Stored." in rows["a", 2, 0]["prompt"]


def stored(registry) -> dict[tuple, tuple]:
    with registry.read() as session:
        return {(a.question_id, a.turn, a.sample): (a.id, a.text, a.seed) for a in session.query(Answer)}


def test_the_stage_stores_answers_and_needs_no_engine_once_it_has_them(registry, starter, tiny_llama, tmp_path, run_stage):
    policy = tmp_path / "policy"
    shutil.copytree(tiny_llama, policy)
    settings = {"benchmarks": [entry()], **ENGINE, "max_model_len": 512}
    inputs = {"policy": policy, "data/human_eval/problems": starter / "human_eval.jsonl"}
    first = run_stage(
        "evals.answer", "answer-tiny", settings, inputs, registry=registry.url, resources={"batch": 3, "threads": 1}
    )
    assert (first.metrics["answers"], first.metrics["reused"]) == (4, 0)
    assert first.metrics["tokens"] > 0 and first.metrics["tokens_per_second"] > 0
    with registry.read() as session:
        (answer_set,) = session.query(AnswerSet)
        assert answer_set.key in first.metrics["answer_sets"]
        assert (answer_set.status, answer_set.n_questions) == ("complete", 4) and answer_set.mean_tokens > 0
        assert all("<|im_start|>user" in a.prompt and a.output_tokens for a in session.query(Answer))
    assert json.loads(first.file("summary.json").read_text()) == first.metrics
    kept = stored(registry)
    for weights in policy.glob("*.safetensors"):
        weights.write_bytes(b"not weights any more")  # loading these would fail
    spec = json.loads((max(tmp_path.glob("spec-answer-tiny-*.json"))).read_text())
    spec["key"] = "0" * 64
    path = tmp_path / "spec-again.json"
    path.write_text(json.dumps(spec))
    again = subprocess.run([sys.executable, "-m", "evals.answer", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert stored(registry) == kept


def test_a_larger_context_answers_anew_what_did_not_fit(registry, starter, tiny_llama, run_stage):
    inputs = {"policy": tiny_llama, "data/human_eval/problems": starter / "human_eval.jsonl"}

    def finishes(context: int) -> set[str]:
        settings = {"benchmarks": [entry()], **ENGINE, "max_model_len": context}
        made = run_stage("evals.answer", f"answer-{context}", settings, inputs, registry=registry.url, resources={"threads": 1})
        assert made.metrics["reused"] == 0
        with registry.read() as session:
            answers = session.query(Answer).join(AnswerSet).where(AnswerSet.key == made.metrics["answer_sets"][0])
            return {answer.finish_reason for answer in answers}

    assert finishes(16) == {"prompt_too_long"}
    assert finishes(512) == {"length"}


def test_a_killed_stage_goes_on_by_sample(registry, starter, tiny_llama, make_spec, run_stage, tmp_path):
    slow = entry(limit=None, decoding={"temperature": 1.0, "max_tokens": 40, "n": 4})
    inputs = {"policy": tiny_llama, "data/human_eval/problems": starter / "human_eval.jsonl"}
    settings = {"benchmarks": [slow], **ENGINE, "max_model_len": 400}
    fields = {"registry": registry.url, "resources": {"batch": 1, "threads": 1}}
    path = make_spec("answer-killed", settings, inputs, **fields)
    process = subprocess.Popen([sys.executable, "-m", "evals.answer", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while len(stored(registry)) < 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = stored(registry)
    assert 8 <= len(before) < 32, "the stage was to be killed in the middle"
    finished = run_stage("evals.answer", "answer-killed", settings, inputs, **fields)
    after = stored(registry)
    assert len(after) == 32 and before.items() <= after.items()
    assert finished.metrics["reused"] == len(before) and finished.metrics["answers"] == 32 - len(before)


def test_the_module_imports_nothing_heavy():
    code = (
        "import sys, evals.answer, evals.likelihood, evals.execute, evals.code.human_eval, evals.knowledge.truthful_qa;"
        "sys.exit(str({'torch', 'transformers', 'vllm', 'datasets', 'lm_eval'} & set(sys.modules) or 0))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr.strip() == "0"
