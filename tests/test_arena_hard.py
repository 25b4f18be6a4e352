"""Arena-Hard v0.1 against the official battles and judgments."""

from types import SimpleNamespace

import numpy as np
import pytest

from core.errors import MissingInput
from evals.benchmark import files_of, read_jsonl
from evals.chat.arena_hard import ArenaHard, find_label
from evals.chat.arena_scores import points, score_interval_by_battle
from evals.judges.judge import Reply, Task
from evals.verdict import Verdict

PATTERN = r"\[\[([AB<>=]+)\]\]"
PUBLISHED = {"gpt-4-0613": 37.90, "gpt-3.5-turbo-0125": 23.34}
OPENAI = SimpleNamespace(kind="openai", name="gpt-4-1106-preview")


def official(data):
    folder = data / "arena_hard"
    return {
        "questions": folder / "question_v0.1.jsonl.gz",
        "baseline": folder / "model_answer_v0.1_gpt-4-0314.jsonl.gz",
        "judge_config": folder / "config_v0.1_judge_config.yaml",
    }


def answer(text="x"):
    return SimpleNamespace(text=text, finish_reason="stop", output_tokens=5)


def scored(questions, verdicts, judge=OPENAI):
    answers = {(q.id, 1, 0): answer() for q in questions}
    rows = ArenaHard().scores(questions, answers, {v.key: v for v in verdicts}, judge, {})
    return {row.metric: row for row in rows}


@pytest.mark.parametrize(("model", "published"), PUBLISHED.items())
def test_official_judgments_give_the_published_score(data, model, published):
    questions = ArenaHard().load(official(data))
    assert len(questions) == 500
    verdicts = []
    for row in read_jsonl(data / "arena_hard" / "model_judgment" / "gpt-4-1106-preview" / f"{model}.jsonl.gz"):
        for game, judged in enumerate(row["games"], 1):
            reading = points(judged["score"], game) if judged["score"] else None
            raw = {"weight": reading[1]} if reading else {"rule": "stored failure"}
            verdicts.append(Verdict(row["question_id"], reading[0] if reading else None, game=game, raw=raw))
    row = scored(questions, verdicts)["score"]
    assert round(row.value, 2) == published
    assert row.low < published < row.high


@pytest.mark.parametrize(("model", "published"), PUBLISHED.items())
def test_official_battles_give_the_published_score(data, model, published):
    battles = read_jsonl(data / "arena_hard" / "battles_v0.1_official_gpt-4-1106-preview_judge_2models.jsonl.gz")
    values = []
    for row in battles:
        if model in (row["model_a"], row["model_b"]):
            won = row["model_a"] if row["winner"] == "model_a" else row["model_b"] if row["winner"] == "model_b" else None
            values.append(0.5 if won is None else float(won == model))
    assert round(100 * np.mean(values), 2) == published


def test_interval_by_prompt_is_wider_than_the_published_one(data):
    rows = read_jsonl(data / "arena_hard" / "model_judgment" / "gpt-4-1106-preview" / "gpt-4-0613.jsonl.gz")
    games = [
        (row["question_id"], g, *points(game["score"], g))
        for row in rows
        for g, game in enumerate(row["games"], 1)
        if game["score"]
    ]
    verdicts = [Verdict(question, value, game=g, raw={"weight": weight}) for question, g, value, weight in games]
    row = scored(ArenaHard().load(official(data)), verdicts)["score"]
    low, high = score_interval_by_battle([g[2] for g in games], [g[3] for g in games])
    # The published interval of this model is (35.3, 40.4); by prompt it is (33.9, 41.8).
    assert (low, high) == pytest.approx((35.3, 40.4), abs=0.7)
    assert (row.low, row.high) == pytest.approx((33.9, 41.8), abs=0.4)
    assert row.stderr == pytest.approx(2.0, abs=0.1)


def test_points_are_the_policys():
    assert points("A>>B", 1) == (0.0, 3)
    assert points("A>>B", 2) == (1.0, 3)
    assert points("B>A", 1) == (1.0, 1)
    assert points("A=B", 1) == points("A=B", 2) == (0.5, 1)
    assert points("A<B", 1) is None


