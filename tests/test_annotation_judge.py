"""An LLM judge as annotator: grades and comparisons, failures without rewards, nothing bought twice, a budget that holds.

The endpoint is scripted (`tests.scripted_judge`): a real one gives no fault on demand.
"""

import re

import pytest

from core.artifacts import read_rows, write_rows
from core.errors import JudgeError
from core.stage import Spec, Stage
from tests.scripted_judge import ScriptedJudgeServer, fails, says
from train.annotate import run
from train.judge_scorer import read_verdict

JUDGE = {"model": "scripted", "mode": "grade", "max_tokens": 64}
TRANSPORT = {"api_key_env": "", "concurrency": 4, "first_wait": 0.01, "attempts": 2}


@pytest.fixture
def annotate(make_spec, tmp_path, store):
    """`annotate(server, judge, resources, name) -> (metrics, rows)` of three prompts: three answers, none, two that are equal."""
    folder = tmp_path / "generations"
    folder.mkdir()
    answers = {"a": ("one", "three33", "two22"), "b": (), "c": ("same", "same")}
    rows = [
        {
            "prompt_id": p,
            "messages": [{"role": "user", "content": f"Prompt {p}: {{answer}}"}],
            "samples": [{"text": t} for t in texts],
        }
        for p, texts in answers.items()
    ]
    write_rows(folder / "shard-00000.jsonl", rows)

    def annotate(server, judge=None, resources=None, name="annotate", **settings):
        settings = {
            "scorer": "judge",
            "max_length": 512,
            "dtype": "auto",
            "judge": JUDGE | {"base_url": server.url} | (judge or {}),
        } | settings
        spec = make_spec(name, settings, {"generations": folder}, resources={"judge": TRANSPORT | (resources or {})})
        stage = Stage(Spec.load(spec))
        stage.work = store / name
        stage.work.mkdir(exist_ok=True)
        return run(stage), read_rows(stage.work / "shard-00000.jsonl")

    return annotate


def asked(request: dict) -> str:
    return request["messages"][0]["content"]


def answers_in(request: dict) -> list[str]:
    return re.findall(r"\[Answer [^\]]*\]\n(.*?)\n\[End of answer", asked(request), re.DOTALL)


def test_grades_are_rewards_and_kept(annotate):
    with ScriptedJudgeServer(lambda request, n: says(f"Well.\nGrade: [[{len(answers_in(request)[0])}]]")) as server:
        metrics, rows = annotate(server)
        assert [row["rewards"] for row in rows] == [[3.0, 7.0, 5.0], [], [4.0, 4.0]]
        assert len(server.requests) == metrics["judge_calls"] == 4, "equal answers are one question"
        assert metrics["judge_tokens"] == 4 * 110 and metrics["failed"] == 0
        assert "Prompt a: {answer}" in asked(server.requests[0]), "a prompt is never taken for a template"
        again, same = annotate(server, name="another-run")
        assert same == rows and len(server.requests) == 4 and again["judge_calls"] == 0


def test_a_failed_judgment_is_no_reward_and_is_asked_again_in_vain_only_once(annotate):
    def script(request, n):
        text = answers_in(request)[0]
        return says("I would rather not say.") if text == "one" else says("Grade: [[11]]") if text == "two22" else says("[[6]]")

    with ScriptedJudgeServer(script) as server:
        metrics, rows = annotate(server)
        assert rows[0]["rewards"] == [None, 6.0, None] and metrics["failed"] == 2


def test_comparisons_run_a_tournament_in_both_orders(annotate):
    """This judge prefers the longer answer, and the first where both are equally long."""

    def script(request, n):
        first, second = answers_in(request)
        return says(f"Verdict: [[{'A' if len(first) >= len(second) else 'B'}]]")

    with ScriptedJudgeServer(script) as server:
        metrics, rows = annotate(server, {"mode": "compare"}, tournament="round_robin", seed=0)
        one, three, two = rows[0]["rewards"]
        assert three > two > one and len(server.requests) == 6, (
            "3 comparisons of a, in both orders; none of c, whose answers are equal"
        )
        assert rows[0]["consistency"] == 1.0 and rows[0]["comparisons"][0] == [0, 1, 0.0]
        assert rows[2]["rewards"] == [0.0, 0.0]


def test_a_failed_comparison_takes_both_answers_out(annotate):
    def script(request, n):
        return fails(422) if {"one", "two22"} == set(answers_in(request)) else says("[[A]]")

    with ScriptedJudgeServer(script) as server:
        metrics, rows = annotate(server, {"mode": "compare"}, tournament="round_robin", seed=0)
        assert rows[0]["rewards"][0] is None and rows[0]["rewards"][2] is None and rows[0]["rewards"][1] == pytest.approx(0.0)
        assert "comparisons" not in rows[0]


def test_the_budget_holds_and_what_was_paid_is_kept(annotate):
    """Each call costs 110 tokens at 100 dollars a million; 0.025 dollars buy two, reserved before they are sent."""
    money = {"price": {"input": 100.0, "output": 100.0}, "concurrency": 1}
    with ScriptedJudgeServer(lambda request, n: says("[[5]]")) as server:
        with pytest.raises(JudgeError, match="budget"):
            annotate(server, {"max_tokens": 16}, money | {"max_usd": 0.05})
        paid = len(server.requests)
        assert 0 < paid < 4 and 0.011 * paid <= 0.05
        metrics, rows = annotate(server, {"max_tokens": 16}, money | {"max_usd": 1.0})
        assert len(server.requests) == 4 and metrics["judge_micro_dollars"] == 4 * 11_000, "both attempts"
        assert rows[0]["rewards"] == [5.0, 5.0, 5.0]


def test_an_endpoint_that_is_away_ends_the_stage(annotate):
    with ScriptedJudgeServer(lambda request, n: fails(500)) as server:
        with pytest.raises(JudgeError, match="no verdict"):
            annotate(server)


@pytest.mark.parametrize(
    ("mode", "text", "value"),
    [
        ("grade", "Grade: [[7]]", 7.0),
        ("grade", "Not [[3]] but [[ 8.5 ]]", 8.5),
        ("grade", "[[0]]", None),
        ("grade", "7", None),
        ("compare", "[[A]]", 1.0),
        ("compare", "[[b]]", 0.0),
        ("compare", "Verdict: [[Tie]]", 0.5),
        ("compare", "A", None),
    ],
)
def test_verdicts_are_read(mode, text, value):
    found, reason = read_verdict(mode, text)
    assert found == value and (reason is None) == (value is not None)
