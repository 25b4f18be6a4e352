"""MT-Bench against stored GPT-4 judgments and the averages published from them."""

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from evals.benchmark import read_jsonl
from evals.chat.mt_bench import OUTSIDE, SECOND_PATTERN, MTBench, find_rating
from evals.judges.judge import Reply, Task
from evals.verdict import Verdict

OPENAI = SimpleNamespace(kind="openai", name="gpt-4")
REWARD = SimpleNamespace(kind="reward_model", name="reward-model:0")


def official(data):
    folder = data / "mt_bench"
    return {
        "questions": folder / "question.jsonl",
        "references": folder / "reference_answer_gpt-4.jsonl",
        "judge_prompts": folder / "judge_prompts.jsonl",
    }


def scored(questions, verdicts, judge=OPENAI):
    row = SimpleNamespace(text="x", finish_reason="stop", output_tokens=5)
    answers = {(q.id, turn, 0): row for q in questions for turn in (1, 2)}
    rows = MTBench().scores(questions, answers, {v.key: v for v in verdicts}, judge, {})
    return {row.metric: row for row in rows}


def test_stored_judgments_give_the_published_averages(data):
    questions = MTBench().load(official(data))
    assert len(questions) == 80
    with open(data / "mt_bench" / "expected.csv") as handle:
        published = {row["model"]: row for row in csv.DictReader(handle) if row["published"]}
    assert len(published) == 3
    judgments = read_jsonl(data / "mt_bench" / "judgments_gpt-4_single.jsonl.gz")
    for model, row in published.items():
        verdicts = []
        for judged in (j for j in judgments if j["model"] == model):
            rating, _ = find_rating(judged["judgment"])
            verdicts.append(Verdict(str(judged["question_id"]), rating, turn=judged["turn"], raw={"rating": rating}))
        scores = scored(questions, verdicts)
        assert scores["score"].value == pytest.approx(float(row["average"]), abs=1e-6)
        assert round(scores["score"].value, 2) == float(row["published"])
        assert scores["turn1"].value == pytest.approx(float(row["turn1"]), abs=1e-6)
        assert scores["turn2"].value == pytest.approx(float(row["turn2"]), abs=1e-6)
        assert scores["category:math"].value == pytest.approx(float(row["math"]), abs=1e-4)
        assert (scores["score"].n, scores["score"].n_failed) == (160, 0)
        assert scores["score"].high - scores["score"].low == pytest.approx(1.3, abs=0.5)


def test_every_stored_rating_is_read_as_it_was(data):
    compared = failed = 0
    files = ("judgments_gpt-4_single.jsonl.gz", "judgments_gpt-4_single_misc_public_forks_slim.jsonl.gz")
    for name in files:
        with gzip.open(data / "mt_bench" / name, "rt") as handle:
            for row in map(json.loads, handle):
                found = find_rating(row["judgment"])
                if row["score"] == -1:
                    assert found is None
                    failed += 1
                else:
                    assert found[0] == row["score"]
                    compared += 1
    assert compared > 4500
    assert failed > 0


def test_rating_patterns():
    assert find_rating("Rating: [[7.5]] then [[3]]") == (7.5, None)
    assert find_rating("Rating: [8]") == (8.0, SECOND_PATTERN)
    assert find_rating("Rating: [[12]]") == (12.0, OUTSIDE)
    assert find_rating("Rating: 9") is None


def test_stored_prompts_are_rebuilt_from_the_templates(data):
    """The prompts that were sent in 2024 hold the answers; refilling the templates must give the same text."""
    benchmark, files = MTBench(), official(data)
    questions = {q.id: q for q in benchmark.load(files)}
    judgments = read_jsonl(data / "mt_bench" / "judgments_gpt-4_single.jsonl.gz")
    second = {(j["model"], j["question_id"]): j for j in judgments if j["turn"] == 2}
    compared = 0
    for judged in judgments:
        question = questions[str(judged["question_id"])]
        # Both answers stand in the second turn's prompt, between fixed headings.
        text = second[judged["model"], judged["question_id"]]["user_prompt"].split("Conversation with User|>\n\n", 1)[1]
        head, middle = (
            f"### User:\n{question.turns[0]}\n\n### Assistant A:\n",
            f"\n\n### User:\n{question.turns[1]}\n\n### Assistant A:\n",
        )
        tail = "\n\n<|The End of Assistant A's Conversation with User|>"
        first, last = text.removeprefix(head).removesuffix(tail).split(middle)
        answers = (first,) if judged["turn"] == 1 else (first, last)
        prompt = benchmark.prompt(Task(question, answers), files)
        assert prompt.messages[-1]["content"] == judged["user_prompt"]
        assert prompt.parameters == {"temperature": 0, "max_tokens": 2048}
        compared += 1
    assert compared == 480


