"""The preference model under ZeRO: two ranks end where one process ends."""

import random
from importlib.util import find_spec

import pytest

from tests.ranks import run_ranks
from tests.test_preference import preference
from tests.training import (
    RESOURCES,
    find_artifact,
    load_weights,
    training_settings,
    words,
    write_jsonl,
)

TWO_RANKS = {"micro_batch_size": 1, "num_processes": 2, "save_steps": None}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def test_zero_3_on_two_ranks_ends_as_plain_training_does(tiny_llama, make_spec, tmp_path):
    data, generator = tmp_path / "data", random.Random(0)
    data.mkdir()
    pairs = [preference(k, words(generator, 2) + " good", words(generator, 2) + " bad") for k in range(32)]
    write_jsonl(data / "reward_train.jsonl", pairs[:24])
    write_jsonl(data / "pairs_heldout.jsonl", pairs[24:])
    inputs = {"policy": tiny_llama, "data": data}
    settings = training_settings(epochs=1, max_length=160, file="reward_train.jsonl", orders="random")
    spec = make_spec("plain", settings, inputs, resources=RESOURCES)
    run_ranks("train.preference", spec, 1)
    plain = find_artifact(spec)

    spec = make_spec("preference", settings | {"zero_stage": 3}, inputs, resources=TWO_RANKS)
    run_ranks("train.preference", spec, 2)
    sharded = find_artifact(spec)
    assert sharded.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], abs=1e-3)
    assert sharded.metrics["heldout_accuracy"] == plain.metrics["heldout_accuracy"]
    found, wanted = load_weights(sharded.file("checkpoint")), load_weights(plain.file("checkpoint"))
    assert found.keys() == wanted.keys() and max((found[n] - wanted[n]).abs().max().item() for n in wanted) < 5e-3
    assert sharded.file("checkpoint/self_test.json").exists()
