"""What verdicts say of their judge: hand-made cases whose answer is known, and saved GPT-4 verdicts."""

import gzip
import json
import random

import pytest

from evals.benchmark import Question
from evals.chat.alpaca_eval import AlpacaEval, is_switched
from evals.chat.arena_hard import ArenaHard
from evals.chat.mt_bench import MTBench
from evals.judges.bias import Game, first_preference, flip_rate, judge_bias, length_slope, longer_preference
from evals.judges.judge import Task
from evals.verdict import Verdict


def games(values, first, lengths=(100,), others=(50,)):
    """Games of one question each: values, whether the policy was first, lengths; short lists repeat."""
    rows = []
    for i, value in enumerate(values):
        place = (first[i % len(first)], lengths[i % len(lengths)], others[i % len(others)])
        rows.append(Game(str(i), (i,), value, *place))
    return rows


def both_orders(pairs):
    """Two games a question: (the policy's share when second, when first)."""
    orders = [(str(i), value, first) for i, pair in enumerate(pairs) for value, first in zip(pair, (False, True), strict=True)]
    return [Game(item, (item,), value, first, 10, 10) for item, value, first in orders]


def test_a_judge_that_follows_the_answer_never_flips_and_prefers_no_position():
    found = both_orders([(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.9, 0.8)] * 5)
    assert flip_rate(found)["value"] == 0
    assert flip_rate(found)["n"] == 20
    assert first_preference(found)["value"] == pytest.approx(0.5 - 0.1 / 4 / 2)


def test_a_judge_that_always_takes_the_first_flips_always():
    found = both_orders([(0.0, 1.0)] * 12)
    assert flip_rate(found)["value"] == 1 and flip_rate(found)["low"] > 0.7
    assert first_preference(found) == {"value": 1.0, "low": None, "high": None, "n": 12}


def test_a_tie_in_one_order_is_a_flip():
    assert flip_rate(both_orders([(0.5, 1.0), (1.0, 1.0)]))["value"] == 0.5


def test_one_order_each_tells_position_apart_from_quality():
    # A policy that wins 0.8 of the time from either place: the plain share of the first answer would depend on the coin.
    fair = games([0.8] * 30, [True, True, False])
    assert first_preference(fair)["value"] == pytest.approx(0.5)
    # 0.2 more when first: an equally good answer would get 0.6 there and 0.4 in second place.
    drawn = random.Random(0)
    pulled = games([0.0] * 400, [True])
    pulled = [
        Game(g.item, g.comparison, 0.7 + 0.1 * (1 if first else -1) + drawn.uniform(-0.1, 0.1), first, 10, 10)
        for g, first in ((g, drawn.random() < 0.5) for g in pulled)
    ]
    found = first_preference(pulled)
    assert found["value"] == pytest.approx(0.6, abs=0.01)
    assert found["low"] < 0.6 < found["high"] and found["high"] - found["low"] < 0.05
    assert first_preference(games([1.0] * 20, [True])) is None, "one position only says nothing"


def test_the_longer_answer():
    found = longer_preference(games([1.0, 0.0, 0.5, 1.0], [None], [100, 20, 100, 50], [50, 40, 50, 50]))
    # won while longer, lost while shorter (so the longer won), tie; equal lengths are left out.
    assert found["value"] == pytest.approx((1 + 1 + 0.5) / 3) and found["n"] == 3
    lengths = [50, 100, 200, 400, 800, 25, 150, 300]
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.4, 0.5 + 0.1 * 1.584963, 0.5 + 0.1 * 2.584963]
    assert length_slope(games(values, [None], lengths, [50]))["value"] == pytest.approx(0.1, abs=1e-6)
    assert length_slope(games(values, [None], [70], [50])) is None, "no spread of lengths"


def judged(benchmark, questions, values, raw=None, games=(1,)):
    tasks = [Task(q, tuple("x" * (10 + 7 * i) for _ in q.turns), 0, g) for i, q in enumerate(questions) for g in games]
    return tasks, {t.key: Verdict(t.question.id, v, t.turn, 0, t.game, raw=raw) for t, v in zip(tasks, values, strict=True)}


def test_each_benchmark_gives_what_its_design_can():
    questions = [Question(str(i), "writing", ("q",), {"baseline": "y" * 40, "reference": None}) for i in range(10)]
    tasks, verdicts = judged(ArenaHard(), questions, [0.0, 1.0] * 10, games=(1, 2))
    found = judge_bias(ArenaHard(), tasks, verdicts, "openai")
    assert (found["flip_rate"]["value"], found["first_preference"]["value"]) == (1, 1)
    assert not {"flip_rate", "first_preference"} & judge_bias(ArenaHard(), tasks, verdicts, "reward_model").keys()
    tasks, verdicts = judged(MTBench(), questions, [float(1 + i % 10) for i in range(10)])
    rated = judge_bias(MTBench(), tasks, verdicts, "openai")
    assert rated.keys() == {"length_slope", "failed", "unread"}
    assert rated["failed"]["value"] == 0 and rated["failed"]["high"] > 0


def test_failures_and_unreadable_replies_are_counted_apart():
    questions = [Question(str(i), "", ("q",), {"baseline": "y"}) for i in range(4)]
    tasks, verdicts = judged(AlpacaEval(), questions, [0.3, 0.4, None, None])
    verdicts[tasks[2].key] = Verdict("2", None, error="unreadable", raw={"replies": [{"text": "?"}]})
    found = judge_bias(AlpacaEval(), tasks, verdicts, "openai")
    assert (found["failed"]["value"], found["unread"]["value"]) == (0.5, 0.25)
    # Equal answers are the benchmark's rule, not the judge's opinion.
    tied = {t.key: Verdict(t.question.id, 0.5, raw={"rule": "equal answers"}) for t in tasks}
    assert "ties" not in judge_bias(AlpacaEval(), tasks, tied, "openai")


def test_gpt4_turbos_verdicts_on_alpaca_eval(data):
    """It gives less to the answer shown first, in every saved set, and more to the longer one where models are near."""
    benchmark = AlpacaEval()
    questions = {
        q.turns[0]: q for q in benchmark.load({"questions": data / "alpaca_eval/eval_set_and_baseline_outputs.jsonl.gz"})
    }
    for name in ("FuseChat-Llama-3.1-8B-Instruct", "claude-2"):
        with gzip.open(data / f"alpaca_eval/annotations_full_{name}.json.gz", "rt", encoding="utf-8") as handle:
            rows = json.load(handle)
        tasks = [Task(questions[row["instruction"]], (row["output_2"],)) for row in rows]
        verdicts = {
            t.key: Verdict(t.question.id, (row["preference"] or 1.5) - 1, raw={"switched": is_switched(row["instruction"])})
            for t, row in zip(tasks, rows, strict=True)
        }
        found = judge_bias(benchmark, tasks, verdicts, "openai")
        assert found["first_preference"]["high"] < 0.5
        assert found["longer_preference"]["low"] > 0.5
        assert found["length_slope"]["low"] > 0
        assert found["first_preference"]["n"] == 805
