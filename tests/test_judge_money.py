"""Prices, the ceiling on spending, and what a judge will cost."""

import asyncio

import pytest

from core.errors import JudgeError, RecipeError
from evals import judged
from evals.judges.forecast import forecast
from evals.judges.limits import Budget, BudgetReached, estimated_tokens
from evals.judges.openai_judge import OpenAIJudge
from evals.judges.prices import OPENAI_URL, TABLE, find_price
from tests.judge_stage import CERTAIN, JudgeStage, judge_settings
from tests.scripted_judge import Scripted, ScriptedJudgeServer, says


@pytest.fixture
def bench(registry, make_spec, starter, tmp_path):
    return JudgeStage(registry, make_spec, starter, tmp_path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_prices_come_from_the_recipe_the_user_or_the_table(home):
    shipped = find_price("gpt-4-1106-preview", OPENAI_URL)
    assert (shipped.input, shipped.output) == (10.0, 30.0) and "2023-11-06" in shipped.source
    assert shipped.micro_dollars(1000, 10) == 10_300
    (home / "prices.yaml").write_text(
        "gpt-4-1106-preview: {input: 1.0, output: 2.0}\nmine: {input: 3, output: 4, endpoint: http://h/v1}\n"
    )
    assert find_price("gpt-4-1106-preview", OPENAI_URL).output == 2.0
    assert find_price("mine", "http://h/v1/").input == 3.0 and find_price("mine", OPENAI_URL) is None
    given = find_price("gpt-4-1106-preview", OPENAI_URL, {"input": 7.0, "output": 8.0}, batch=True)
    assert (given.input, given.output) == (7.0, 8.0)


def test_batch_files_cost_half(home):
    assert find_price("gpt-4.1", OPENAI_URL, batch=True).input == find_price("gpt-4.1", OPENAI_URL).input / 2


def test_an_unknown_model_has_no_price(home):
    assert find_price("gpt-99", OPENAI_URL) is None
    # Nor has a known name at another endpoint: it may be anything there.
    assert find_price("gpt-4.1", "http://localhost:1/v1") is None


def test_every_shipped_price_names_its_source_and_date():
    import yaml

    table = yaml.safe_load(TABLE.read_text())
    assert len(table) > 8
    for model, row in table.items():
        assert row["source"] and row["date"] and 0 < row["input"] <= row["output"], model


def test_a_price_table_that_is_none_is_refused(home):
    (home / "prices.yaml").write_text("gpt-4.1: cheap\n")
    with pytest.raises(RecipeError, match="prices.yaml is not a price table"):
        find_price("gpt-4.1", OPENAI_URL)


def test_a_budget_without_a_price_is_refused(home):
    with pytest.raises(JudgeError, match="A budget needs a price"):
        OpenAIJudge({"model": "gpt-99", "api_key_env": "", "max_usd": 1.0})


def test_a_budget_waits_for_what_is_in_flight_before_it_stops():
    async def go():
        budget = Budget(100)
        await budget.reserve(60)
        waiting = asyncio.create_task(budget.reserve(60))
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.settle(60, 30)
        await waiting
        budget.settle(60, 60)
        with pytest.raises(BudgetReached):
            await budget.reserve(20)
        with pytest.raises(BudgetReached):  # closed: nothing small slips through afterwards
            await budget.reserve(1)
        assert budget.spent == 90

    asyncio.run(go())


def test_a_budget_outlives_an_event_loop():
    budget = Budget(100)

    async def go():
        await budget.reserve(20)
        waiting = asyncio.create_task(budget.reserve(90))
        await asyncio.sleep(0)
        budget.settle(20, 0)
        await waiting
        budget.settle(90, 0)

    asyncio.run(go())
    asyncio.run(go())


def test_an_estimate_that_was_too_low_raises_the_next_ones():
    budget = Budget(1000)
    budget.learn(100, 150)
    budget.learn(100, 80)
    assert budget.prompt_tokens(100) == 151


@pytest.mark.parametrize("concurrency", [1, 8])
def test_no_more_is_spent_than_allowed_and_the_rest_is_resumed(bench, concurrency):
    """The server bills what its usage says; the ceiling is above what seven judgments cost and below sixteen."""
    with ScriptedJudgeServer(lambda r, n: Scripted(body=CERTAIN.body, delay=0.02)) as server:
        settings = judge_settings(server, concurrency=concurrency)
        with pytest.raises(JudgeError, match="--max-usd"):
            judged.run(bench.stage(settings | {"max_usd": 0.018}))
        spent = bench.charged()["run"][1]
        assert spent == len(server.requests) * 1300 <= 18_000
        assert len(server.requests) >= 3
        assert bench.statuses() == ["partial"]
        # The same ceiling over all attempts of the run: nothing more is bought.
        asked = len(server.requests)
        with pytest.raises(JudgeError, match="--max-usd"):
            judged.run(bench.stage(settings | {"max_usd": 0.018}))
        assert len(server.requests) == asked or bench.charged()["run"][1] <= 18_000
        metrics = judged.run(bench.stage(settings | {"max_usd": 1.0}))
        assert metrics["failed"] == 0 and len(server.requests) == 17
    assert bench.charged()["run"] == (17 * 110, 17 * 1300)


def test_a_forecast_without_answers_is_near_what_is_then_spent(bench, starter):
    from evals.chat.alpaca_eval import AlpacaEval

    files = {"questions": starter / "alpaca_eval.jsonl"}
    questions = AlpacaEval().load(files)

    def script(request, number):
        return says("m", {"m": -0.1, "M": -2.4}, tokens=(estimated_tokens(request["messages"], 4.2), 1))

    with ScriptedJudgeServer(script) as server:
        judge = OpenAIJudge(judge_settings(server))
        blind = forecast(AlpacaEval(), files, questions, {}, 1, judge, lambda key: False)
        assert (blind.judgments, blind.calls, blind.cached, blind.assumed_answers) == (16, 16, 0, 16)
        stage = bench.stage(judge_settings(server))
        from sqlalchemy import select

        from db.models import AnswerSet
        from evals import records

        with bench.registry.read() as session:
            answers = records.stored_answers(session, session.scalars(select(AnswerSet.id)).one())
        known = forecast(AlpacaEval(), files, questions, answers, 1, judge, lambda key: False)
        assert known.assumed_answers == 0 and known.tokens_in < blind.tokens_in
        metrics = judged.run(stage)
        assert known.tokens_in + known.tokens_out == pytest.approx(metrics["tokens"], rel=0.1)
        assert metrics["micro_dollars"] <= known.worst_micro_dollars * 1.02
        assert known.micro_dollars == pytest.approx(metrics["micro_dollars"], rel=0.1)


def test_a_forecast_leaves_out_what_is_kept_and_what_is_judged(bench, starter):
    from evals.chat.alpaca_eval import AlpacaEval

    files = {"questions": starter / "alpaca_eval.jsonl"}
    questions = AlpacaEval().load(files)
    judge = OpenAIJudge({"model": "gpt-99", "api_key_env": ""})
    kept = forecast(AlpacaEval(), files, questions, {}, 1, judge, lambda key: True)
    assert (kept.calls, kept.cached, kept.micro_dollars) == (0, 16, None)
    made = forecast(AlpacaEval(), files, questions, {}, 1, judge, lambda key: False, lambda place: place[0] in ("0", "1"))
    assert made.calls == 14
    assert (kept + made).calls == 14 and (kept + made).micro_dollars is None
