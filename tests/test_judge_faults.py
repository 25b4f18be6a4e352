"""An endpoint that fails in every way at once: all judgments end, the ledger is exact, the scores are the fault-free ones."""

import random
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from sqlalchemy import select

from core.errors import JudgeError
from db.models import JudgeResponse, Judgment
from evals import judged
from evals.chat.alpaca_eval import AlpacaEval
from tests.judge_stage import CERTAIN, JudgeStage, judge_settings
from tests.scripted_judge import Scripted, ScriptedJudgeServer, billed, fails, says


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


def _verdict(request, number):
    """A verdict of its own for each question, by what is asked."""
    text = request["messages"][-1]["content"]
    return says("m", {"m": -0.1 - len(text) % 97 / 50, "M": -1.0}, tokens=(len(text) // 4, 1))


FAULTS = [
    fails(429, "slow down", retry_after="0.05"),
    fails(429, "slow down"),
    fails(500),
    fails(503),
    Scripted(delay=1.0, body=CERTAIN.body),  # longer than the client waits
    Scripted(200, '{"id": "x", "choices": [{"mess', {"Content-Length": "4000"}),  # the connection closes half-way
    Scripted(200, "<html>gateway</html>"),
    Scripted(200, {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 3}}),  # malformed, and billed
    says("m", tokens=(60, 1)),  # no log-probabilities
    says("", finish_reason="content_filter", tokens=(70, 0)),
    fails(400, "content management policy", code="content_filter"),
]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_faults_change_neither_ledger_nor_scores(bench, registry, make_spec, starter, tmp_path, share):
    with ScriptedJudgeServer(_verdict) as server:
        judged.run(bench.stage(judge_settings(server)))
    wanted = bench.verdicts(), bench.scores()

    from db.registry import Registry

    faulty = JudgeStage(Registry.open(f"sqlite:///{tmp_path / 'faulty.db'}"), make_spec, starter, tmp_path)
    generator, lock, told, next_fault = random.Random(7), threading.Lock(), [], iter(FAULTS * 50)

    def script(request, number):
        with lock:
            if number and generator.random() < share:  # the probe's own faults are another test
                fault = next(next_fault)
                if fault.delay == 0 or share > 0.2:
                    told.append(fault)
                    return fault
            reply = _verdict(request, number)
            told.append(reply)
            return reply

    with ScriptedJudgeServer(script) as server:
        stage = faulty.stage(judge_settings(server, attempts=4, timeout=0.4))
        for _ in range(20):
            with suppress(JudgeError):
                judged.run(stage)
            with faulty.registry.read() as session:
                rows = session.scalars(select(Judgment)).all()
            # Done, or failed with a kind: refused, empty, no logprobs; or without any reply, which the error says.
            assert all(j.value is not None or j.raw.get("rule") or "no reply" in j.error for j in rows)
            if all(j.value is not None for j in rows) and len(rows) == 16:
                break
        asked = len(server.requests)
        assert judged.run(stage)["calls"] == 0 and len(server.requests) == asked
    assert any(fault in told for fault in FAULTS)
    assert (faulty.verdicts(), faulty.scores()) == wanted
    paid = [billed(reply) for reply in told]
    tokens, dollars = sum(a + b for a, b in paid), sum(10 * a + 30 * b for a, b in paid)
    charged = faulty.charged()
    assert charged["judgments"] == charged["evaluation"] == charged["run"] == (tokens, dollars)
    faulty.registry.close()


def test_a_malformed_reply_that_is_billed_is_charged_and_not_kept(bench, registry):
    malformed = Scripted(200, {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 3}})
    with ScriptedJudgeServer(lambda request, number: malformed if number == 5 else CERTAIN) as server:
        metrics = judged.run(bench.stage(judge_settings(server)))
    assert (metrics["calls"], metrics["failed"]) == (18, 0)
    charged = bench.charged()
    assert charged["judgments"] == (17 * 110 + 53, 17 * 1300 + 590) == charged["run"]
    assert charged["kept"] == (17 * 110, 17 * 1300)


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        (says("", finish_reason="content_filter"), "refused"),
        (says("", refusal="I would rather not."), "refused"),
        (says(""), "empty reply"),
        (says("m"), "no logprobs"),
        (says("x", {"x": -0.1}), "unreadable"),
    ],
)
def test_failures_have_a_kind_and_another_sample_is_asked_for(bench, registry, starter, reply, rule):
    poor = AlpacaEval().load({"questions": starter / "alpaca_eval.jsonl"})[3].turns[0]
    mended = []

    def script(request, number):
        return reply if poor in request["messages"][-1]["content"] and not mended else CERTAIN

    with ScriptedJudgeServer(script) as server:
        stage = bench.stage(judge_settings(server))
        assert judged.run(stage)["failed"] == 1
        with registry.read() as session:
            failed = session.scalars(select(Judgment).where(Judgment.value.is_(None))).one()
            assert failed.raw["rule"] == rule and failed.error
        assert judged.run(stage)["failed"] == 1  # the same again: kept beside the first
        mended.append(True)
        metrics = judged.run(stage)
        assert (metrics["failed"], metrics["calls"]) == (0, 1)
        assert len(server.requests) == 1 + 16 + 1 + 1
    with registry.read() as session:
        assert len(session.scalars(select(JudgeResponse)).all()) == 19


def test_calls_in_flight_are_kept_when_another_ends_the_stage(bench):
    """A 401 in the middle stops new calls; those under way are paid for and stored."""

    def script(request, number):
        if number == 6:
            return fails(401, "key withdrawn")
        return Scripted(body=CERTAIN.body, delay=0.2 if number > 2 else 0)

    with ScriptedJudgeServer(script) as server:
        with pytest.raises(JudgeError, match="key withdrawn"):
            judged.run(bench.stage(judge_settings(server)))
        answered = len(server.requests) - 1
    assert bench.charged()["run"] == (answered * 110, answered * 1300)
    assert sum(value is not None for value in bench.verdicts().values()) == answered - 1
    assert bench.statuses() == ["partial"]


def test_nobody_waits_out_a_retry_once_the_end_is_known(bench):
    """A judgment told to come back in a minute does not hold up the end that another one brings."""

    def script(request, number):
        withdrawn = replace(fails(401, "key withdrawn"), delay=0.3)  # sent before the 429 came back
        return fails(429, retry_after="60") if number == 2 else withdrawn if number == 4 else CERTAIN

    with ScriptedJudgeServer(script) as server:
        began = time.monotonic()
        with pytest.raises(JudgeError, match="key withdrawn"):
            judged.run(bench.stage(judge_settings(server)))
        assert time.monotonic() - began < 20
