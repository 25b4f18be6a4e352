"""Recipes: validated whole, faults reported at once with their lines, identity independent of spelling."""

from pathlib import Path

import pytest
import yaml

from core.errors import RecipeError
from harness.recipe import Recipe
from harness.recipe_file import load_recipe, shipped


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_validate(name: str) -> None:
    assert load_recipe(name).name == name


def test_every_conflict_of_the_paper_is_a_key() -> None:
    """Where paper, first code and final code disagree, one `--set` must be able to say which."""
    choices = [
        "reference.policy=previous",
        "dpo.data=all",
        "dpo.start=initial",
        "generate.arms=[{n: 16, temperature: 1.0}]",
        "dpo.label_smoothing=0.1",
        "dpo.warmup_steps=100",
        "sft.batch_size=128",
        "sft.epochs=3",
        "sft.loss_on=all",
        "sft.packing=false",
        "reward.warmup_steps=40",
        "reward.start=sft",
        "reward.too_long=drop",
        "pairs.length_penalty=0.001",
        "iterations=7",
    ]
    plain = load_recipe("llama3-8b-iterative-dpo")
    assert len({load_recipe("llama3-8b-iterative-dpo", [choice]).hash for choice in choices} | {plain.hash}) == len(choices) + 1


def test_all_faults_are_reported_at_once_with_lines(tmp_path: Path) -> None:
    content = yaml.safe_load(shipped()["quickstart"].read_text())
    content["dpo"]["bta"] = 0.1
    content["iterations"] = 0
    content["sft"]["batch_size"] = 7
    del content["base"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), ["evaluate.judge.kind=oracle"])
    message = str(caught.value)
    lines = path.read_text().splitlines()
    assert "5 faults" in message
    assert f"line {lines.index('  bta: 0.1') + 1}: unknown key 'dpo.bta'; did you mean 'beta'?" in message
    assert f"line {lines.index('iterations: 0') + 1}: iterations" in message
    assert "batch_size 7 is not a multiple" in message
    assert "'base' is missing" in message
    assert "--set evaluate.judge.kind=oracle" in message


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        load_recipe("quikstart")


def test_hash_ignores_order_and_changes_with_content(tmp_path: Path) -> None:
    content = yaml.safe_load(shipped()["quickstart"].read_text())
    path = tmp_path / "shuffled.yaml"
    path.write_text(yaml.safe_dump(dict(reversed(content.items()))))
    assert load_recipe(str(path)).hash == load_recipe("quickstart").hash
    assert load_recipe("quickstart", ["seed=18"]).hash != load_recipe("quickstart").hash


def test_override_of_a_list_item_and_of_nothing() -> None:
    assert load_recipe("quickstart", ["generate.arms.0.n=5"]).generate.arms[0].n == 5
    with pytest.raises(RecipeError, match=r"there is no 'generate.arms.9.n'"):
        load_recipe("quickstart", ["generate.arms.9.n=5"])
    with pytest.raises(RecipeError, match="not of the form"):
        load_recipe("quickstart", ["dpo.beta"])


def test_gold_judge_without_gold_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="no gold_reward section"):
        load_recipe("quickstart", ["gold_reward=null"])


def test_recipe_is_immutable() -> None:
    recipe = load_recipe("quickstart")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
    assert isinstance(recipe, Recipe)


def test_the_list_of_keys_is_current() -> None:
    from scripts.recipe_docs import TARGET, render

    assert TARGET.read_text() == render(), "run: python scripts/recipe_docs.py"