def test_answers_that_look_like_fields_are_left_alone(data):
    benchmark, files = MTBench(), official(data)
    question = benchmark.load(files)[0]
    prompt = benchmark.prompt(Task(question, ("{question_2} {answer_2}", "{answer_1}")), files)
    assert prompt.messages[-1]["content"].count("{question_2} {answer_2}") == 1
    assert prompt.messages[-1]["content"].count("{answer_1}") == 1


def test_turn_two_sees_turn_one_and_temperatures_follow_the_category(starter):
    folder = starter / "mt_bench"
    benchmark = MTBench()
    questions = benchmark.load({"questions": folder / "question.jsonl", "references": folder / "reference_answer.jsonl"})
    assert len(questions) == 8
    messages = benchmark.messages(questions[0], ["first answer"])
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "first answer"
    temperatures = {q.category: benchmark.decoding(q, 1)["temperature"] for q in questions}
    assert temperatures["writing"] == 0.7 and temperatures["math"] == 0.0 and temperatures["stem"] == 0.1
    assert benchmark.decoding(questions[0], 1, {"max_tokens": 32}) == {"temperature": 0.7, "top_p": 1.0, "max_tokens": 32}


def test_failures_are_bounded_by_the_scale(starter):
    folder = starter / "mt_bench"
    questions = MTBench().load({"questions": folder / "question.jsonl", "references": folder / "reference_answer.jsonl"})
    verdicts = [Verdict(q.id, 7.0, turn=turn) for q in questions for turn in (1, 2)][1:]
    row = scored(questions, verdicts)["score"]
    assert (row.n, row.n_failed, row.value) == (15, 1, 7.0)
    assert (row.worst, row.best) == pytest.approx(((105 + 1) / 16, (105 + 10) / 16))
    assert row.withheld.value is None


def test_flagged_ratings_are_counted(starter):
    folder = starter / "mt_bench"
    benchmark = MTBench()
    questions = benchmark.load({"questions": folder / "question.jsonl", "references": folder / "reference_answer.jsonl"})
    verdicts = []
    for i, question in enumerate(questions):
        for turn in (1, 2):
            reading = benchmark.read(Task(question, ("x",) * turn), [Reply(("[6]", "[[12]]", "[[6]]")[min(i, 2)])], None)
            verdicts.append(Verdict(question.id, reading.value, turn=turn, raw=reading.detail))
    found = benchmark.statistics(questions, {}, {v.key: v for v in verdicts}, OPENAI, {})
    assert found == {"flagged": {SECOND_PATTERN: 2, OUTSIDE: 2}}
    # A rating off the scale counts as upstream counts it.
    assert scored(questions, verdicts)["score"].value == pytest.approx((2 * 6 + 2 * 12 + 12 * 6) / 16)


def test_a_reward_model_rates_against_references_only(data):
    questions = MTBench().load(official(data))
    referenced = [q for q in questions if q.data["reference"]]
    assert 0 < len(referenced) < 80
    generator = np.random.default_rng(0)
    verdicts = [Verdict(q.id, MTBench().value_of(generator.random()), turn=t) for q in referenced for t in (1, 2)]
    row = scored(questions, verdicts, REWARD)["score"]
    assert (row.n, row.n_failed) == (2 * len(referenced), 0)
    assert 1 <= row.value <= 10
    assert "sigmoid of reward difference, with references" in row.method
    ours, theirs = MTBench().compared(Task(referenced[0], ("a", "b")))
    assert [m["content"] for m in ours][1::2] == ["a", "b"]
    assert [m["content"] for m in theirs][1::2] == referenced[0].data["reference"][:2]
