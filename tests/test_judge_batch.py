"""OpenAI's batch files as the judge's transport, against a local server that speaks /files and /batches."""

import subprocess
import sys
import time

import pytest
from sqlalchemy import func, select

from core.errors import JudgeError
from core.stage import Spec, Stage
from db.models import JudgeResponse
from evals import judged
from evals.chat.alpaca_eval import AlpacaEval
from evals.judges.batch import MOST_REQUESTS, _parts
from tests.batch_server import BatchServer
from tests.conftest import ROOT
from tests.judge_stage import CERTAIN, JudgeStage, entry, judge_settings
from tests.scripted_judge import ScriptedJudgeServer, fails, says


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


def batch(server, **changes):
    return judge_settings(server, transport="batch", first_poll=0.05, **changes)


def test_one_batch_gives_what_single_calls_give(bench):
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as server:
        judged.run(bench.stage(judge_settings(server)))
        wanted = bench.verdicts()
    with BatchServer(lambda request: CERTAIN, looks=3) as server:
        stage = bench.stage(batch(server))
        metrics = judged.run(stage)
        assert (metrics["failed"], len(server.batches), len(server.submitted)) == (0, 1, 16)
        assert {request["model"] for request in server.submitted} == {"scripted"}
        assert all(request["top_logprobs"] == 5 for request in server.submitted)
        # The first small request goes by itself: a batch is no place to find out that the key is wrong.
        assert server.paths.count("POST /v1/chat/completions") == 1
        assert not (stage.work / "batches" / "alpaca_eval").exists()
        asked = len(server.paths)
        assert judged.run(stage)["calls"] == 0 and len(server.paths) == asked
    assert bench.verdicts() == wanted
    assert bench.charged()["run"] == (2 * 17 * 110, 2 * 17 * 1300)


def test_requests_that_fail_in_a_batch_are_failures_of_their_own(bench, registry, starter):
    questions = AlpacaEval().load({"questions": starter / "alpaca_eval.jsonl"})
    refused, lost, ill = (questions[i].turns[0] for i in (2, 5, 9))
    mended = []

    def script(request):
        text = request["messages"][-1]["content"]
        if not mended:
            for poor, reply in ((refused, fails(400, "content filter")), (lost, fails(500)), (ill, says("m"))):
                if poor in text:
                    return reply
        return CERTAIN

    with BatchServer(script) as server:
        stage = bench.stage(batch(server))
        with pytest.raises(JudgeError, match="1 of 16 judgments of alpaca_eval got no reply"):
            judged.run(stage)
        assert sum(value is None for value in bench.verdicts().values()) == 3
        mended.append(True)
        judged.run(stage)
        # Only the three: the refused and the lost one as they were, the unreadable one for another sample.
        assert (len(server.batches), len(server.submitted)) == (2, 19)
    assert None not in bench.verdicts().values()
    with registry.read() as session:
        assert session.scalar(select(func.count()).select_from(JudgeResponse)) == 1 + 17
    assert bench.charged()["judgments"] == (18 * 110, 18 * 1300)


def test_answers_that_are_the_same_are_judged_once(bench):
    """Two samples with one text ask one thing; the second waits for the first one's reply, also in a batch."""
    from evals.judges.judge import Task
    from evals.judges.openai_judge import OpenAIJudge

    question = AlpacaEval().load({"questions": bench.starter / "alpaca_eval.jsonl"})[0]
    tasks = [Task(question, ("The same.",), sample=sample) for sample in range(3)]
    with BatchServer(lambda request: CERTAIN) as server:
        stage, found = bench.stage(batch(server)), []
        judge = OpenAIJudge(batch(server), stage.work)
        work = judged._Work(stage, bench.registry, entry("alpaca_eval"), judge)
        judge.judge(AlpacaEval(), {}, tasks, found.extend, work.ledger())
        assert len(server.submitted) == 1
    assert len({verdict.value for verdict in found}) == 1 and len(found) == 3


@pytest.mark.parametrize("named", ["max_completion_tokens", "auto"])
def test_a_batch_names_the_limit_of_replies_as_the_model_takes_it(bench, named):
    """Also where the first small request has to find it out, and in a later stage, which has that one's reply already."""
    refusal = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def reasoning_model(request):
        return fails(400, refusal) if "max_tokens" in request else CERTAIN

    with BatchServer(reasoning_model) as server:
        for weights in (b"first", b"second"):
            server.submitted.clear()
            bench.set_weights(weights)
            stage = Stage(Spec.load(bench.spec(batch(server, max_tokens_name=named))))
            stage.work.mkdir(parents=True, exist_ok=True)
            bench.answer(stage, suffix=str(weights))
            assert judged.run(stage)["failed"] == 0
            assert server.submitted and all("max_tokens" not in request for request in server.submitted)
            assert {request["max_completion_tokens"] for request in server.submitted} == {1}


@pytest.mark.parametrize("when", ["waiting", "unanswered"])
def test_a_killed_stage_submits_nothing_twice(bench, when):
    """Killed while the batch runs, and killed between the batch's making and the knowledge of its id."""
    with BatchServer(lambda request: CERTAIN, looks=10**6) as server:
        stage = bench.stage(batch(server))
        spec = bench.spec(batch(server))
        if when == "unanswered":
            server.on_create = lambda: time.sleep(60)
        process = subprocess.Popen([sys.executable, "-m", "evals.judged", str(spec)], cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        seen = "GET /v1/batches/batch-0" if when == "waiting" else "POST /v1/batches"
        while seen not in server.paths and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert len(server.batches) == 1
        server.looks, server.on_create = 1, lambda: None
        metrics = judged.run(stage)
        assert (metrics["failed"], len(server.batches), len(server.submitted)) == (0, 1, 16)
        assert server.paths.count("POST /v1/batches") == 1
    assert bench.charged()["run"] == (17 * 110, 17 * 1300)


def test_a_batch_that_fails_whole_says_why(bench):
    with BatchServer(lambda request: CERTAIN, status="failed") as server:
        stage = bench.stage(batch(server))
        with pytest.raises(JudgeError, match="ended as failed .*too many tokens"):
            judged.run(stage)
        server.status = "completed"
        assert judged.run(stage)["failed"] == 0
        assert len(server.batches) == 2


def test_a_budget_is_weighed_before_a_batch(bench):
    with BatchServer(lambda request: CERTAIN) as server:
        with pytest.raises(JudgeError, match="--max-usd"):
            judged.run(bench.stage(batch(server, max_usd=0.01)))
        assert server.batches == {}


def test_a_batch_keeps_within_the_endpoints_limits():
    lines = {str(i): "x" * 10 for i in range(MOST_REQUESTS + 1)}
    assert [len(part) for part in _parts(lines)] == [MOST_REQUESTS, 1]
    large = {str(i): "x" * (100 * 2**20) for i in range(2)}
    assert [len(part) for part in _parts(large)] == [1, 1]
