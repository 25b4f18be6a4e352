"""The judge's keys of a recipe: what decides verdicts changes the stage's key, how it is reached and paid does not."""

import pytest

from core.errors import RecipeError
from harness.plan import Inputs, Ref, build_plan
from harness.recipe_file import load_recipe
from harness.resolve import resolve_benchmarks

ENDPOINT = "evaluate.judge={kind: openai, model: gpt-4.1%s}"


def judge_node(more="", served=None):
    recipe = load_recipe("quickstart", [ENDPOINT % more if served is None else f"evaluate.judge={{serve: m, {more}}}"])
    source = {"name": "pairs", "reader": "jsonl", "use": "preferences", "limit": None}
    sources = [(source, [Ref(path="/p", fingerprint="a")])]
    judge = Ref(path="/m", fingerprint=served) if served else None
    inputs = Inputs(Ref(path="/base", fingerprint="b"), sources, resolve_benchmarks(recipe.evaluate), judge=judge)
    return build_plan(recipe, inputs).nodes["judge[base]"]


@pytest.mark.parametrize(
    "change",
    [
        ", concurrency: 3",
        ", price: {input: 1, output: 2}",
        ", max_usd: 5",
        ", requests_per_minute: 100, tokens_per_minute: 10000",
        ", transport: batch",
        ", api_key_env: OTHER",
        ", max_tokens_name: max_completion_tokens",
        ", on_failure: continue",
    ],
)
def test_how_a_judge_is_reached_and_paid_is_no_part_of_the_key(change):
    assert judge_node(change).key == judge_node().key
    assert change == ", on_failure: continue" or judge_node(change).resources != judge_node().resources


@pytest.mark.parametrize("change", [", temperature: 0.5", ", temperature: omit", ", max_tokens: 64", ", base_url: http://h/v1"])
def test_what_decides_verdicts_is_part_of_the_key(change):
    assert judge_node(change).key != judge_node().key


def test_replicas_are_transport_and_the_first_names_the_service():
    one = judge_node(", base_url: http://a/v1")
    assert judge_node(", endpoints: [{base_url: http://a/v1}, {base_url: http://b/v1}]").key == one.key
    assert judge_node(", endpoints: [{base_url: http://b/v1}, {base_url: http://a/v1}]").key != one.key
    assert judge_node(", base_url: http://a/v1, endpoints: [{base_url: http://b/v1}]").key == one.key


def test_a_served_judge_is_its_weights():
    node = judge_node(served="f" * 64)
    assert node.settings["judge"]["kind"] == "serve" and node.inputs["judge"].fingerprint == "f" * 64
    assert node.key == judge_node("concurrency: 2", served="f" * 64).key != judge_node(served="e" * 64).key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{kind: serve}", "needs `serve`"),
        ("{kind: openai, model: a, serve: b}", "needs `serve`"),
        ("{kind: openai, model: a, transport: batch, endpoints: [{base_url: b}]}", "batch files go to one endpoint"),
        ("{kind: openai, model: a, max_usd: -1}", "greater than or equal to 0"),
        ("{kind: openai, model: a, on_failure: hope}", "on_failure"),
    ],
)
def test_what_cannot_be_is_refused(text, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", [f"evaluate.judge={text}"])
