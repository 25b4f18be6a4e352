"""What is in an answer set's key: everything that decides the answers, and nothing that a default run does not name."""

import pytest

from core.fingerprint import digest
from db.differences import Differs, differences
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


def _settings(name: str, **changes: object) -> dict:
    return get_benchmark(name).answer_settings(ENTRY, STAGE | changes)


@pytest.mark.parametrize("name", ["alpaca_eval", "human_eval", "truthful_qa_generation", "truthful_qa", "gsm8k"])
def test_another_precision_or_context_is_answered_anew_and_ranks_apart(name: str) -> None:
    vllm = {"likelihood_engine": "vllm"}
    made = [vllm, vllm | {"max_model_len": 16384}, vllm | {"dtype": "float32"}]
    assert len({_key(name, **changes) for changes in made}) == 3
    assert len({digest(_settings(name, **changes)) for changes in made}) == 3
    differs = differences(_settings(name, **vllm), _settings(name, **made[1]))
    assert differs == [Differs("max_model_len", "–", "16384")], "what the Compare page says"


@pytest.mark.parametrize(
    ("name", "engine"), [("truthful_qa", "likelihood_engine"), ("truthful_qa_binary", "likelihood_engine"), ("mmlu", "engine")]
)
def test_a_context_that_the_engine_is_not_given_changes_nothing(name: str, engine: str) -> None:
    """Transformers has the model's own."""
    assert _key(name, **{engine: "transformers"}) == _key(name, **{engine: "transformers"}, max_model_len=16384)


def test_a_seed_counts_where_something_is_drawn() -> None:
    greedy, warm = {"temperature": 0.0}, {"temperature": 0.7}
    assert _key("alpaca_eval", greedy) == _key("alpaca_eval", greedy, seed=7)
    assert _key("alpaca_eval", warm) != _key("alpaca_eval", warm, seed=7)
    assert _key("mt_bench") != _key("mt_bench", seed=7), "some of its categories are sampled"
    assert _key("truthful_qa") == _key("truthful_qa", seed=7)
    assert _settings("mt_bench") == _settings("mt_bench", seed=7), "seeds rank together"


def test_keys_at_the_defaults_are_what_they_were() -> None:
    """Answers that a registry holds already are found again."""
    assert _key("alpaca_eval") == "b70f1d04b5a58fe8823553cdfb1db08ec596a37a3e2d90d7d78b768b70bb27bd"
