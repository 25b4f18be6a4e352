"""ZeRO on real ranks: the same numbers as without it, and checkpoints that load."""

import json
import os
import subprocess
from importlib.util import find_spec

import pytest

from core.stage import Spec, Stage
from tests import warm_process
from tests.conftest import ROOT, run_program
from tests.ranks import run_ranks
from tests.test_lora import LORA
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
from train.dpo import training_rows
from train.losses import LOSSES
from train.optimisation import launch_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

TWO_RANKS = {"micro_batch_size": 1, "num_processes": 2, "save_steps": None}


@pytest.fixture
def dpo_inputs(tiny_llama, tmp_path, run_stage):
    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 8)
    inputs = {"reference": tiny_llama, "pairs": pairs}
    reference = run_stage("train.reference", "reference", {"max_length": 128, "precision": "fp32"}, inputs)
    return {"policy": tiny_llama, "pairs": pairs, "reference": reference.path}


@pytest.fixture
def trained(make_spec, tmp_path):
    """`trained(program, settings, inputs, ranks, **resources) -> (artifact, losses by step)`."""

    def train(program, settings, inputs, ranks=1, **resources):
        stage = f"{program.rpartition('.')[2]}-{len(list(tmp_path.glob('*.ndjson')))}"
        events = tmp_path / f"{stage}.ndjson"
        spec = make_spec(
            stage, settings, inputs, resources=(TWO_RANKS if ranks == 2 else RESOURCES) | resources, events=str(events)
        )
        if ranks == 1 and program in warm_process.PROGRAMS:
            run_program(program, spec)
        else:
            run_ranks(program, spec, ranks)
        return find_artifact(spec), [event["values"]["loss"] for event in read_events(events, "metric")]

    return train


def largest_difference(artifact, other):
    found, wanted = load_weights(artifact.file("checkpoint")), load_weights(other.file("checkpoint"))
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in wanted.items()}
    return max((found[n] - wanted[n]).abs().max().item() for n in wanted)


def test_two_ranks_train_as_one_does_at_every_stage_of_zero_and_with_offloading(dpo_inputs, trained):
    plain, expected = trained("train.dpo", dpo_settings(), dpo_inputs)
    assert len(expected) == 2
    for zero, offload in (
        (None, None),
        (1, None),
        (1, "optimizer"),
        (2, "optimizer"),
        (2, None),
        (3, None),
        (3, "optimizer_and_parameters"),
    ):
        resources = {"zero_offload": offload} if offload else {}
        artifact, losses = trained("train.dpo", dpo_settings(zero_stage=zero), dpo_inputs, 2, **resources)
        assert losses == pytest.approx(expected, abs=1e-5), (zero, offload)
        # Adam divides by the gradient's size: where a gradient is near zero, rounding alone may turn its step of 1e-3 around.
        assert largest_difference(artifact, plain) < 4e-3, (zero, offload)
        assert not artifact.file("rolling").exists()


def test_adapters_train_under_zero_as_without(dpo_inputs, trained):
    settings = dpo_settings(lora=LORA, gradient_checkpointing=True)
    plain, expected = trained("train.dpo", settings, dpo_inputs)
    for zero in (2, 3):
        artifact, losses = trained("train.dpo", settings | {"zero_stage": zero}, dpo_inputs, 2)
        assert losses == pytest.approx(expected, abs=1e-5) and losses[1] != losses[0]
        assert largest_difference(artifact, plain) < 4e-3
        saved, wanted = load_weights(artifact.file("adapter")), load_weights(plain.file("adapter"))
        assert {n: w.shape for n, w in saved.items()} == {n: w.shape for n, w in wanted.items()}


