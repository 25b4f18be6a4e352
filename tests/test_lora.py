"""LoRA: what is trained, what is saved, and what goes on after a kill."""

import json
import sys

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from core.errors import RecipeError
from harness.plan.training import training_settings as planned
from harness.recipe import DPO, SFT
from tests.conftest import run_program
from tests.training import (
    RESOURCES,
    dpo_settings,
    kill_at_first_rolling_checkpoint,
    load_weights,
    make_pairs,
    training_settings,
    write_jsonl,
)
from train.lora import adapter_parameters, lora_config, merged, require_targets

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}


@pytest.fixture
def dpo_inputs(tiny_llama, tmp_path, run_stage):
    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 16)
    reference = run_stage(
        "train.reference", "reference", {"max_length": 128, "precision": "fp32"}, {"reference": tiny_llama, "pairs": pairs}
    )
    return {"policy": tiny_llama, "pairs": pairs, "reference": reference.path}


def with_adapter(tiny_llama, **changes):
    """A model with an adapter that is not zero."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), lora_config({"lora": LORA | changes}, "CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return model.eval()


def test_merged_tensors_are_the_adapters_function_and_pefts_own_merge(tiny_llama):
    ids = torch.arange(24).view(2, 12)
    model = with_adapter(tiny_llama)
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
        assert (plain(input_ids=ids).logits - adapted).abs().max() > 0.01
        state = merged(model.state_dict(), LORA["alpha"] / LORA["r"])
        plain.load_state_dict(state)
        assert torch.allclose(plain(input_ids=ids).logits, adapted, atol=1e-5)
    theirs = model.merge_and_unload().state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.allclose(state[name], theirs[name], atol=1e-6) for name in state)


def test_only_the_adapter_is_trained(tiny_llama):
    model = with_adapter(tiny_llama, target_modules=["q_proj", "down_proj"])
    trained = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 8 and all(".lora_" in name for name in trained)
    # Two layers: q_proj 128 x 128, down_proj 128 x 256, at rank 4.
    assert sum(trained.values()) == 2 * 4 * (128 + 128 + 128 + 256)
    assert adapter_parameters(tiny_llama, LORA) >= sum(trained.values())


def test_dpo_saves_a_full_model_and_the_adapter_that_made_it(dpo_inputs, tiny_llama, run_stage):
    from peft import PeftModel

    settings = dpo_settings(lora=LORA, epochs=2, learning_rate=1e-2)
    artifact = run_stage("train.dpo", "dpo[1]", settings, dpo_inputs, resources=RESOURCES)
    started, saved = load_weights(tiny_llama), load_weights(artifact.file("checkpoint"))
    assert saved.keys() == started.keys()
    changed = {name for name in saved if not torch.equal(saved[name], started[name])}
    assert changed == {name for name in saved if "_proj." in name}  # all linear layers, neither embeddings nor norms
    assert artifact.metrics["reward_margin"] > 0
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        full = AutoModelForCausalLM.from_pretrained(artifact.file("checkpoint")).eval()(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_llama)
        adapted = PeftModel.from_pretrained(base, artifact.file("adapter")).eval()(input_ids=ids).logits
    assert torch.allclose(full, adapted, atol=1e-5)
    assert json.loads(artifact.file("adapter/adapter_config.json").read_text())["r"] == 4


def test_a_reward_models_head_is_trained_whole(tiny_llama, run_stage, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    answers = [{"role": "assistant", "content": text} for text in ("good", "bad")]
    for name, text in (("pairs_heldout", "What?"), ("reward_train", "Which?")):
        question = {"role": "user", "content": text}
        sides = {"chosen": [question, answers[0]], "rejected": [question, answers[1]]}
        write_jsonl(data / f"{name}.jsonl", [{"id": str(k), "source": "a", **sides} for k in range(8)])
    settings = training_settings(lora=LORA, epochs=4, file="reward_train.jsonl", center_rewards_coefficient=None, margin=False)
    inputs = {"policy": tiny_llama, "data": data}
    artifact = run_stage("train.reward", "reward", settings | {"learning_rate": 1e-2}, inputs, resources=RESOURCES)
    assert artifact.metrics["heldout_accuracy"] == 1
    assert load_weights(artifact.file("checkpoint"))["score.weight"].shape == (1, 128)
    assert any("score" in name for name in load_weights(artifact.file("adapter")))


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been_killed(dpo_inputs, run_stage, make_spec):
    settings = dpo_settings(lora=LORA, gradient_checkpointing=True, epochs=3)
    unbroken = run_stage("train.dpo", "unbroken", settings, dpo_inputs, resources=RESOURCES)
    spec = make_spec("dpo[1]", settings, dpo_inputs, resources=RESOURCES | {"save_steps": 2})
    command = [sys.executable, "-m", "train.dpo", str(spec)]
    kill_at_first_rolling_checkpoint(command, {}, spec, world_size=1)
    resumed = run_program("train.dpo", spec)
    assert "Resuming from step" in spec.with_suffix(".log").read_text()
    assert resumed.metrics["train_loss"] == pytest.approx(unbroken.metrics["train_loss"], abs=1e-6)
    for part in ("checkpoint", "adapter"):
        found, wanted = load_weights(resumed.file(part)), load_weights(unbroken.file(part))
        assert found.keys() == wanted.keys()
        assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-6


def test_layers_that_are_not_there_are_a_sentence_before_anything_is_loaded(tiny_llama):
    require_targets(tiny_llama, {"lora": LORA | {"target_modules": ["q_proj", "mlp.down_proj"]}})
    with pytest.raises(RecipeError, match=r"names no layer of .*\['query_key_value'\]; choose among .*'q_proj'"):
        require_targets(tiny_llama, {"lora": LORA | {"target_modules": ["q_proj", "query_key_value"]}})


def test_the_recipe_refuses_targets_that_cannot_be_merged_and_offloads_that_do_not_exist():
    common = {"learning_rate": 1e-5, "batch_size": 4}
    for changes, message in (
        ({"lora": {"target_modules": ["lm_head", "q_proj"]}}, "names lm_head, which cannot take an adapter"),
        ({"lora": {"target_modules": []}}, "names no layer"),
        ({"lora": {"r": 0}}, "greater than 0"),
        ({"zero_offload": "optimizer"}, "set zero_stage"),
        ({"zero_offload": "optimizer_and_parameters", "zero_stage": 2}, "only ZeRO stage 3"),
        ({"zero_offload": "optimizer", "zero_stage": 2, "optimizer": "paged_adamw_32bit"}, "steps on the GPU"),
    ):
        with pytest.raises(ValidationError, match=message):
            SFT(**common, **changes)


def test_an_adapter_is_part_of_a_stages_identity_and_offloading_is_not():
    common = {"learning_rate": 1e-5, "batch_size": 4, "precision": "fp32"}
    plain, resources = planned(DPO(**common), 1)
    assert "lora" not in plain and "zero_offload" not in plain | resources  # keys of trainings before there was either
    adapted, _ = planned(DPO(**common, lora={}), 1)
    assert adapted == plain | {"lora": {"r": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": "all-linear"}}
    sharded, _ = planned(DPO(**common, zero_stage=2), 1)
    offloaded, resources = planned(DPO(**common, zero_stage=2, zero_offload="optimizer"), 1)
    assert offloaded == sharded and resources["zero_offload"] == "optimizer"
