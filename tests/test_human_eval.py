"""HumanEval: the extraction rule, pass@k, and verdicts that agree with the published ones on public data."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SandboxUnavailable
from core.fingerprint import checkpoint_fingerprint
from db.models import Answer, Evaluation, Judge, Judgment, Score
from evals import records
from evals.closed_form import wilson
from evals.code import sandbox
from evals.code.code_benchmark import pass_at_k
from evals.code.extraction import extract
from evals.code.human_eval import HumanEval, HumanEvalPrefill, instruct, packaged_problems

PROMPT = 'import math\n\ndef area(r):\n    """Area of a circle."""\n'


@pytest.fixture(scope="module")
def contained():
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


def verdicts(questions, answers, benchmark=None) -> dict[str, bool]:
    benchmark = benchmark or HumanEval()
    programs = [benchmark.program(q, answers[q.id])[0] for q in questions]
    return {q.id: o.passed for q, o in zip(questions, sandbox.run_many(programs), strict=True)}


@pytest.mark.parametrize(
    ("answer", "rule", "holds"),
    [
        ("Sure.\n```python\nprint('demo')\n```\nthen\n```python\ndef area(r):\n    return 1\n```", "defining_fence", "return 1"),
        ("```\ndef area(r):\n    return 1\n```\n```py\ndef area(r):\n    return 2\n```", "defining_fence", "return 1"),
        ("```python\ndef area(r):\n    return 1", "defining_fence", "return 1"),
        ("```python\r\ndef area(r):\r\n    return 1\r\n```", "defining_fence", "    return 1\n"),
        ("```python\n    return math.pi * r ** 2\n```", "first_fence+body", '."""\n    return math.pi'),
        ("    return math.pi * r ** 2", "raw+body", '."""\n    return math.pi'),
        ("def area(r):\n    return 1", "raw", "\n\ndef area(r):\n    return 1"),
        ("", "raw+body", PROMPT),
    ],
)
def test_extraction_takes_the_first_fence_that_defines_the_function(answer: str, rule: str, holds: str):
    found = extract(answer, PROMPT, "area")
    assert found.rule == rule
    assert found.code.startswith("import math") and holds in found.code and "\r" not in found.code
    assert "return 2" not in found.code and "demo" not in found.code


@given(st.text(), st.sampled_from(["area", "other"]))
def test_extraction_never_fails_and_keeps_the_prompt(answer: str, entry_point: str):
    assert extract(answer, PROMPT, entry_point).code.startswith("import math")


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_pass(case: tuple[int, int, int]):
    n, correct, k = case
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_scores_carry_wilson_intervals_and_bound_failures():
    benchmark = HumanEval()
    (row,) = benchmark.scores({str(i): [1.0 if i < 90 else 0.0] for i in range(164)})
    low, high = wilson(90, 164)
    assert row.metric == benchmark.headline and row.headline
    assert (row.value, row.low, row.high) == pytest.approx((100 * 90 / 164, 100 * low, 100 * high))
    (one_failed,) = benchmark.scores({str(i): [None if i == 0 else 1.0] for i in range(164)})
    assert one_failed.n_failed == 1 and one_failed.value == 100 and one_failed.worst == pytest.approx(100 * 163 / 164)
    (withheld,) = benchmark.scores({str(i): [None if i < 2 else 1.0] for i in range(164)})
    assert withheld.value is None and withheld.n_failed == 2 and withheld.best == 100
    ten = benchmark.scores({"a": [1.0] * 5 + [0.0] * 5, "b": [0.0] * 10})
    assert [r.metric for r in ten] == ["pass@1", "pass@10"]
    assert [r.value for r in ten] == pytest.approx([25.0, 50.0])
    assert all("bootstrap" in r.method and r.low <= r.value <= r.high for r in ten)
    assert [r.stderr for r in ten] == pytest.approx([25.0, 50.0]), "of two tasks: half the distance"
    assert row.stderr == pytest.approx(100 * (90 / 164 * 74 / 164 / 163) ** 0.5)
    both = benchmark.scores({"a": [1.0, 0.0]}, {"a": [0.0, 0.0]})
    assert [(r.metric, r.value, r.headline) for r in both] == [("pass@1", 50.0, True), ("plus_pass@1", 0.0, False)]


def test_starter_solutions_pass_and_an_empty_function_does_not(starter: Path, contained):
    questions = HumanEval().load({"problems": starter / "human_eval.jsonl"})
    assert len(questions) == 8
    solutions = {q.id: f"Here it is:\n```python\n{q.data['prompt']}{q.data['canonical_solution']}```\n" for q in questions}
    assert all(verdicts(questions, solutions).values())
    bodies = {q.id: q.data["canonical_solution"] for q in questions}
    assert all(verdicts(questions, bodies).values())
    nothing = {q.id: f"```python\ndef {q.data['entry_point']}(*args, **kwargs):\n    return None\n```" for q in questions}
    assert not any(verdicts(questions, nothing).values())
    assert not any(verdicts(questions, dict.fromkeys(solutions, "")).values())


