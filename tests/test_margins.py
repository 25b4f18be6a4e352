"""Margins of preference pairs, from a source's file through the data stage into a reward model's loss."""

import random

import pytest

from core.artifacts import read_rows, write_rows
from core.errors import RecipeError
from harness.recipe_file import load_recipe
from harness.resolve import resolve
from tests.test_plan import _plan
from tests.test_reward import preference
from tests.training import RESOURCES, training_settings, words
from train.readers import READERS
from train.standard_rows import margin_of

SPLITS = {"gold_fraction": 0.0, "heldout_pairs": 8, "heldout_prompts": 0, "sft_from": "chosen"}


def rows(n: int) -> list[dict]:
    generator = random.Random(0)
    made = [preference(k, answers=(words(generator, 3) + " good", words(generator, 3) + " bad")) for k in range(n)]
    scored = {"chosen_score": 9, "rejected_score": 3.5}
    return [row | ({"margin": 8.0} | scored if k % 2 else scored) for k, row in enumerate(made)]


def data_settings(**changes) -> dict:
    source = {"name": "mine", "reader": "jsonl", "use": "preferences", "files": ["mine"], "limit": None}
    return {"sources": [source], "splits": SPLITS, "seed": 0, "decontaminate": False} | changes


@pytest.mark.parametrize(
    ("fields", "margin"),
    [
        ({"margin": 2}, 2.0),
        ({"margin": 0.0, "chosen_score": 5, "rejected_score": 1}, 0.0),
        ({"chosen_score": 5, "rejected_score": 1.5}, 3.5),
        ({"margin": None, "chosen_score": 5, "rejected_score": 1}, 4.0),
        ({"margin": float("nan")}, None),
        ({"margin": "much better"}, None),
        ({"margin": True}, None),
        ({"chosen_score": 5}, None),
        ({}, None),
    ],
)
def test_the_margin_is_the_rows_own_else_the_difference_of_its_scores(fields: dict, margin: float | None) -> None:
    assert margin_of({"id": "1"} | fields) == margin


def test_readers_of_rows_and_tables_keep_it(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    given = [{"margin": None} | row for row in rows(2)]
    write_rows(tmp_path / "mine.jsonl", given)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), tmp_path / "mine.parquet")
    for reader, file in (("jsonl", "mine.jsonl"), ("parquet", "mine.parquet"), ("preference_parquet", "mine.parquet")):
        assert [margin_of(row) for row in READERS[reader]([tmp_path / file])] == [5.5, 8.0], reader


def test_a_reward_model_is_trained_with_the_margins_of_its_sources_file(run_stage, tiny_llama, tmp_path) -> None:
    write_rows(tmp_path / "mine.jsonl", rows(40))
    inputs = {"mine": tmp_path / "mine.jsonl"}
    data = run_stage("train.data", "data", data_settings(margins=True), inputs)
    pairs = read_rows(data.file("reward_train.jsonl"))
    assert {row["margin"] for row in pairs} == {5.5, 8.0} and len(pairs) >= 30
    chosen = training_settings(max_steps=4, file="reward_train.jsonl", center_rewards_coefficient=None, margin=True)
    metrics = run_stage("train.reward", "reward", chosen, {"policy": tiny_llama, "data": data.path}, resources=RESOURCES).metrics
    # -log sigmoid(difference - margin) of rewards near 0: about the margin, where log 2 would be without.
    assert metrics["pairs"] == len(pairs) and 2.0 < metrics["train_loss"] < 10


def test_a_pair_without_margin_is_refused_where_margins_are_asked_for(run_stage, tmp_path) -> None:
    given = rows(20)
    for name in ("chosen_score", "rejected_score"):
        del given[4][name]
    write_rows(tmp_path / "mine.jsonl", given)
    inputs = {"mine": tmp_path / "mine.jsonl"}
    with pytest.raises(AssertionError, match=r"1 of 20 pairs of mine \(first: mine/4\) have neither a margin nor"):
        run_stage("train.data", "data", data_settings(margins=True), inputs)
    made = run_stage("train.data", "data", data_settings(), inputs)
    kept = [row for name in ("reward_train", "pairs_heldout") for row in read_rows(made.file(f"{name}.jsonl"))]
    assert {row["id"] for row in kept if "margin" not in row} == {"mine/4"} and len(kept) == 20


def test_the_plan_asks_for_margins_where_a_reward_model_is_trained_with_them() -> None:
    def asked(*overrides: str) -> bool:
        return "margins" in _plan(*overrides).nodes["data"].settings

    assert not asked() and asked("reward.margin=true") and asked("gold_reward.margin=true")
    assert _plan("reward.margin=false").nodes["data"].key == _plan().nodes["data"].key


def test_a_source_without_margins_is_refused_before_anything_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="the pairs of starter_preferences have neither a margin nor chosen_score"):
        resolve(load_recipe("quickstart", ["gold_reward.margin=true"]))
