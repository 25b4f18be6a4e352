"""ZeRO on real ranks: the same numbers as without it, and checkpoints that load."""

import os
import subprocess
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT
from tests.training import (
    RESOURCES,
    dpo_settings,
    find_artifact,
    kill_at_first_rolling_checkpoint,
    load_weights,
    make_pairs,
    read_events,
    training_settings,
    write_jsonl,
)
from train.optimisation import launch_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


@pytest.fixture
def dpo_inputs(tiny_llama, tmp_path, run_stage):
    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 16)
    inputs = {"reference": tiny_llama, "pairs": pairs}
    reference = run_stage("train.reference", "reference", {"max_length": 128, "precision": "fp32"}, inputs)
    return {"policy": tiny_llama, "pairs": pairs, "reference": reference.path}


def launched(run_stage, tmp_path, program, settings, inputs, ranks):
    """Run a training program under its own launch command; returns (artifact, losses by step)."""
    resources = RESOURCES | {"micro_batch_size": 1, "num_processes": ranks, "save_steps": 2}
    command, environment = launch_command(program, tmp_path / "spec", settings, resources)
    name = f"{program.rpartition('.')[2]}-zero{settings['zero_stage']}-{ranks}"
    events = tmp_path / f"{name}.ndjson"
    artifact = run_stage(program, name, settings, inputs, command[:-1], environment, resources=resources, events=str(events))
    return artifact, [event["values"]["loss"] for event in read_events(events, "metric")]


def test_zero_2_and_3_on_two_ranks_train_as_plain_training_does(dpo_inputs, tiny_llama, run_stage, tmp_path):
    plain, expected = launched(run_stage, tmp_path, "train.dpo", dpo_settings(), dpo_inputs, 1)
    assert len(expected) == 4
    for zero in (2, 3):
        artifact, losses = launched(run_stage, tmp_path, "train.dpo", dpo_settings(zero_stage=zero), dpo_inputs, 2)
        assert losses == pytest.approx(expected, abs=1e-3)
        found, wanted = load_weights(artifact.file("checkpoint")), load_weights(plain.file("checkpoint"))
        assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in wanted.items()}
        assert max((found[n] - wanted[n]).abs().max().item() for n in wanted) < 5e-3
        assert not artifact.file("rolling").exists()


def test_a_killed_zero_3_training_goes_on_and_ends_as_if_it_had_not_been_killed(dpo_inputs, run_stage, make_spec, tmp_path):
    settings = dpo_settings(zero_stage=3, epochs=3)
    unbroken, _ = launched(run_stage, tmp_path, "train.dpo", settings, dpo_inputs, 2)
    resources = RESOURCES | {"micro_batch_size": 1, "num_processes": 2, "save_steps": 3}
    spec = make_spec("dpo[1]", settings, dpo_inputs, resources=resources)
    command, environment = launch_command("train.dpo", spec, settings, resources)
    kill_at_first_rolling_checkpoint(command, environment, spec, world_size=2)
    finished = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "Resuming from step" in finished.stderr
    resumed = find_artifact(spec)
    assert resumed.metrics["train_loss"] == pytest.approx(unbroken.metrics["train_loss"], abs=1e-5)
    found, wanted = load_weights(resumed.file("checkpoint")), load_weights(unbroken.file("checkpoint"))
    assert max((found[n] - wanted[n]).abs().max().item() for n in wanted) < 1e-5


def test_a_users_mistake_under_torchrun_is_one_sentence_in_the_events(dpo_inputs, make_spec, tmp_path):
    settings, events = dpo_settings(zero_stage=2, loss="nonsense"), tmp_path / "events.ndjson"
    resources = RESOURCES | {"micro_batch_size": 1, "num_processes": 2}
    spec = make_spec("dpo[1]", settings, dpo_inputs, resources=resources, events=str(events))
    command, environment = launch_command("train.dpo", spec, settings, resources)
    assert subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True).returncode != 0
    (error,) = read_events(events, "error")
    assert error["kind"] == "RecipeError" and "use one of sigmoid" in error["text"]


def test_plain_data_parallel_training_on_two_ranks_agrees_too(dpo_inputs, run_stage, tmp_path):
    _, expected = launched(run_stage, tmp_path, "train.dpo", dpo_settings(), dpo_inputs, 1)
    _, losses = launched(run_stage, tmp_path, "train.dpo", dpo_settings(), dpo_inputs, 2)
    assert losses == pytest.approx(expected, abs=1e-3)


def test_sft_and_reward_run_under_zero_3(tiny_llama, run_stage, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    answers = [{"role": "assistant", "content": text} for text in ("good", "bad")]
    for name, text in (("pairs_heldout", "What?"), ("reward_train", "Which?")):
        question = {"role": "user", "content": text}
        pairs = [
            {"id": str(k), "source": "a", "chosen": [question, answers[0]], "rejected": [question, answers[1]]} for k in range(8)
        ]
        write_jsonl(data / f"{name}.jsonl", pairs)
    write_jsonl(data / "sft.jsonl", [{"id": row["id"], "messages": row["chosen"]} for row in pairs])
    inputs = {"policy": tiny_llama, "data": data}
    sft = {"packing": True, "loss_on": "assistant", "max_length": 40, "epochs": 3}  # two conversations a row
    _, expected = launched(run_stage, tmp_path, "train.sft", training_settings(**sft), inputs, 1)
    artifact, losses = launched(run_stage, tmp_path, "train.sft", training_settings(zero_stage=3, **sft), inputs, 2)
    assert losses == pytest.approx(expected, abs=1e-3) and losses[-1] < losses[0]
    assert (artifact.metrics["examples"], artifact.metrics["packed_rows"]) == (8, 4)
    reward = training_settings(zero_stage=3, file="reward_train.jsonl", center_rewards_coefficient=None, margin=False)
    artifact, _ = launched(run_stage, tmp_path, "train.reward", reward, inputs, 2)
    assert artifact.metrics["heldout_n"] == 8
