"""What is in an answer set's key: everything that decides the answers, and nothing that a default run does not name."""

import pytest

from evals.benchmark import DEFAULT_CONTEXT, DEFAULT_SEED, get_benchmark
from evals.records import answers_key
from harness.recipe import Evaluate, Recipe

STAGE = {
    "engine": "vllm",
    "system_prompt": None,
    "seed": 42,
    "max_model_len": 8192,
    "dtype": "auto",
    "likelihood_engine": "transformers",
}
ENTRY = {"version": "official@1", "limit": None, "sample_seed": 0, "decoding": {}}


def _key(name: str, decoding: dict | None = None, **changes: object) -> str:
    return answers_key("f" * 64, get_benchmark(name), ENTRY | {"decoding": decoding or {}}, STAGE | changes)


def test_the_defaults_are_those_of_a_recipe() -> None:
    assert Evaluate.model_fields["max_model_len"].default == DEFAULT_CONTEXT
    assert Recipe.model_fields["seed"].default == DEFAULT_SEED


@pytest.mark.parametrize("name", ["alpaca_eval", "human_eval", "truthful_qa", "gsm8k"])
def test_another_context_or_precision_is_answered_anew(name: str) -> None:
    assert len({_key(name), _key(name, max_model_len=16384), _key(name, dtype="float32")}) == 3
    benchmark = get_benchmark(name)
    wide, narrow = (benchmark.answer_settings(ENTRY, STAGE | {"max_model_len": size}) for size in (8192, 16384))
    assert wide == narrow, "rows of both may rank together"
    assert benchmark.answer_settings(ENTRY, STAGE) != benchmark.answer_settings(ENTRY, STAGE | {"dtype": "float32"})


def test_a_seed_counts_where_something_is_drawn() -> None:
    greedy, warm = {"temperature": 0.0}, {"temperature": 0.7}
    assert _key("alpaca_eval", greedy) == _key("alpaca_eval", greedy, seed=7)
    assert _key("alpaca_eval", warm) != _key("alpaca_eval", warm, seed=7)
    assert _key("mt_bench") != _key("mt_bench", seed=7), "some of its categories are sampled"
    assert _key("truthful_qa") == _key("truthful_qa", seed=7)
    settings = [get_benchmark("alpaca_eval").answer_settings(ENTRY | {"decoding": warm}, STAGE | {"seed": s}) for s in (42, 7)]
    assert settings[0] == settings[1], "seeds rank together"


def test_keys_at_the_defaults_are_what_they_were() -> None:
    """Answers that a registry holds already are found again."""
    assert _key("alpaca_eval") == "b70f1d04b5a58fe8823553cdfb1db08ec596a37a3e2d90d7d78b768b70bb27bd"
