"""HumanEval+ and MBPP+: the comparison of outputs, the limits of time, and the published verdicts."""

import gzip
import json
from pathlib import Path

import pytest

from core.errors import MissingInput, SandboxUnavailable
from evals.code import plus, sandbox
from evals.code.code_verdicts import run_codes
from evals.code.human_eval import HumanEval
from evals.code.mbpp import MBPP
from evals.code.plus import mbpp_inputs, plus_program, read_plus, references


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tasks(tmp_path: Path):
    """`tasks(reference, inputs, **fields)`: one task of a file of EvalPlus' form."""

    def make(reference: str, inputs: list, oracle: str = "human_eval", **fields):
        row = {"task_id": "Own/1", "prompt": "", "canonical_solution": reference, "entry_point": "f", "atol": 0}
        row |= {"base_input": inputs[:1], "plus_input": inputs[1:]} | fields
        path = tmp_path / "plus.jsonl"
        path.write_text(json.dumps(row))
        return read_plus(path, oracle)["Own/1"]

    return make


def passes(task, code: str) -> sandbox.Outcome:
    program, seconds = plus_program(task, references({task.id: task}, sandbox.BUBBLEWRAP)[task.id], code)
    return sandbox.run_program(program, seconds)


@pytest.mark.parametrize(
    ("reference", "code", "good"),
    [
        ("return x", "return x", True),
        ("return x", "return x if x < 3 else -x", False),
        ("return x", "return float(x)", True),
        ("return [x]", "return (x,)", False),
        ("return x / 3", "return x / 3 + 9e-7", True),
        ("return x / 3", "return x / 3 + 3e-6", False),
        ("return [x / 3] * 2", "return [x / 3, x / 3 + 9e-7]", True),
        ("return [x / 3] * 2", "return (x / 3, x / 3 + 9e-7)", False),
        ("return [x / 3, 'a']", "return [x / 3 + 9e-7, 'a']", False),
        ("return x / 3", "return str(x / 3)", False),
        ("return {x: [x]}", "return {x: [x]}", True),
        ("return float('nan')", "return float('nan')", False),
        ("return 1e9 * x", "return 1e9 * x + 10", True),
        ("return None", "raise ValueError", False),
        ("return x", "import os; os._exit(0)", False),
    ],
)
def test_outputs_are_compared_as_evalplus_does(tasks, reference: str, code: str, good: bool):
    task = tasks(f"def f(x):\n    {reference}\n", [[1], [2], [3]])
    outcome = passes(task, f"def f(x):\n    {code}\n")
    assert outcome.passed is good, outcome


def test_a_tolerance_of_the_task_s_own_holds(tasks):
    code = "def f(x):\n    return x / 3 + 0.0005\n"
    assert passes(tasks("def f(x):\n    return x / 3\n", [[1]], atol=1e-3), code).passed
    assert not passes(tasks("def f(x):\n    return x / 3\n", [[1]], atol=1e-4), code).passed


def test_a_root_is_judged_by_its_residue(tasks):
    reference = "def find_zero(xs):\n    return 1.0\n"
    task = tasks(reference, [[[-1, 0, 1]]], entry_point="find_zero", atol=1e-4)
    assert passes(task, "def find_zero(xs):\n    return -1.0\n").passed
    assert not passes(task, "def find_zero(xs):\n    return -1.01\n").passed


@pytest.mark.parametrize(
    ("name", "reference", "code", "good"),
    [
        ("Diff", "return [x, 1]", "return [1, x]", True),
        ("Diff", "return [x, 1]", "return [1, x, 5]", False),
        ("are_equivalent", "return True", "return False", True),
        ("sum_div", "return 3", "return 0", True),
        ("sum_div", "return 3", "return 1", False),
        ("check_str", "import re; return re.match('a', 'a')", "return 'found'", True),
        ("check_str", "import re; return re.match('a', 'a')", "return False", False),
        ("check_str", "import re; return re.match('a', 'b')", "return None", True),
    ],
)
def test_tasks_of_mbpp_with_more_than_one_right_output(tasks, name: str, reference: str, code: str, good: bool):
    task = tasks(f"def {name}(x):\n    {reference}\n", [[2]], "mbpp", entry_point=name, task_id="Own/1")
    assert passes(task, f"def {name}(x):\n    {code}\n").passed is good


def test_an_input_has_the_larger_of_one_second_and_four_times_the_reference(tasks):
    task = tasks("def f(x):\n    import time; time.sleep(0.5 * x)\n", [[0], [1]])
    (reference,) = references({task.id: task}, sandbox.BUBBLEWRAP).values()
    assert reference.seconds[0] < 0.2 and 0.5 <= reference.seconds[1] < 1.5
    nap = "def f(x):\n    import time\n    try: time.sleep({} if x == {} else 0)\n    except BaseException: pass\n"
    assert passes(task, nap.format(1.3, 1)).passed
    outcome = passes(task, nap.format(1.3, 0))
    assert outcome.status == "failed" and "took longer than 1.0 s" in outcome.detail


