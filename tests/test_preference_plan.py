"""A preference model in a recipe: which stages there are, what makes their keys, and which recipes are refused."""

import json
import re

import pytest
import yaml

from core.errors import RecipeError
from harness.plan import Plan, Ref, build_plan
from harness.recipe_file import load_recipe
from tests.conftest import ROOT
from tests.test_plan import _inputs
from tests.training import RESOURCES

PAIRWISE = ("reward=null", "annotate.scorer=pairwise", "preference.max_steps=4")


def plan_of(*overrides: str) -> Plan:
    return build_plan(load_recipe("quickstart", list(overrides)), _inputs())


def test_the_preference_model_annotates_in_place_of_the_reward_model():
    plan = plan_of(*PAIRWISE)
    assert "reward" not in plan.nodes and plan.nodes["preference"].program == "train.preference"
    annotate = plan.nodes["annotate[1]"]
    assert annotate.inputs["scorer"] == Ref(stage="preference", part="checkpoint")
    assert annotate.settings["tournament"] == "round_robin" and annotate.resources["self_test"] is True
    settings = plan.nodes["preference"].settings
    assert (settings["learning_rate"], settings["batch_size"], settings["max_length"]) == (5e-6, 128, 3072)  # the paper's
    assert settings["file"] == "reward_train.jsonl" and settings["orders"] == "random" and "self_test" not in settings
    # The gold model still judges; without a reward model there is no proxy to set beside it.
    assert set(plan.nodes["judge[iter-1]"].inputs) >= {"judge"} and "reward" not in plan.nodes["judge[iter-1]"].inputs


def test_keys_change_with_the_comparisons_that_are_made_but_not_with_the_self_test():
    plan, knockout = plan_of(*PAIRWISE), plan_of(*PAIRWISE, "annotate.tournament=knockout")
    untested = plan_of(*PAIRWISE, "preference.self_test=false")
    assert knockout.nodes["annotate[1]"].key != plan.nodes["annotate[1]"].key
    assert untested.nodes["annotate[1]"].key == plan.nodes["annotate[1]"].key
    assert untested.nodes["annotate[1]"].resources["self_test"] is False
    assert knockout.nodes["preference"].key == untested.nodes["preference"].key == plan.nodes["preference"].key
    assert plan_of(*PAIRWISE, "preference.orders=both").nodes["preference"].key != plan.nodes["preference"].key
    # Where a reward model annotates, a tournament is no part of anything.
    plain = plan_of()
    assert plan_of("annotate.tournament=knockout").nodes["annotate[1]"].key == plain.nodes["annotate[1]"].key
    assert set(RESOURCES) <= set(plan.nodes["preference"].resources)


def test_the_knockouts_own_pairs_need_a_knockout():
    plan = plan_of(*PAIRWISE, "annotate.tournament=knockout", "pairs.rule=tournament")
    assert plan.nodes["pairs[1]"].settings["rule"] == "tournament"


def test_the_documented_keys_make_a_plan():
    text = (ROOT / "docs" / "preference-model.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    overrides = [f"{key}={json.dumps(value)}" for key, value in yaml.safe_load(block).items()]
    plan = build_plan(load_recipe("quickstart", overrides), _inputs())
    assert plan.nodes["preference"].settings["zero_stage"] == 3
    assert plan.nodes["annotate[1]"].settings["scorer"] == "pairwise" and plan.nodes["pairs[1]"].settings["rule"] == "tournament"


def test_a_published_preference_model_is_used_as_it_is():
    from dataclasses import replace

    given = Ref(path="/preference", fingerprint="pm")
    recipe = load_recipe("quickstart", [*PAIRWISE, "preference.checkpoint.source=/preference"])
    plan = build_plan(recipe, replace(_inputs(), preference=given))
    assert "preference" not in plan.nodes and plan.nodes["annotate[2]"].inputs["scorer"] == given


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["annotate.scorer=pairwise"], "needs a preference section"),
        (["reward=null"], "needs a reward section"),
        (["preference.max_steps=4"], "only the scorer pairwise uses the preference section"),
        ([*PAIRWISE, "gold_reward=null", "evaluate.judge.role=reward"], "role is reward but the recipe has no reward section"),
        (
            [*PAIRWISE, "gold_reward=null", "evaluate.judge.kind=openai", "evaluate.judge.model=m"],
            r"set evaluate\.held_out_reward: false",
        ),
        ([*PAIRWISE, "annotate.tournament=swiss"], "tournament"),
        ([*PAIRWISE, "pairs.rule=tournament"], r"set annotate\.tournament: knockout"),
        (["annotate.tournament=knockout", "pairs.rule=tournament"], "a scorer that compares"),
    ],
)
def test_a_recipe_whose_sections_do_not_fit_its_scorer_is_refused(overrides, said):
    with pytest.raises(RecipeError, match=said):
        plan_of(*overrides)
