"""The endpoint judge under faults (a scripted server), and reward models as judges."""

import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from core.errors import JudgeError, MissingInput
from evals.chat.alpaca_eval import AlpacaEval, is_switched
from evals.chat.arena_hard import ArenaHard
from evals.chat.mt_bench import MTBench
from evals.judges.endpoint import retry_after
from evals.judges.judge import Task, fill
from evals.judges.openai_judge import OpenAIJudge
from evals.judges.reward_judge import RewardModelJudge, sigmoid
from tests.scripted_judge import Scripted, ScriptedJudgeServer, fails, says


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret-key")


@pytest.fixture
def tasks(starter):
    questions = AlpacaEval().load({"questions": starter / "alpaca_eval.jsonl"})
    return [Task(question, (f"An answer to {question.id}.",)) for question in questions]


CERTAIN = says("m", {"m": -0.1, "M": -2.4})


def judge_at(server, **settings):
    return OpenAIJudge(
        {"model": "scripted", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY", "concurrency": 4, "first_wait": 0.01}
        | settings
    )


def run(judge, benchmark, tasks, files=None):
    """Returns (verdicts by question and game, HTTP requests made)."""
    found = {}
    calls = judge.judge(benchmark, files or {}, tasks, lambda verdicts: found.update({v.key: v for v in verdicts}))
    return found, calls


def test_verdicts_tokens_and_money(tasks):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        verdicts, calls = run(judge_at(server, price={"input": 10.0, "output": 30.0}), AlpacaEval(), tasks)
    assert calls == len(server.requests) == len(verdicts) == 16
    assert server.keys == {"Bearer secret-key"}
    for task in tasks:
        verdict = verdicts[task.key]
        # 0.909 for the first output shown.
        assert verdict.value == pytest.approx(0.909 if is_switched(task.question.turns[0]) else 0.091, abs=1e-3)
        assert (verdict.tokens_in, verdict.tokens_out, verdict.micro_dollars) == (100, 10, 1300)
        assert verdict.raw["replies"][0]["top_logprobs"] == {"m": -0.1, "M": -2.4}
    assert {r["model"] for r in server.requests} == {"scripted"}
    assert server.requests[0]["top_logprobs"] == 5 and server.requests[0]["max_tokens"] == 1


def test_stored_replies_give_the_verdict_again(tasks):
    from evals.judges.judge import Reply

    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        verdicts, _ = run(judge_at(server), AlpacaEval(), tasks[:3])
    for task in tasks[:3]:
        replies = [Reply(**reply) for reply in verdicts[task.key].raw["replies"]]
        assert AlpacaEval().read(task, replies, None).value == verdicts[task.key].value


def test_no_more_calls_at_once_than_allowed(tasks):
    slow = Scripted(body=CERTAIN.body, delay=0.05)
    with ScriptedJudgeServer(lambda request, number: slow) as server:
        run(judge_at(server, concurrency=3), AlpacaEval(), tasks)
        assert server.busiest == 3


def test_rate_limits_server_errors_and_nonsense_are_retried(tasks):
    faults = [fails(429), fails(500), fails(503), Scripted(200, "<html>no</html>"), Scripted(200, {"choices": []})]

    def script(request, number):
        return faults[number] if number < len(faults) else CERTAIN

    with ScriptedJudgeServer(script) as server:
        verdicts, calls = run(judge_at(server, concurrency=1), AlpacaEval(), tasks[:2])
    assert calls == 7
    assert all(v.value is not None for v in verdicts.values())


def test_retry_after_is_honoured(tasks):
    with ScriptedJudgeServer(lambda request, number: CERTAIN if number else fails(429, retry_after="1")) as server:
        run(judge_at(server), AlpacaEval(), tasks[:1])
    assert server.times[1] - server.times[0] >= 1.0


def test_retry_after_forms():
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "soon"}) == retry_after({}) == 0


def test_a_judgment_that_never_gets_a_reply_is_a_stored_failure(tasks):
    poor = tasks[3].question.turns[0]

    def script(request, number):
        return fails(502) if poor in request["messages"][-1]["content"] else CERTAIN

    with ScriptedJudgeServer(script) as server:
        verdicts, calls = run(judge_at(server, attempts=3), AlpacaEval(), tasks)
    failed = verdicts[tasks[3].key]
    assert failed.value is None and failed.raw == {} and "after 3 attempts" in failed.error and "502" in failed.error
    assert sum(v.value is not None for v in verdicts.values()) == 15
    assert calls == 15 + 3