def test_references_are_run_once_and_kept_by_content(tasks, home: Path, monkeypatch: pytest.MonkeyPatch):
    task = tasks("def f(x):\n    return x + 1\n", [[1]])
    first = references({task.id: task}, sandbox.BUBBLEWRAP)
    kept = list((home / "cache" / "plus").iterdir())
    assert [path.name for path in kept] == [f"{task.key}.marshal"]
    monkeypatch.setattr(sandbox, "run_many", lambda programs, *a: [] if not programs else pytest.fail("run again"))
    assert references({task.id: task}, sandbox.BUBBLEWRAP) == first
    assert tasks("def f(x):\n    return x + 2\n", [[1]]).key != task.key != tasks("def f(x):\n    return x + 1\n", [[2]]).key


def test_a_reference_that_fails_is_named(tasks):
    with pytest.raises(MissingInput, match="(?s)reference solution of Own/1 fails.*ZeroDivisionError"):
        task = tasks("def f(x):\n    return 1 / x\n", [[0]])
        references({task.id: task}, sandbox.BUBBLEWRAP)


def test_inputs_of_mbpp_get_the_types_that_json_lost():
    assert mbpp_inputs(2, [[[1, 2], [3]]]) == [[(1, 2), (3,)]]
    assert mbpp_inputs(63, [[[[1, 2], [3]]]]) == [[[(1, 2), (3,)]]]
    assert mbpp_inputs(75, [[[[1], [2]], 6]]) == [[[(1,), (2,)], 6]]
    assert mbpp_inputs(106, [[[1], [2]]]) == [[[1], (2,)]]
    assert mbpp_inputs(115, [[[[1, 1], [], {}]]]) == [[[{1}, {}, {}]]]
    assert mbpp_inputs(124, [["1", "2j"]]) == [[1.0, 2j]]
    assert mbpp_inputs(252, [["1+2j"]]) == [[1 + 2j]]
    assert mbpp_inputs(259, [[[[1, 2]], [[3]]]]) == [[((1, 2),), ((3,),)]]
    assert mbpp_inputs(278, [[[1, [2]]]]) == [[(1, (2,))]]
    assert mbpp_inputs(307, [[[1, [2]], 0, 9]]) == [[(1, [2]), 0, 9]]
    assert mbpp_inputs(580, [[[1, [2, [3]]]]]) == [[(1, (2, (3,)))]]
    assert mbpp_inputs(722, [[{"a": [1, 2]}, 3]]) == [[{"a": (1, 2)}, 3]]
    assert mbpp_inputs(11, [["a", "b"]]) == [["a", "b"]]


def published(data: Path, names: list[str]) -> None:
    """WizardCoder-33B-V1.1's answers to these tasks get the verdicts that EvalPlus 0.3.1 gave."""
    with gzip.open(data / "human_eval" / "wizardcoder_33b_v1.1_vllm.jsonl.gz", "rt") as handle:
        rows = {row["task_id"]: row for row in map(json.loads, handle)}
    benchmark = HumanEval()
    files = {"problems": data / "human_eval" / "HumanEval.jsonl.gz", "plus": data / "human_eval" / "HumanEvalPlus.jsonl.gz"}
    questions = {question.id: question for question in benchmark.load(files)}
    codes = {(name, 1, 0): benchmark.extract(questions[name], rows[name]["response"]).code for name in names}
    ran = run_codes(benchmark, questions, codes, benchmark.timeout, sandbox.BUBBLEWRAP, plus=benchmark.plus_tasks(files))
    assert {place[0]: base.passed for place, (base, _) in ran.items()} == {n: rows[n]["evalplus_base"] == "pass" for n in names}
    assert {place[0]: added.passed for place, (_, added) in ran.items()} == {n: rows[n]["evalplus_plus"] == "pass" for n in names}


def test_published_verdicts_on_the_tasks_that_only_plus_refuses(data: Path):
    with gzip.open(data / "human_eval" / "wizardcoder_33b_v1.1_vllm.jsonl.gz", "rt") as handle:
        rows = list(map(json.loads, handle))
    only_plus = [row["task_id"] for row in rows if row["evalplus_base"] == "pass" != row["evalplus_plus"]]
    assert len(only_plus) == 131 - 120
    published(data, [*only_plus, *(f"HumanEval/{i}" for i in (0, 2, 32, 33, 38, 50, 53))])


@pytest.mark.slow
def test_all_published_verdicts_and_references(data: Path):
    """164 answers: 131 base, 120 plus; the references of both sets pass their own tests."""
    published(data, [f"HumanEval/{i}" for i in range(164)])
    for benchmark, path in ((HumanEval(), "human_eval/HumanEvalPlus.jsonl.gz"), (MBPP(), "mbpp/MbppPlus.jsonl.gz")):
        tasks = benchmark.plus_tasks({"plus": data / path})
        known = references(tasks, sandbox.BUBBLEWRAP)
        programs = [plus_program(task, known[name], task.code) for name, task in tasks.items()]
        outcomes = sandbox.run_many([program for program, _ in programs], [seconds for _, seconds in programs])
        assert all(outcome.passed for outcome in outcomes), len(outcomes)


def test_the_files_hold_the_tasks_they_should(data: Path):
    assert len(HumanEval().plus_tasks({"plus": data / "human_eval/HumanEvalPlus.jsonl.gz"})) == 164
    assert len(MBPP().plus_tasks({"plus": data / "mbpp/MbppPlus.jsonl.gz"})) == 378
    assert HumanEval().plus_tasks({}) == {}
    assert plus.MIN_SECONDS == 1.0 and plus.FACTOR == 4.0