@pytest.mark.parametrize(
    "cheat",
    [
        "class Any:\n    def __eq__(self, other): return True\ndef {f}(*a): return Any()",
        "class Any(int):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\ndef {f}(*a): return Any()",
        "class Any:\n    def __eq__(self, other): return True\ndef {f}(*a): return [Any(), (Any(),)][0]",
        "import sys\ndef {f}(*a): sys.exit(0)",
        "import os\ndef {f}(*a): os._exit(0)",
        "def {f}(*a): raise SystemExit",
        "def {f}(*a):\n    while True:\n        try:\n            while True: pass\n        except: pass",
        "import os, signal\ndef {f}(*a): os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)",
        (
            "import os\ndef {f}(*a):\n    for fd in range(256):\n        try: os.write(fd, b'T' * 40)\n"
            "        except OSError: pass\n    os._exit(0)"
        ),
    ],
)
def test_answers_that_only_look_right_fail(cheat: str, starter: Path, contained):
    question = HumanEval().load({"problems": starter / "human_eval.jsonl"})[0]
    answer = "```python\n" + cheat.replace("{f}", question.data["entry_point"]) + "\n```"
    assert not sandbox.run_program(HumanEval().program(question, answer)[0], timeout=1.5).passed


def test_honest_subclasses_of_plain_values_pass(contained):
    problem = {
        "task_id": "t",
        "prompt": "def f():\n    '''A Counter and a named tuple.'''\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate() == ({'a': 2}, (1, 2))\n",
    }
    from evals.benchmark import Question

    question = Question("t", "code", (problem["prompt"],), problem)
    answer = (
        "```python\nfrom collections import Counter, namedtuple\nP = namedtuple('P', 'x y')\n"
        "def f():\n    return Counter('aa'), P(1, 2)\n```"
    )
    assert sandbox.run_program(HumanEval().program(question, answer)[0]).passed


def test_a_prefilled_answer_is_the_continuation_of_the_prompt(starter: Path, tiny_llama: Path, contained):
    benchmark = HumanEvalPrefill()
    question = benchmark.load({"problems": starter / "human_eval.jsonl"})[0]
    *_, user, assistant = benchmark.messages(question, [])
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert assistant["content"].endswith(question.data["prompt"].rstrip() + "\n") and "```python" in assistant["content"]
    body = question.data["canonical_solution"]
    for answer in (body, f"{body}```\nThis works because ...", f"{body}\r\n```\n```python\nraise SystemExit\n```"):
        program, found = benchmark.program(question, answer)
        assert found.rule == "continued" and sandbox.run_program(program).passed
    assert benchmark.answer_settings({}, {"engine": "vllm"})["prompt"] == "instruct-prefill-1"


def test_the_policy_continues_a_turn_that_the_benchmark_began(tiny_llama: Path):
    from evals.answer import Policy

    settings = {"system_prompt": None, "max_model_len": 512, "engine": "transformers", "dtype": "float32", "seed": 0}
    policy = Policy(tiny_llama, settings, {"batch_size": 1})
    asked = [{"role": "user", "content": "Say it."}]
    open_text, open_ids = policy.prompt(asked)
    text, ids = policy.prompt([*asked, {"role": "assistant", "content": "def f(x):\n"}])
    assert text == open_text + "def f(x):\n" and text.count("<|im_end|>") == 1
    assert ids[: len(open_ids)] == open_ids and policy.tokenizer.decode(ids) == text


def test_the_prompt_holds_the_problem_in_a_fence():
    turn = instruct("def f(x):\n    pass\n")
    assert "```python\ndef f(x):\n    pass\n```" in turn


def test_all_canonical_solutions_pass(data: Path, contained):
    questions = HumanEval().load({"problems": data / "human_eval" / "HumanEval.jsonl.gz"})
    found = verdicts(questions, {q.id: q.data["canonical_solution"] for q in questions})
    assert len(found) == 164 and all(found.values()), [name for name, passed in found.items() if not passed]


def test_published_chat_answers_score_as_published(data: Path, contained):
    """WizardCoder-33B-V1.1: 131 of 164 (79.9), sample by sample."""
    questions = HumanEval().load({"problems": data / "human_eval" / "HumanEval.jsonl.gz"})
    with gzip.open(data / "human_eval" / "wizardcoder_33b_v1.1_vllm.jsonl.gz", "rt") as handle:
        rows = {row["task_id"]: row for row in map(json.loads, handle)}
    found = verdicts(questions, {name: row["response"] for name, row in rows.items()})
    assert found == {name: row["human_eval_result"] == "passed" for name, row in rows.items()}
    expected = json.loads((data / "human_eval" / "expected.json").read_text())
    assert sum(found.values()) == expected["wizardcoder_33b_v1.1_vllm"]["recomputed"]["human_eval_pass"] == 131