def test_a_refused_request_is_not_repeated(tasks):
    poor = tasks[0].question.turns[0]

    def script(request, number):
        return fails(400, "content filter") if poor in request["messages"][-1]["content"] else CERTAIN

    with ScriptedJudgeServer(script) as server:
        verdicts, calls = run(judge_at(server), AlpacaEval(), tasks)
    assert calls == 16
    assert "content filter" in verdicts[tasks[0].key].error
    assert verdicts[tasks[0].key].raw == {"rule": "refused"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (fails(401, "bad key"), "bad key"),
        (fails(404, "no such model"), "no such model"),
        (fails(429, "quota", code="insufficient_quota"), "no credit"),
    ],
)
def test_errors_that_concern_every_request_end_it_at_once(tasks, fault, words):
    with ScriptedJudgeServer(lambda request, number: fault) as server:
        with pytest.raises(JudgeError, match=words):
            run(judge_at(server), AlpacaEval(), tasks)
        assert len(server.requests) <= 4


def test_an_endpoint_that_is_away_is_given_up_soon(tasks):
    with ScriptedJudgeServer(lambda request, number: fails(503)) as server:
        with pytest.raises(JudgeError, match="gave no verdict in its first 4"):
            run(judge_at(server, attempts=2), AlpacaEval(), tasks)
        assert len(server.requests) <= 2 * 7


def test_an_endpoint_without_logprobs_is_given_up_before_all_is_spent(tasks):
    many = [Task(t.question, t.answers, sample=s) for s in range(4) for t in tasks]
    with ScriptedJudgeServer(lambda request, number: says("m")) as server:
        with pytest.raises(JudgeError, match="no log-probabilities"):
            run(judge_at(server), AlpacaEval(), many)
        assert len(server.requests) <= 12


def test_a_few_unreadable_replies_are_failures_not_the_end(tasks):
    def script(request, number):
        return says("m") if number in (0, 1) else CERTAIN

    with ScriptedJudgeServer(script) as server:
        verdicts, _ = run(judge_at(server), AlpacaEval(), tasks)
    failed = [v for v in verdicts.values() if v.value is None]
    assert len(failed) == 2
    assert all("log-probabilities" in v.error and v.raw["replies"] and v.tokens_in == 100 for v in failed)


def test_no_key_is_known_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(JudgeError, match="environment variable TEST_JUDGE_KEY"):
        OpenAIJudge({"model": "scripted", "api_key_env": "TEST_JUDGE_KEY"})
    local = OpenAIJudge({"model": "local", "base_url": "http://localhost:1/v1", "api_key_env": ""})
    assert [address.key for address in local.addresses] == ["none"]


def test_identity_holds_what_changes_verdicts_and_nothing_else():
    def config(**settings):
        return OpenAIJudge({"model": "a", "api_key_env": "TEST_JUDGE_KEY"} | settings).config(AlpacaEval(), {})

    assert config() == config(concurrency=1, price={"input": 1, "output": 1}, attempts=2)
    assert config() != config(base_url="http://localhost:1/v1")
    assert "secret-key" not in str(config())


def test_equal_and_empty_answers_cost_nothing(tasks):
    question = tasks[0].question
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        equal, empty = Task(question, (question.data["baseline"],)), Task(question, ("",), sample=1)
        lost = Task(question, ("",), sample=2, unanswered="prompt too long")
        verdicts, calls = run(judge_at(server), AlpacaEval(), [equal, empty, lost])
    assert calls == 0
    assert verdicts[equal.key].value == 0.5
    assert "empty" in verdicts[empty.key].error
    assert verdicts[lost.key].error == "prompt too long"


def test_arena_asks_again_for_a_verdict_and_keeps_both_replies(data):
    folder = data / "arena_hard"
    files = {
        "questions": folder / "question_v0.1.jsonl.gz",
        "baseline": folder / "model_answer_v0.1_gpt-4-0314.jsonl.gz",
        "judge_config": folder / "config_v0.1_judge_config.yaml",
    }
    benchmark = ArenaHard()
    questions = benchmark.load(files, limit=2)
    tasks = [Task(q, ("my answer",), game=game) for q in questions for game in (1, 2)]

    def script(request, number):
        return says("[[B>>A]]") if len(request["messages"]) > 2 else says("Both have merit.")

    with ScriptedJudgeServer(script) as server:
        verdicts, calls = run(judge_at(server), benchmark, tasks, files)
    assert calls == 8
    for task in tasks:
        verdict = verdicts[task.key]
        assert verdict.value == (1.0 if task.game == 1 else 0.0)
        assert verdict.raw["weight"] == 3 and verdict.raw["label"] == "B>>A"
        assert [r["text"] for r in verdict.raw["replies"]] == ["Both have merit.", "[[B>>A]]"]
        assert (verdict.tokens_in, verdict.tokens_out) == (200, 20)
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["system", "user", "assistant", "user"]


