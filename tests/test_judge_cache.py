"""What a judge was asked before is not asked again; whatever changes the question, or who answers, is."""

import pytest
from sqlalchemy import select

from db.models import Answer, JudgeResponse, Judgment
from db.samples import conversations
from evals import judged
from evals.chat import alpaca_eval
from evals.judges.cache import request_key
from tests.judge_stage import CERTAIN, JudgeStage, entry, judge_settings
from tests.scripted_judge import ScriptedJudgeServer, says

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


@pytest.fixture
def server():
    with ScriptedJudgeServer(lambda request, number: CERTAIN) as running:
        yield running


def calls(bench, server, *entries, **changes):
    return judged.run(bench.stage(judge_settings(server, **changes), *entries))["calls"]


def test_nothing_changed_means_no_call(bench, server):
    assert calls(bench, server) == 17
    assert calls(bench, server) == 0
    # How it is reached and paid changes nothing.
    assert calls(bench, server, concurrency=1, attempts=5, price=None, requests_per_minute=6000, timeout=9) == 0
    assert len(server.requests) == 17


def test_another_model_misses(bench, server):
    calls(bench, server)
    assert calls(bench, server, model="another") == 17


def test_another_temperature_misses(bench, server):
    calls(bench, server)
    assert calls(bench, server, temperature=0.7) == 17
    assert {request["temperature"] for request in server.requests[17:]} == {0.7}


def test_a_lower_reply_limit_misses_where_it_lowers_anything(bench, server):
    calls(bench, server)
    # AlpacaEval's judge says one token: its requests stay as they are, though the judge is another one by name.
    assert calls(bench, server, max_tokens=16) == 0


def test_another_template_misses(bench, server, monkeypatch):
    calls(bench, server)
    messages, parameters, sha256 = alpaca_eval.judge_template()
    changed = [m | {"content": "Judge. " + m["content"]} for m in messages], parameters, "0" * 64
    monkeypatch.setattr(alpaca_eval, "judge_template", lambda: changed)
    assert calls(bench, server) == 16


def test_other_weights_with_other_answers_miss(bench, server):
    calls(bench, server)
    bench.set_weights(b"other weights")
    stage = bench.stage(judge_settings(server))
    assert judged.run(stage)["calls"] == 0  # other weights that say the very same: the replies are shared, and charged once
    assert bench.charged()["run"] == (17 * 110, 17 * 1300) == bench.charged()["kept"]
    assert len(bench.statuses()) == 2
    bench.set_weights(b"and others")
    from core.stage import Spec, Stage

    stage = Stage(Spec.load(bench.spec(judge_settings(server))))
    stage.work.mkdir(parents=True, exist_ok=True)
    bench.answer(stage, suffix=" Indeed.")
    assert judged.run(stage)["calls"] == 16


def test_more_questions_ask_for_the_new_ones_only(bench, server):
    assert calls(bench, server, entry("alpaca_eval", limit=6)) == 7
    assert calls(bench, server) == 10
    assert bench.charged()["judgments"] == (17 * 110, 17 * 1300)


def test_the_key_holds_who_is_asked_what_and_how():
    base = ("https://a/v1", "m", [{"role": "user", "content": "q"}], {"temperature": 0}, 0)
    others = [
        ("https://b/v1", *base[1:]),
        (base[0], "n", *base[2:]),
        (*base[:2], [{"role": "user", "content": "r"}], *base[3:]),
        (*base[:3], {"temperature": 1}, 0),
        (*base[:4], 1),
    ]
    assert len({request_key(*base), *(request_key(*other) for other in others)}) == 6


def test_the_reply_is_kept_whole_with_the_model_that_gave_it(bench, registry):
    with ScriptedJudgeServer(lambda r, n: says("m", {"m": -0.1, "M": -2.0}, model="scripted-2024-01-01")) as server:
        calls(bench, server)
    with registry.read() as session:
        rows = session.scalars(select(JudgeResponse)).all()
    assert {row.served_model for row in rows} == {"scripted-2024-01-01"} and {row.model for row in rows} == {"scripted"}
    assert all(row.response["usage"]["prompt_tokens"] == row.tokens_in == 100 for row in rows)


def test_what_the_judge_was_shown_is_kept_beside_its_verdict(bench, registry):
    with ScriptedJudgeServer(lambda r, n: CERTAIN) as server:
        calls(bench, server)
        sent = [request["messages"] for request in server.requests]
    with registry.read() as session:
        rows, answers = session.scalars(select(Judgment)).all(), session.scalars(select(Answer)).all()
        evaluation = rows[0].evaluation_id
        shown = conversations(session, evaluation)
    texts = {answer.question_id: answer.text for answer in answers}
    assert len(rows) == 16 == len(shown)
    for row in rows:
        assert shown[row.shown] in sent and texts[row.question_id] in shown[row.shown][-1]["content"]


def test_a_failed_call_is_not_kept(bench, registry):
    from tests.scripted_judge import fails

    with ScriptedJudgeServer(lambda r, n: fails(400, "content filter") if n == 4 else CERTAIN) as server:
        calls(bench, server)
    with registry.read() as session:
        assert len(session.scalars(select(JudgeResponse)).all()) == 16


def test_a_follow_up_is_kept_by_its_whole_conversation(registry, make_spec, starter, tmp_path, data):
    """Arena-Hard asks again for a label; the second call's key holds the first reply."""
    bench = JudgeStage(registry, make_spec, starter, tmp_path)

    def script(request, number):
        return says("[[A>B]]") if len(request["messages"]) > 2 else says("Both have merit.")

    config = {"data/arena_hard/judge_config": data / "arena_hard" / "config_v0.1_judge_config.yaml"}
    with ScriptedJudgeServer(script) as server:
        stage = bench.stage(judge_settings(server), entry("arena_hard", limit=2), inputs=config)
        assert judged.run(stage)["calls"] == 1 + 2 * 2 * 2
        bench.set_weights(b"a twin")
        assert judged.run(bench.stage(judge_settings(server), entry("arena_hard", limit=2), inputs=config))["calls"] == 0
    with registry.read() as session:
        rows = session.scalars(select(Judgment)).all()
        shown = [conversations(session, row.evaluation_id)[row.shown] for row in rows]
    assert len(rows) == 8 and {len(messages) for messages in shown} == {4}
    assert {messages[2]["content"] for messages in shown} == {"Both have merit."}
    assert all(len(row.raw["replies"]) == 2 for row in rows)


def test_postgresql_keeps_the_same_ledger(postgres_url, make_spec, starter, tmp_path, server):
    from db.registry import Registry

    registry = Registry.open(postgres_url)
    bench = JudgeStage(registry, make_spec, starter, tmp_path)
    assert (calls(bench, server), calls(bench, server)) == (17, 0)
    assert set(bench.charged().values()) == {(17 * 110, 17 * 1300)}
    registry.close()
