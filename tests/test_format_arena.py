"""Arena-Hard's files: official scores, both layouts, failures, leaderboards, and what is written is read again."""

import json
from types import SimpleNamespace

import pytest

from core.errors import MissingInput
from evals.benchmark import Question
from evals.formats.saved import Stored, get_format

PUBLISHED = {"gpt-3.5-turbo-0125": 23.34, "gpt-4-0613": 37.90}


def read(paths, name="arena_hard", control="none", files=None):
    found = get_format(name).read(paths, {"style-control": control}, files or {})
    return {one.model: (one, {row.metric: row for row in one.scores}) for one in found}


def judgments(data):
    return sorted((data / "arena_hard" / "model_judgment" / "gpt-4-1106-preview").glob("*.gz"))


def test_official_judgments_and_battles_give_the_published_scores(data):
    battles = data / "arena_hard" / "battles_v0.1_official_gpt-4-1106-preview_judge_2models.jsonl.gz"
    for paths in (judgments(data), [battles]):
        found = read(paths)
        assert {model: round(rows["score"].value, 2) for model, (_, rows) in found.items()} == PUBLISHED
        assert all(rows["score"].stderr > 1.5 and rows["score"].n_failed == 0 for _, rows in found.values())


def test_style_control_is_joint_and_finds_the_table_beside(data):
    golden = json.loads((data / "arena_hard" / "golden_style_v01_2models.json").read_text())["length"]["scores"]
    for model, (_, rows) in read(judgments(data), control="length").items():
        assert rows["score"].value == pytest.approx(golden[model], abs=0.01)


def test_null_games_are_counted_and_absent_styles_named(tmp_path):
    path = tmp_path / "model_judgment" / "gpt-4.1" / "m.jsonl"
    path.parent.mkdir(parents=True)
    rows = [
        {"uid": "a", "category": "hard_prompt", "games": [{"score": "A>B"}, {"score": "A>>B"}]},
        {"uid": "b", "category": "hard_prompt", "games": [{"score": None}, {"score": "B>A"}]},
        {"uid": "c", "category": "creative_writing", "games": [None, {"score": "A=B"}]},
        {"uid": "d", "category": "creative_writing", "games": [{"score": "A<B"}, {"score": "A=B"}]},
    ]
    path.write_text("".join(json.dumps(row | {"model": "m", "judge": "gpt-4.1"}) + "\n" for row in rows))
    _, v2 = read([path], "arena_hard_v2")["m"]
    assert v2["score"].value == 75 and (v2["score"].n, v2["score"].n_failed) == (2, 1)
    assert v2["score_creative_writing"].value == 75 and v2["score_creative_writing"].n_failed == 1
    # The failed game as a strong verdict of either side, and the other game of its prompt as it was.
    assert (v2["score"].worst, v2["score"].best) == (37.5, 75.0)
    _, old = read([path])["m"]
    assert old["score"].n_failed == 3 and old["score"].n == 5
    with pytest.raises(MissingInput, match="model_answer/m.jsonl"):
        read([path], control="all")


def test_what_is_written_is_read_again(tmp_path):
    questions = [Question(uid, "hard_prompt", ("Q",), {"baseline_model": "o3-mini-2025-01-31"}) for uid in "ab"]
    answers = {(q.id, 1, 0): SimpleNamespace(text=f"**{q.id}**", output_tokens=2, detail={}) for q in questions}
    said = {("a", 1): ("A>>B", 0.0), ("a", 2): ("A>B", 1.0), ("b", 1): ("A=B", 0.5), ("b", 2): (None, None)}
    kept = {
        (uid, 1, 0, game): SimpleNamespace(
            value=value, raw={"label": label, "replies": [{"text": "because"}]} if label else {}, shown=f"{uid}{game}"
        )
        for (uid, game), (label, value) in said.items()
    }
    asked = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Which?"}]
    stored = Stored(questions, answers, kept, "gpt-4.1", [], "official@x", {}, {"a1": asked})
    for name, score in (("arena_hard", 100 * 1.5 / 5), ("arena_hard_v2", 25.0)):
        files = get_format(name).write("run/iter-1", stored, tmp_path / name)
        one, rows = read([files[1]], name)["run__iter-1"]
        assert rows["score"].value == pytest.approx(score) and rows["score"].n_failed == 1
        assert one.verdicts[0].raw["replies"][0]["text"] == "because"
        assert one.verdicts[0].shown == (asked if name == "arena_hard_v2" else asked[1:]) and one.verdicts[1].shown is None
        outputs = get_format(name).read_outputs([files[0]])
        assert [answer.text for answer in outputs[0].answers] == ["**a**", "**b**"]


def test_published_leaderboards(data):
    form = get_format("arena_hard")
    for path in sorted((data / "arena_hard").glob("leaderboard_v0.1*.csv")):
        rows = {(one.model, one.score.metric): one.score for one in form.read_published([path])}
        assert round(rows["gpt-4-0613", "score"].value, 2) == 37.90
        assert rows["gpt-4-0613", "score"].low < 37.90 < rows["gpt-4-0613", "score"].high
    past = {
        (one.model, one.score.metric): one.score.value
        for one in form.read_published([data / "arena_hard" / "past_leaderboards.md"])
    }
    assert past["gpt-4-0613", "score"] == 37.9 and past["gpt-4-0613", "style_controlled_score"] == 49.7
    tables = get_format("arena_hard_v2").read_published([data / "arena_hard" / "leaderboard_v2.0_preview_tables.md"])
    assert {(one.judge, one.score.metric) for one in tables} >= {
        ("gemini-2.5", "style_controlled_score"),
        ("gpt-4.1+gemini-2.5", "score_creative_writing"),
    }
    with pytest.raises(MissingInput, match="no published scores"):
        form.read_published([data / "arena_hard" / "leaderboard_v2.0_preview_tables.md"])