def test_verdicts_are_stored_as_they_come(tasks):
    """A process killed in the middle loses no more than the calls in flight."""
    stored, release = [], threading.Event()

    def script(request, number):
        if number == 10:
            release.wait(5)
        return CERTAIN

    with ScriptedJudgeServer(script) as server:
        judge = judge_at(server, concurrency=2)
        thread = threading.Thread(target=judge.judge, args=(AlpacaEval(), {}, tasks, stored.extend))
        thread.start()
        deadline = time.monotonic() + 5
        while len(stored) < 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        # All but the one held back are there while the judge still waits.
        assert len(stored) == 15 and thread.is_alive()
        release.set()
        thread.join(5)
    assert len(stored) == 16


def test_fill_never_looks_at_inserted_text_again():
    assert fill("{a} {b} {c} {{x}}", {"a": "{b}", "b": "{a}"}) == "{b} {a} {c} {{x}}"


class _Lengths:
    """A scorer whose reward is the length of the last message over 10: checks the arithmetic, not a model."""

    truncated = 0

    def score(self, conversations):
        return [len(c[-1]["content"]) / 10 for c in conversations]


@pytest.fixture
def lengths(monkeypatch):
    monkeypatch.setattr("evals.judges.reward_judge.load_scorer", lambda *arguments: _Lengths())
    return RewardModelJudge("unused", "f" * 64, {}, {})


def test_a_reward_model_gives_the_probability_of_winning(lengths, tasks):
    verdicts, calls = run(lengths, AlpacaEval(), tasks)
    assert calls == 32
    assert lengths.name == "reward-model:ffffffff" and lengths.kind == "reward_model"
    for task in tasks:
        gap = (len(task.answer) - len(task.question.data["baseline"])) / 10
        assert verdicts[task.key].value == pytest.approx(sigmoid(gap))
        assert verdicts[task.key].raw["reward"] - verdicts[task.key].raw["other_reward"] == pytest.approx(gap)
    assert "sigmoid of reward difference" in lengths.config(AlpacaEval(), {})["rule"]


def test_a_reward_model_scores_no_baseline_twice(lengths, tasks):
    verdicts, _ = run(lengths, AlpacaEval(), tasks)
    again = RewardModelJudge("unused", "f" * 64, {}, {})
    again.remember(v.raw for v in list(verdicts.values())[:10])
    repeated, calls = run(again, AlpacaEval(), tasks)
    assert calls == 16 + 6
    assert {key: v.value for key, v in repeated.items()} == {key: v.value for key, v in verdicts.items()}


def test_a_reward_model_rates_mt_bench_from_1_to_10(lengths, starter):
    folder = starter / "mt_bench"
    benchmark = MTBench()
    questions = benchmark.load({"questions": folder / "question.jsonl", "references": folder / "reference_answer.jsonl"})
    row = SimpleNamespace(text="short", finish_reason="stop")
    tasks = benchmark.tasks(questions, {(q.id, turn, 0): row for q in questions for turn in (1, 2)}, "reward_model")
    assert len(tasks) == 16
    verdicts, _ = run(lengths, benchmark, tasks)
    for task in tasks:
        gap = (5 - len(task.question.data["reference"][task.turn - 1])) / 10
        assert verdicts[task.key].value == pytest.approx(1 + 9 * sigmoid(gap))


def test_sigmoid_at_the_ends():
    assert (sigmoid(-800), sigmoid(0), sigmoid(800)) == (0, 0.5, 1)


def test_an_endpoint_judge_needs_the_official_prompts(starter):
    folder = starter / "mt_bench"
    files = {"questions": folder / "question.jsonl", "references": folder / "reference_answer.jsonl"}
    with pytest.raises(MissingInput, match="harness data fetch mt_bench"):
        OpenAIJudge({"model": "a", "api_key_env": "TEST_JUDGE_KEY"}).config(MTBench(), files)


def test_each_question_is_judged_on_the_samples_that_it_has(starter):
    """Imported outputs hold one question twice, another once."""
    benchmark = AlpacaEval()
    first, second, third = benchmark.load({"questions": starter / "alpaca_eval.jsonl"})[:3]
    row = SimpleNamespace(text="An answer.", finish_reason="stop")
    answers = {(first.id, 1, 0): row, (first.id, 1, 1): row, (second.id, 1, 0): row}
    found = benchmark.tasks([first, second], answers, "openai")
    assert [(task.question.id, task.sample) for task in found] == [(first.id, 0), (first.id, 1), (second.id, 0)]
    with pytest.raises(KeyError):
        benchmark.tasks([third], answers, "openai")  # an absent answer is never left out in silence
