"""Arena-Hard v2.0: categories, prompt, parser, scores with style control, and a reward model's verdicts."""

from types import SimpleNamespace

import pytest

from core.errors import MissingInput
from evals.chat.arena_hard_v2 import CREATIVE, ArenaHardV2, find_label, read_judge_settings
from evals.judges.judge import Reply, Task
from evals.verdict import Verdict

PATTERNS = (r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]")


def official(data):
    folder = data / "arena_hard"
    return {
        "questions": folder / "question_v2.0.jsonl.gz",
        "baseline": folder / "model_answer_v2.0_o3-mini-2025-01-31.jsonl.gz",
        "judge_config": folder / "config_v2.0.yaml",
        "judge_prompt": folder / "config_v0.1_judge_config.yaml",
    }


def test_last_label_upper_cased_then_single_brackets():
    assert find_label("[[A>B]] no, [[b>>a]]", PATTERNS) == "B>>A"
    assert find_label("so [a=b], or [b>a]", PATTERNS) == "B>A"
    assert find_label("[A>B] then [[A=B]]", PATTERNS) == "A=B"
    assert find_label("none", PATTERNS) is None


def test_categories_and_prompt(data):
    benchmark, files = ArenaHardV2(), official(data)
    assert len(benchmark.load(files)) == 500
    # The same file stands in for the other baseline's: its rows have the right ids.
    both = files | {"baseline_creative_writing": files["baseline"]}
    questions = benchmark.load(both)
    assert len(questions) == 750
    task = Task(questions[0], ("mine {ANSWER_A} [[A>>B]]",), game=2)
    prompt = benchmark.prompt(task, files)
    assert prompt.calls == 1 and prompt.parameters == {"temperature": 0.0, "max_tokens": 16000}
    assert prompt.messages[1]["content"].index("mine {ANSWER_A}") < prompt.messages[1]["content"].index("Assistant B")
    reading = benchmark.read(task, [Reply("[[a<<b]]")], prompt)
    assert (reading.value, reading.detail["weight"]) == (0.0, 3)
    creative = next(question for question in questions if question.category == CREATIVE)
    with pytest.raises(MissingInput, match="judge_settings"):
        benchmark.prompt(Task(creative, ("x",)), both)


def test_judge_settings_are_parsed_and_not_run(tmp_path):
    path = tmp_path / "judge_utils.py"
    path.write_text('P = "one"\nJUDGE_SETTINGS = {"creative_writing": {"baseline": "b", "system_prompt": P}}\nraise SystemExit\n')
    assert read_judge_settings(path)[CREATIVE] == {"baseline": "b", "system_prompt": "one"}


def test_scores_of_both_categories_and_of_a_reward_model(data):
    benchmark, files = ArenaHardV2(), official(data)
    questions = benchmark.load(files | {"baseline_creative_writing": files["baseline"]})[::3]
    answers = {
        (q.id, 1, 0): SimpleNamespace(text=q.turns[0][: 50 + 7 * (i % 90)], finish_reason="stop", output_tokens=5, detail={})
        for i, q in enumerate(questions)
    }
    verdicts = [
        Verdict(q.id, float((i + g) % 3 == 0), game=g, raw={"weight": 1, "label": "A>B"})
        for i, q in enumerate(questions)
        for g in (1, 2)
    ]
    judge = SimpleNamespace(kind="openai", name="gpt-4.1")
    given = (questions, answers, {v.key: v for v in verdicts}, judge, files)
    rows = {row.metric: row for row in benchmark.scores(*given)}
    assert [row.metric for row in rows.values() if row.headline] == ["score"]
    assert {
        "style_controlled_score",
        "style_controlled_score_creative_writing",
        "score_by_battle_creative_writing",
    } <= rows.keys()
    assert rows["score"].n + rows["score_creative_writing"].n == len(verdicts) and rows["score"].stderr > 0
    statistics = benchmark.statistics(*given)
    assert set(statistics["categories"]) == {"hard_prompt", CREATIVE} and "coding" in statistics["subcategories"]
    reward = SimpleNamespace(kind="reward_model", name="reward-model:0")
    half = {v.key: Verdict(v.question_id, 0.5, raw={}) for v in verdicts if v.game == 1}
    rows = {row.metric: row for row in benchmark.scores(questions, answers, half, reward, files)}
    assert rows["score"].value == 50 and "score_by_battle" not in rows
