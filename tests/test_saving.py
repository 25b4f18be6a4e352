"""Weights on disk are the weights that were trained: saves that are not are refused."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.training import RESOURCES, load_weights, training_settings, write_jsonl
from train.checkpoint import verify_checkpoint
from train.saving import Probe, probe_ids, require_same_tensors, require_tied, tolerance

MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copied(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "checkpoint")


@pytest.fixture
def probe(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    ids = probe_ids(model.config.vocab_size, model.config.pad_token_id)
    with torch.no_grad():
        return Probe(ids, model(input_ids=ids).logits, torch.float32)


def test_the_probe_spreads_over_the_vocabulary_and_shuns_padding():
    ids = probe_ids(1024, 31)  # 31 = 1024 // 33 would be the second one
    assert ids.shape == (2, 16) and 31 not in ids and ids.max() < 1024 and len(set(ids.flatten().tolist())) == 32
    assert probe_ids(1024, None)[0, 1] == 31


def test_a_tensor_that_is_not_the_trained_one_is_refused(copied):
    state = load_weights(copied)
    require_same_tensors(copied, state)
    for changed, message in (
        (state | {MATRIX: state[MATRIX].flip(0)}, "up_proj.weight is not what was trained"),
        (state | {MATRIX: state[MATRIX].bfloat16()}, "is not what was trained"),
        ({n: w for n, w in state.items() if n != MATRIX}, "lacks 1 tensors of the trained model"),
        (state | {"model.extra": torch.ones(1)}, "model.extra, which the trained model lacks"),
    ):
        save_file(changed, copied / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            require_same_tensors(copied, state)


def test_a_checkpoint_that_computes_other_logits_is_refused(copied, probe):
    verify_checkpoint(copied, probe)
    state = load_weights(copied)
    save_file(state | {MATRIX: state[MATRIX].flip(0)}, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="other logits than the trained one"):
        verify_checkpoint(copied, probe)


def test_a_checkpoint_rounded_to_bfloat16_is_within_its_tolerance(copied, probe):
    """Stored in fewer bits than trained, as a bf16 checkpoint trained in fp32 is."""
    state = {name: weight.bfloat16() for name, weight in load_weights(copied).items()}
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace('"float32"', '"bfloat16"'))
    verify_checkpoint(copied, probe)


def test_the_tolerance_by_hand():
    """4 u sqrt(8 L): of bfloat16 (u = 2^-8) and 32 layers 4 / 256 x 16; the coarser of two dtypes counts."""
    assert tolerance((torch.bfloat16,), 32, on_gpu=True) == tolerance((torch.float32, torch.bfloat16), 32, on_gpu=False) == 0.25
    assert tolerance((torch.float32,), 32, on_gpu=False) == 64 / 2**16


def test_tied_tensors_that_training_made_two_are_refused():
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    weight = torch.ones(4)
    require_tied({"lm_head.weight": weight, "model.embed_tokens.weight": weight.clone()}, tied)
    require_tied({"model.embed_tokens.weight": weight}, tied)
    with pytest.raises(ValueError, match="training made two of them"):
        require_tied({"lm_head.weight": weight + 1, "model.embed_tokens.weight": weight}, tied)


def test_an_untied_head_is_saved_and_a_save_that_flips_a_tensor_is_no_artifact(tiny_llama, tmp_path, make_spec, monkeypatch):
    """In this process, so that the fault can be put into save_pretrained: it writes one matrix the wrong way round."""
    from core.stage import Spec, Stage
    from train import sft

    untied = shutil.copytree(tiny_llama, tmp_path / "untied")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=False)
    model.lm_head.weight.data.normal_(std=0.02)
    model.save_pretrained(untied)
    data = tmp_path / "data"
    data.mkdir()
    message = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Three."}]
    write_jsonl(data / "sft.jsonl", [{"id": str(k), "messages": message} for k in range(4)])
    settings = training_settings(loss_on="assistant", packing=False)
    spec = make_spec("sft", settings, {"policy": untied, "data": data}, resources=RESOURCES, events=os.devnull)
    stage = Stage(Spec.load(spec))
    stage.work.mkdir(parents=True)
    sft.run(stage)
    saved, started = load_weights(stage.work / "checkpoint"), load_weights(untied)
    assert saved.keys() == started.keys() and "lm_head.weight" in saved
    assert not torch.equal(saved["lm_head.weight"], started["lm_head.weight"])

    whole = type(model).save_pretrained

    def faulty(self, folder, state_dict, **options):
        whole(self, folder, state_dict=state_dict | {MATRIX: state_dict[MATRIX].flip(0).contiguous()}, **options)

    monkeypatch.setattr(type(model), "save_pretrained", faulty)
    with pytest.raises(ValueError, match="up_proj.weight is not what was trained"):
        sft.run(stage)