def test_labels():
    assert find_label("So: [[A>B]]. Indeed [[A>B]]", PATTERN) == ("A>B", False)
    assert find_label("[[A>B]] or [[B>A]]", PATTERN) == (None, False)
    assert find_label("I cannot say. [[a>b]]", PATTERN) == (None, True)


def test_prompt_follows_the_official_config_and_swaps_positions(data):
    benchmark, files = ArenaHard(), official(data)
    question = benchmark.load(files, limit=1)[0]
    text = "An answer with {answer_1}, {answer_2} and [[A>>B]]."
    first, second = (benchmark.prompt(Task(question, (text,), game=game), files) for game in (1, 2))
    for prompt in (first, second):
        assert [m["role"] for m in prompt.messages] == ["system", "user"]
        assert prompt.messages[1]["content"].count(text) == 1
        assert prompt.parameters == {"temperature": 0, "max_tokens": 4096}
        assert prompt.calls == 3
    baseline = question.data["baseline"]
    assert first.messages[1]["content"].index(baseline) < first.messages[1]["content"].index(text)
    assert second.messages[1]["content"].index(text) < second.messages[1]["content"].index(baseline)


def test_a_reply_without_label_is_asked_again_and_one_with_two_is_not(data):
    benchmark, files = ArenaHard(), official(data)
    task = Task(benchmark.load(files, limit=1)[0], ("x",))
    prompt = benchmark.prompt(task, files)
    silent = benchmark.read(task, [Reply("Hm.")], prompt)
    assert silent.value is None and silent.ask_again
    assert benchmark.read(task, [Reply("Hm."), Reply("[[B>>A]]")], prompt).value == 1.0
    torn = benchmark.read(task, [Reply("[[A>B]] [[B>A]]")], prompt)
    assert torn.value is None and torn.ask_again is None
    assert benchmark.read(task, [Reply("[[A<B]]")], prompt).error == "'A<B' is not a verdict label"


def test_failures_are_bounded_by_strong_verdicts(starter):
    folder = starter / "arena_hard"
    questions = ArenaHard().load({"questions": folder / "question.jsonl", "baseline": folder / "model_answer.jsonl"})
    assert len(questions) == 12
    verdicts = [Verdict(q.id, 1.0, game=g, raw={"weight": 1}) for q in questions for g in (1, 2)]
    verdicts[0] = Verdict(questions[0].id, None, error="no reply")
    row = scored(questions, verdicts)["score"]
    assert (row.n, row.n_failed, row.value) == (23, 1, 100.0)
    assert (row.worst, row.best) == pytest.approx((100 * 23 / 26, 100.0))
    assert row.withheld.value is None


def test_a_reward_model_plays_one_game_with_its_probability(starter):
    folder = starter / "arena_hard"
    questions = ArenaHard().load({"questions": folder / "question.jsonl", "baseline": folder / "model_answer.jsonl"})
    verdicts = [Verdict(q.id, (i + 1) / 13, raw={}) for i, q in enumerate(questions)]
    rows = scored(questions, verdicts, SimpleNamespace(kind="reward_model", name="reward-model:0"))
    assert rows["score"].value == pytest.approx(50)
    assert rows["score"].n_failed == 0
    assert rows["score"].method.startswith("sigmoid of reward difference")
    assert "score_by_battle" not in rows


def test_missing_files_name_the_command(starter):
    folder = starter / "arena_hard"
    inputs = {"data/arena_hard/questions": folder / "question.jsonl", "data/arena_hard/baseline": folder / "model_answer.jsonl"}
    assert set(files_of(ArenaHard(), "starter", inputs)) == {"questions", "baseline"}
    with pytest.raises(MissingInput, match="harness data fetch arena_hard"):
        files_of(ArenaHard(), "official", inputs)
    with pytest.raises(MissingInput, match="harness data fetch arena_hard"):
        ArenaHard().judge_config(files_of(ArenaHard(), "starter", inputs))
