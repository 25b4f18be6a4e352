"""MBPP: the test split, the worked examples, extraction, and the references that must all pass."""

from pathlib import Path

import pytest

from core.errors import MissingInput, SandboxUnavailable
from evals.benchmark import Question, get_benchmark
from evals.code import sandbox
from evals.code.mbpp import MBPP, defined_names, question_id, used_names

ROW = {
    "task_id": 900,
    "text": "Write a function that doubles.",
    "code": "def sum(a):\r\n    return 2 * a",
    "test_setup_code": "",
    "test_list": ["assert sum(2) == 4", "assert sum(3) == 6"],
}


@pytest.fixture(scope="module")
def contained():
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


def question(**fields) -> Question:
    return Question("Mbpp/900", "code", ("",), ROW | fields)


@pytest.mark.parametrize(
    ("answer", "rule", "passes"),
    [
        ("```python\nprint(1)\n```\n```python\ndef sum(a):\n    return a + a\n```", "defining_fence", True),
        ("```python\ndef sum(a):\n    return a + a", "defining_fence", True),
        ("```python\ndef double(a):\n    return a + a\n```", "first_fence", False),
        ("```python\nsum = lambda a: a + a\n```", "first_fence", True),
        ("def sum(a):\r\n    return a + a", "raw", True),
        ("I cannot.", "raw", False),
        ("", "raw", False),
    ],
)
def test_the_first_fence_that_defines_the_function_is_run(answer: str, rule: str, passes: bool, contained):
    program, found = MBPP().program(question(), answer)
    assert found.rule == rule and sandbox.run_program(program).passed is passes


def test_python_s_own_names_are_not_the_answer_s(contained):
    """Assertions that use `set` mean Python's; a task that asks for a function called `sum` means the answer's."""
    row = question(code="def f(a): return a", test_list=["assert set(f([1, 2])) == set([2, 1])"])
    cheat = "def set(x): return 0\ndef f(a): return [5]"
    assert not sandbox.run_program(MBPP().tested(row, cheat)).passed
    assert sandbox.run_program(MBPP().tested(row, "def f(a): return a[::-1]")).passed


def test_set_up_code_meets_the_classes_of_the_answer(contained):
    row = question(
        code="class Node: pass\ndef top(n): return 1",
        test_setup_code="root = Node(1) \r\nroot.left = Node(2)",
        test_list=["assert top(root) == 3"],
    )
    code = "class Node:\n    def __init__(self, v): self.v = v\ndef top(n): return n.v + n.left.v"
    assert sandbox.run_program(MBPP().tested(row, code)).passed


def test_task_ids_and_names():
    assert {question_id(i) for i in (11, "11", "Mbpp/11", "MBPP/11")} == {"Mbpp/11"}
    assert used_names("assert f(a)[0] == g") == {"f", "a", "g"} and defined_names("def f(): pass\nclass A: pass") == {"f", "A"}


def test_the_questions_are_the_test_split_after_three_examples(data: Path):
    benchmark = get_benchmark("mbpp")
    questions = benchmark.load({"problems": data / "mbpp" / "mbpp.jsonl.gz"})
    assert [q.id for q in questions] == [f"Mbpp/{i}" for i in range(11, 511)]
    conversation = benchmark.messages(questions[0], [])
    assert [m["role"] for m in conversation] == ["user", "assistant"] * 3 + ["user"]
    assert all(m["content"].startswith("```python\n") and "\r" not in m["content"] for m in conversation[1::2])
    assert all(test in conversation[-1]["content"] for test in questions[0].data["test_list"])
    assert len(benchmark.load({"problems": data / "mbpp" / "mbpp.jsonl.gz"}, limit=7)) == 7


def test_a_file_without_the_examples_is_refused(tmp_path: Path):
    (tmp_path / "mbpp.jsonl").write_text('{"task_id": 11, "text": "t", "code": "", "test_setup_code": "", "test_list": []}\n')
    with pytest.raises(MissingInput, match="worked examples.*harness data fetch mbpp"):
        MBPP().load({"problems": tmp_path / "mbpp.jsonl"})


def test_references_pass_and_wrong_ones_do_not(data: Path, contained):
    """Every tenth task here; all 500 in the slow test."""
    references_pass(MBPP().load({"problems": data / "mbpp" / "mbpp.jsonl.gz"})[::10])


@pytest.mark.slow
def test_all_500_references_pass(data: Path, contained):
    references_pass(MBPP().load({"problems": data / "mbpp" / "mbpp.jsonl.gz"}))


def references_pass(questions: list[Question]) -> None:
    benchmark = MBPP()
    programs = [benchmark.tested(q, q.data["code"]) for q in questions]
    # An assertion with its expected value negated: a program whose tests are not run would pass it.
    denied = [
        benchmark.tested(
            Question(q.id, q.category, q.turns, q.data | {"test_list": [*q.data["test_list"], "assert False"]}), q.data["code"]
        )
        for q in questions[:10]
    ]
    outcomes = sandbox.run_many([*programs, *denied], benchmark.timeout)
    assert [q.id for q, o in zip(questions, outcomes, strict=False) if not o.passed] == []
    assert not any(o.passed for o in outcomes[len(questions) :])
