"""Replicas, rate limits, the parameters that models refuse, and the first small request."""

import asyncio
import time

import pytest

from core.errors import JudgeError
from evals import judged
from evals.chat.alpaca_eval import AlpacaEval
from evals.judges.judge import Task
from evals.judges.limits import Bucket, RateLimit
from evals.judges.openai_judge import OpenAIJudge
from tests.judge_stage import CERTAIN, JudgeStage, judge_settings
from tests.scripted_judge import Scripted, ScriptedJudgeServer, fails, says


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


@pytest.fixture
def tasks(starter):
    questions = AlpacaEval().load({"questions": starter / "alpaca_eval.jsonl"})
    return [Task(question, (f"An answer to {question.id}.",)) for question in questions]


def run(judge, tasks):
    found = []
    calls = judge.judge(AlpacaEval(), {}, tasks, found.extend)
    return found, calls


class Clock:
    """Time that passes only by sleeping."""

    now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("requests", "tokens"), [(60, None), (None, 6000), (60, 6000), (600, 3000)])
def test_no_minute_sees_much_more_than_the_limit(requests, tokens):
    clock, sent = Clock(), []

    async def go():
        limit = RateLimit(requests, tokens, clock, clock.sleep)
        for _ in range(300):
            await limit.acquire(100)
            sent.append(clock.now)

    asyncio.run(go())
    most = min(requests or 10**9, (tokens or 10**9) // 100)
    busiest = max(sum(start <= t < start + 60 for t in sent) for start in sent)
    assert most <= busiest <= most * 7 / 6 + 1
    # And no slower than it may be.
    assert sent[-1] == pytest.approx(60 * (300 - most / 6) / most, rel=0.02)


def test_usage_corrects_the_estimate():
    clock = Clock()

    async def go():
        limit = RateLimit(None, 6000, clock, clock.sleep)
        for _ in range(40):
            await limit.acquire(1000)
            limit.correct(1000, 100)

    asyncio.run(go())
    assert clock.now < 40 * 1000 / 100 / 2


def test_a_request_larger_than_the_bucket_still_goes():
    clock = Clock()
    bucket = Bucket(600, clock)
    assert bucket.wait(10_000) == 0
    bucket.take(10_000)
    assert bucket.wait(1) == pytest.approx((10_000 - 100 + 1) / 10)


def test_the_limit_holds_over_http(tasks):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        # 10 at once, then 1 a second: 12 judgments take two seconds.
        run(OpenAIJudge(judge_settings(server, requests_per_minute=60, concurrency=12)), tasks[:12])
        assert server.times[-1] - server.times[0] > 1.5


def test_replicas_share_the_work(tasks):
    slow = Scripted(body=CERTAIN.body, delay=0.05)
    with ScriptedJudgeServer(lambda r, n: slow) as one, ScriptedJudgeServer(lambda r, n: slow) as other:
        found, _ = run(OpenAIJudge(judge_settings(one, other)), tasks)
        assert len(found) == 16 and all(verdict.value is not None for verdict in found)
        assert min(len(one.requests), len(other.requests)) >= 6


def test_a_replica_that_fails_rests_while_the_others_go_on(tasks):
    many = [Task(t.question, t.answers, sample=s) for s in range(4) for t in tasks]
    with ScriptedJudgeServer(lambda r, n: fails(503)) as ill, ScriptedJudgeServer(lambda r, n: CERTAIN) as well:
        found, _ = run(OpenAIJudge(judge_settings(ill, well, first_wait=0.5)), many)
        assert all(verdict.value is not None for verdict in found)
        assert len(well.requests) == 64
        assert len(ill.requests) <= 3 + 4  # until it rests, and the calls that were under way


def test_a_replica_that_is_gone_does_not_matter(tasks):
    with ScriptedJudgeServer(lambda r, n: CERTAIN) as well:
        settings = judge_settings(well) | {"endpoints": [{"base_url": "http://127.0.0.1:9/v1"}, {"base_url": well.url}]}
        found, _ = run(OpenAIJudge(settings), tasks)
    assert all(verdict.value is not None for verdict in found)


def test_retry_after_of_one_replica_is_kept_for_all_calls_to_it(tasks):
    def script(request, number):
        return fails(429, retry_after="30") if number == 0 else CERTAIN

    with ScriptedJudgeServer(script) as one, ScriptedJudgeServer(lambda r, n: CERTAIN) as other:
        began = time.monotonic()
        run(OpenAIJudge(judge_settings(one, other, concurrency=1)), tasks)
        assert time.monotonic() - began < 10
        assert (len(one.requests), len(other.requests)) == (1, 16)


def test_replicas_are_one_judge(tasks):
    def config(**settings):
        return OpenAIJudge({"model": "a", "api_key_env": ""} | settings).config(AlpacaEval(), {})

    one = config(base_url="http://a/v1")
    assert one == config(endpoints=[{"base_url": "http://a/v1"}, {"base_url": "http://b/v1"}])
    assert one == config(base_url="http://a/v1", endpoints=[{"base_url": "http://c/v1"}, {"base_url": "http://b/v1"}])
    assert one == config(base_url="http://a/v1", requests_per_minute=3, transport="online")
    assert one != config(base_url="http://a/v1", temperature=0.5)


def test_replicas_that_serve_different_models_are_refused(bench):
    other = says("m", {"m": -0.1, "M": -2.0}, model="another")
    with ScriptedJudgeServer(lambda r, n: CERTAIN) as one, ScriptedJudgeServer(lambda r, n: other) as two:
        with pytest.raises(JudgeError, match="serve different models"):
            judged.run(bench.stage(judge_settings(one, two)))
        assert len(one.requests) == len(two.requests) == 1


def test_models_that_want_max_completion_tokens_get_it(tasks):
    def script(request, number):
        if "max_tokens" in request:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return fails(400, text, "unsupported_parameter", param="max_tokens")
        return CERTAIN

    with ScriptedJudgeServer(script) as server:
        judge = OpenAIJudge(judge_settings(server, concurrency=1))
        found, calls = run(judge, tasks[:4])
        assert calls == 5 and all(verdict.value is not None for verdict in found)
        assert [request.get("max_completion_tokens") for request in server.requests] == [None, 1, 1, 1, 1]
        run(judge, tasks[4:6])
        assert "max_tokens" not in server.requests[5]  # remembered


def test_a_model_that_takes_no_temperature_is_an_error_with_the_setting(bench):
    def script(request, number):
        if "temperature" in request:
            text = "Unsupported value: 'temperature' does not support 0 with this model."
            return fails(400, text, "unsupported_value", param="temperature")
        return CERTAIN

    with ScriptedJudgeServer(script) as server:
        with pytest.raises(JudgeError, match="evaluate.judge.temperature"):
            judged.run(bench.stage(judge_settings(server)))
        assert len(server.requests) == 1
        metrics = judged.run(bench.stage(judge_settings(server, temperature="omit")))
        assert metrics["failed"] == 0 and all("temperature" not in request for request in server.requests[1:])


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (fails(401, "bad key"), "check its key"),
        (fails(404, "no such model"), "no such model"),
        (says("m"), "gave no log-probabilities"),
        (fails(400, "logprobs are not supported with reasoning models.", param="logprobs"), "no log-probabilities"),
        (fails(503), "did not answer a first small request"),
    ],
)
def test_the_first_small_request_finds_what_would_fail_them_all(bench, reply, words):
    with ScriptedJudgeServer(lambda request, number: reply) as server:
        with pytest.raises(JudgeError, match=words):
            judged.run(bench.stage(judge_settings(server)))
        assert len(server.requests) <= 2
        assert all(len(request["messages"][0]["content"]) < 100 for request in server.requests)
    assert bench.charged()["run"] in ((0, 0), (110, 1300))


def test_the_first_small_request_asks_for_logprobs_only_where_they_are_read(bench, data):
    from tests.judge_stage import entry

    prompts = {"data/mt_bench/judge_prompts": data / "mt_bench" / "judge_prompts.jsonl"}
    with ScriptedJudgeServer(lambda request, number: says("[[7]]")) as server:
        metrics = judged.run(bench.stage(judge_settings(server), entry("mt_bench", limit=2), inputs=prompts))
        assert metrics["failed"] == 0 and "logprobs" not in server.requests[0]
