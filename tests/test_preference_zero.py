"""The preference model under ZeRO: killed on two ranks it goes on, and ends where one process ends."""

import os
import random
import subprocess
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT
from tests.test_preference import preference
from tests.training import (
    RESOURCES,
    find_artifact,
    kill_at_first_rolling_checkpoint,
    load_weights,
    training_settings,
    words,
    write_jsonl,
)
from train.optimisation import launch_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def test_a_killed_zero_3_training_on_two_ranks_ends_as_plain_training_does(tiny_llama, run_stage, make_spec, tmp_path):
    data, generator = tmp_path / "data", random.Random(0)
    data.mkdir()
    pairs = [preference(k, words(generator, 2) + " good", words(generator, 2) + " bad") for k in range(32)]
    write_jsonl(data / "reward_train.jsonl", pairs[:24])
    write_jsonl(data / "pairs_heldout.jsonl", pairs[24:])
    inputs = {"policy": tiny_llama, "data": data}
    settings = training_settings(epochs=2, max_length=160, file="reward_train.jsonl", orders="random")
    plain = run_stage("train.preference", "preference", settings, inputs, resources=RESOURCES)

    settings |= {"zero_stage": 3}
    resources = RESOURCES | {"micro_batch_size": 1, "num_processes": 2, "save_steps": 2}
    spec = make_spec("preference", settings, inputs, resources=resources)
    command, environment = launch_command("train.preference", spec, settings, resources)
    kill_at_first_rolling_checkpoint(command, environment, spec, world_size=2)
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "Resuming from step" in finished.stderr
    resumed = find_artifact(spec)
    assert resumed.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], abs=1e-3)
    assert resumed.metrics["heldout_accuracy"] == plain.metrics["heldout_accuracy"]
    found, wanted = load_weights(resumed.file("checkpoint")), load_weights(plain.file("checkpoint"))
    assert found.keys() == wanted.keys() and max((found[n] - wanted[n]).abs().max().item() for n in wanted) < 5e-3
    assert resumed.file("checkpoint/self_test.json").exists()