def test_a_killed_zero_3_training_goes_on_and_ends_as_if_it_had_not_been_killed(dpo_inputs, trained, make_spec):
    settings = dpo_settings(zero_stage=3, epochs=3)
    unbroken, _ = trained("train.dpo", settings, dpo_inputs, 2)
    resources = TWO_RANKS | {"save_steps": 2}
    spec = make_spec("dpo[1]", settings, dpo_inputs, resources=resources)
    command, environment = launch_command("train.dpo", spec, settings, resources)
    kill_at_first_rolling_checkpoint(command, environment, spec, world_size=2)
    run_ranks("train.dpo", spec, 2)
    assert "Resuming from step" in spec.with_suffix(".rank0.log").read_text()
    resumed = find_artifact(spec)
    assert resumed.metrics["train_loss"] == pytest.approx(unbroken.metrics["train_loss"], abs=1e-5)
    assert largest_difference(resumed, unbroken) < 1e-5


def test_a_users_mistake_under_torchrun_is_one_sentence_in_the_events(dpo_inputs, make_spec, tmp_path):
    settings, events = dpo_settings(zero_stage=2, loss="nonsense"), tmp_path / "events.ndjson"
    spec = make_spec("dpo[1]", settings, dpo_inputs, resources=TWO_RANKS, events=str(events))
    command, environment = launch_command("train.dpo", spec, settings, TWO_RANKS)
    assert subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True).returncode != 0
    (error,) = read_events(events, "error")
    assert error["kind"] == "RecipeError" and "use one of sigmoid" in error["text"]


def test_every_loss_of_ours_trains_on_two_ranks_as_in_one_process(dpo_inputs, trained, make_spec):
    """Both steps: the second one's loss is what the first one's gradient made of the weights."""
    policy = dpo_inputs["policy"]
    file = dpo_inputs["pairs"] / "pairs.jsonl"
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    for k, pair in enumerate(pairs):
        pair["chosen"] |= {"score": 1.0 + k / 8, "win_rate": 0.8 - k / 32}
        pair["rejected"] |= {"score": -0.5, "win_rate": 0.3}
    write_jsonl(file, pairs)
    inputs = dpo_inputs | {"previous": dpo_inputs["reference"]}
    stage = Stage(Spec.load(make_spec("dpo", dpo_settings(loss="inpo"), inputs, resources=RESOURCES)))
    rows, _ = training_rows(stage, pairs, frozenset({"rewards", "win_rates", "previous"}))
    for k, row in enumerate(rows):  # away from the reference, where several losses do not depend on the policy's part
        row["ref_chosen_logps"] -= 0.5 + k / 4
        row["ref_rejected_logps"] += 0.25
    betas = {"simpo": 2.5, "sppo": 0.1, "inpo": 0.1}
    options = {"rdpo_alpha": 0.01}
    losses = {
        name: [betas.get(name, 0.1), {key: options.get(key, value) for key, value in loss.options.items()}]
        for name, loss in LOSSES.items()
    }
    settings = dpo_settings(rows=rows, losses=losses)
    alone, _ = trained("tests.loss_steps", settings, {"policy": policy})
    sharded, _ = trained("tests.loss_steps", settings | {"zero_stage": 3}, {"policy": policy}, 2)
    for name in LOSSES:
        assert len(alone.metrics[name]) == 2 and alone.metrics[name][0] != alone.metrics[name][1]
        assert sharded.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-4), name


def test_sft_and_reward_run_under_zero_3(tiny_llama, trained, tmp_path):
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
    _, expected = trained("train.sft", training_settings(**sft), inputs)
    artifact, losses = trained("train.sft", training_settings(zero_stage=3, **sft), inputs, 2)
    assert losses == pytest.approx(expected, abs=1e-3) and losses[-1] < losses[0]
    assert (artifact.metrics["examples"], artifact.metrics["packed_rows"]) == (8, 4)
    reward = training_settings(zero_stage=3, file="reward_train.jsonl", center_rewards_coefficient=None, margin=False)
    artifact, _ = trained("train.reward", reward, inputs, 2)
    assert artifact.metrics["heldout_n"] == 8