def test_the_package_s_problems_are_the_official_ones(data: Path):
    packaged = packaged_problems()
    if packaged is None:
        pytest.skip("the human-eval package is not installed")
    assert HumanEval().load({"problems": packaged}) == HumanEval().load({"problems": data / "human_eval" / "HumanEval.jsonl.gz"})


def test_the_execute_stage_judges_stored_answers_once(
    registry, starter: Path, tiny_llama: Path, run_stage, contained, tmp_path: Path
):
    benchmark = HumanEval()
    entry = {
        "name": "human_eval",
        "variant": "starter",
        "version": "starter@test",
        "limit": None,
        "sample_seed": 0,
        "decoding": {},
    }
    settings = {"benchmarks": [entry], "seed": 0, "engine": "transformers", "system_prompt": None}
    questions = benchmark.load({"problems": starter / "human_eval.jsonl"})
    fingerprint = checkpoint_fingerprint(tiny_llama)
    answers = {q.id: q.data["canonical_solution"] if i % 2 else "I cannot." for i, q in enumerate(questions)}
    with registry.write() as session:
        checkpoint = records.get_checkpoint(session, fingerprint, tiny_llama)
        found = records.get_answer_set(session, checkpoint, benchmark, entry, settings, 8)
        rows = [{"question_id": name, "prompt": "p", "text": text, "finish_reason": "stop"} for name, text in answers.items()]
        records.store_answers(session, found.id, rows)
    inputs = {"policy": tiny_llama, "data/human_eval/problems": starter / "human_eval.jsonl"}
    first = run_stage("evals.execute", "execute-tiny", settings, inputs, registry=registry.url, resources={"batch": 3})
    assert first.metrics["samples"] == 8 and first.metrics["reused"] == 0
    with registry.read() as session:
        judged = {j.question_id: j for j in session.query(Judgment)}
        assert {name: j.value for name, j in judged.items()} == {n: float(i % 2) for i, n in enumerate(answers)}
        assert all({"code", "rule", "status", "detail"} <= set(j.raw) for j in judged.values())
        (judge,) = session.query(Judge)
        assert judge.kind == "sandbox" and judge.config["mode"] == "bubblewrap" and judge.config["timeout"] == 3.0
        (score,) = session.query(Score)
        assert (score.metric, score.value, score.n, score.n_failed) == ("pass@1", 50.0, 8, 0)
        assert score.low < 50 < score.high
        assert session.query(Answer).count() == 8
    again = run_stage("evals.execute", "execute-again", settings, inputs, registry=registry.url)
    assert again.metrics["samples"] == 0 and again.metrics["reused"] == 8
    with registry.read() as session:
        assert {j.question_id: j.created_at for j in session.query(Judgment)} == {n: j.created_at for n, j in judged.items()}
    added = questions[1].data
    rows = [{"task_id": added["task_id"], "entry_point": added["entry_point"], "prompt": "", "atol": 0}]
    rows[0] |= {
        "canonical_solution": f"def {added['entry_point']}(*a):\n    return 'never'",
        "base_input": [],
        "plus_input": [[7, 3]],
    }
    plus = tmp_path / "plus.jsonl"
    plus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    home = {"HARNESS_HOME": str(tmp_path / "home")}
    third = run_stage(
        "evals.execute", "execute-plus", settings, inputs | {"data/human_eval/plus": plus}, registry=registry.url, env=home
    )
    assert third.metrics["samples"] == 8, "added tests make another judge"
    with registry.read() as session:
        key = third.metrics["evaluations"][0]
        scores = session.query(Score).join(Evaluation).where(Evaluation.key == key)
        assert {s.metric: (s.value, s.n, s.headline) for s in scores} == {
            "pass@1": (50.0, 8, True),
            "plus_pass@1": (0.0, 1, False),
        }
        stored = (
            session.query(Judgment).join(Evaluation).where(Evaluation.key == key, Judgment.question_id == added["task_id"]).one()
        )
        assert stored.value == 1.0 and stored.raw["plus"]["status"] == "failed" and "never" in stored.raw["plus"]["detail"]
    with registry.write() as session:  # a fault of the machine, not of the code
        row = session.get_one(Judgment, stored.id)
        row.raw = row.raw | {"plus": row.raw["plus"] | {"status": "error"}}
    fourth = run_stage(
        "evals.execute", "execute-mended", settings, inputs | {"data/human_eval/plus": plus}, registry=registry.url, env=home
    )
    assert (fourth.metrics["samples"], fourth.metrics["reused"]) == (1, 7), "what the machine could not run is run again"
    with registry.read() as session:
        mended = session.get_one(Judgment, stored.id)
        assert mended.value == 1.0 and mended.raw["plus"]["status"] == "failed"
