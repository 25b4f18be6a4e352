"""Gradient checkpointing computes activations again in the backward pass, and changes nothing else."""

import pytest
import torch

from core.stage import Spec, Stage
from tests.training import RESOURCES, dpo_settings, make_pairs, training_settings
from train import dpo, sft
from train.chat import load_tokenizer


def dpo_trainer(tiny_llama, stage, tmp_path):
    from core.artifacts import read_rows

    pairs = read_rows(make_pairs(tiny_llama, tmp_path / "pairs", 4) / "pairs.jsonl")
    cache = [
        {"prompt_id": pair["prompt_id"]}
        | {f"{side}_{key}": value for side in ("chosen", "rejected") for key, value in of_side(pair[side]).items()}
        for pair in pairs
    ]
    rows, _ = dpo.join_reference(pairs, cache, 128)
    return dpo.make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), rows, loss_type=["sigmoid"], loss_weights=[1.0])


def of_side(side):
    return {"logp": -6.0 * len(side["token_ids"]), "tokens": len(side["token_ids"])}


def sft_trainer(tiny_llama, stage, tmp_path):
    rows = [{"input_ids": list(range(5, 30)), "labels": list(range(5, 30)), "length": 25} for _ in range(4)]
    return sft.make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), rows)


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}])
@pytest.mark.parametrize(("make", "settings"), [(sft_trainer, training_settings(packing=False)), (dpo_trainer, dpo_settings())])
def test_loss_and_gradients_are_the_same_with_it_and_without(make, settings, lora, tiny_llama, make_spec, tmp_path):
    found = {}
    for checkpointing in (False, True):
        own = settings | {"gradient_checkpointing": checkpointing, "max_steps": 1} | ({"lora": lora} if lora else {})
        resources = RESOURCES | {"micro_batch_size": 4}
        stage = Stage(Spec.load(make_spec(f"train-{checkpointing}", own, {"policy": tiny_llama}, resources=resources)))
        torch.manual_seed(0)
        trainer = make(tiny_llama, stage, tmp_path)
        gradients, layers = {}, []

        def keep(parameters, *args, gradients=gradients, trainer=trainer, **kwargs):
            named = trainer.model.named_parameters()
            gradients |= {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
            return torch.nn.utils.clip_grad_norm_(list(parameters), *args, **kwargs)

        trainer.accelerator.clip_grad_norm_ = keep
        decoder = next(module for name, module in trainer.model.named_modules() if name.endswith("layers.0.mlp"))
        decoder.register_forward_pre_hook(lambda *_, layers=layers: layers.append(1))
        trainer.train()
        found[checkpointing] = trainer.state.log_history[0]["loss"], gradients, len(layers)
    (loss, gradients, passes), (again, recomputed, passes_again) = found[False], found[True]
    assert (passes, passes_again) == (1, 2), "the layer ran once more in the backward pass"
    assert again == loss and gradients and gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(recomputed[name], gradient, rtol=1e-5, atol=1e-7), name
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
