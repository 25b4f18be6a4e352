"""Packing: bins that hold what fits, and samples that do not see each other."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RecipeError
from tests.training import RESOURCES, training_settings, write_jsonl
from train.chat import load_tokenizer
from train.packing import PackedCollator, best_fit_decreasing, boundaries, fill_ratio, join, pack, require_isolation
from train.sft import tokenise
from train.spans import IGNORED

SAMPLES = [
    {"input_ids": [5 + k * 7 + j for j in range(n)], "labels": [IGNORED] * 3 + [5 + k * 7 + j for j in range(3, n)]}
    for k, n in enumerate((12, 7, 19, 5))
]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), max_size=80))
def test_every_sample_is_in_one_bin_and_no_bin_overflows(lengths):
    bins = best_fit_decreasing(lengths, 64)
    assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in one) <= 64 for one in bins)
    # No two bins could be one: else the second would not have been opened.
    loads = sorted(sum(lengths[i] for i in one) for one in bins)
    assert len(loads) < 2 or loads[0] + loads[1] > 64


def test_the_fullest_bin_that_fits_is_chosen():
    # 70 and 60 open two bins; 30 goes to the fuller one, 40 then to the other.
    assert best_fit_decreasing([30, 60, 70, 40], 100) == [[2, 0], [1, 3]]
    with pytest.raises(ValueError, match="1..10"):
        best_fit_decreasing([11], 10)


def test_a_packed_row_restarts_positions_and_ignores_each_first_token():
    row = join([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}])
    assert row == {
        "input_ids": [1, 2, 3, 4, 5],
        "labels": [IGNORED, 2, 3, IGNORED, 5],
        "position_ids": [0, 1, 2, 0, 1],
        "samples": 2,
        "length": 5,
    }
    rows = pack(SAMPLES, 24, seed=0)
    assert sorted(row["length"] for row in rows) == [19 + 5, 12 + 7][::-1] and sum(row["samples"] for row in rows) == 4
    assert fill_ratio(rows, 24) == 43 / 48
    assert rows == pack(SAMPLES, 24, seed=0)


def test_boundaries_are_where_positions_begin_again():
    import torch

    found = boundaries(torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 3]))
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 3, 5, 9]
    assert found["max_length_q"] == found["max_length_k"] == 4 and found["cu_seq_lens_q"].dtype == torch.int32


def tiny(kind: str):
    """A model of two layers in float64, in which rounding cannot be taken for leakage."""
    import torch
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes, **heads),
        "qwen": lambda: transformers.Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2),
        # One layer of the two with a window shorter than a sample.
        "gemma": lambda: transformers.Gemma2Config(**sizes, **heads, sliding_window=4, attn_implementation="sdpa"),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "mamba": lambda: transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    }[kind]()
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).double().eval()


def loss_and_gradients(model, batches):
    """Summed token loss of batches and the gradients of all weights."""
    import torch

    model.zero_grad()
    total = 0.0
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("flatten", [False, True], ids=["rows", "flat"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma", "gpt2"])
def test_packed_samples_give_the_loss_and_gradients_of_the_same_samples_apart(kind, flatten):
    import torch

    model = tiny(kind)
    collate = PackedCollator(pad_id=0, flatten=flatten)
    packed = [collate(pack(SAMPLES, 24, seed=0))]
    apart = [{name: torch.tensor([sample[name]]) for name in ("input_ids", "labels")} for sample in SAMPLES]
    loss, gradients = loss_and_gradients(model, packed)
    expected, expected_gradients = loss_and_gradients(model, apart)
    assert loss == pytest.approx(expected, rel=1e-9)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], atol=1e-9), name


def test_changing_one_sample_moves_no_other_samples_loss():
    import torch

    model, collate = tiny("llama"), PackedCollator(pad_id=0, flatten=False)
    changed = copy.deepcopy(SAMPLES)
    changed[0]["input_ids"] = [63 - token for token in changed[0]["input_ids"]]

    def losses(samples):
        batch = collate([join(samples)])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED, reduction="none")

    before, after = losses(SAMPLES), losses(changed)
    assert (before[:11] - after[:11]).abs().max() > 1e-3
    assert torch.equal(before[12:], after[12:])


def test_a_model_whose_state_runs_along_the_row_is_found_out():
    collate = PackedCollator(pad_id=0, flatten=False)
    assert require_isolation(tiny("llama").float(), collate) < 1e-5
    with pytest.raises(RecipeError, match="sees the one before it in MambaForCausalLM.*set packing to false"):
        require_isolation(tiny("mamba").float(), collate)


def test_a_training_asks_before_its_first_step_whether_samples_see_each_other():
    from types import SimpleNamespace

    from train.trainers import PackedSFTTrainer

    collate = PackedCollator(pad_id=0, flatten=False)
    trainer = SimpleNamespace(_isolated=False, data_collator=collate, args=SimpleNamespace(bf16=False))
    with pytest.raises(RecipeError, match="set packing to false"):
        PackedSFTTrainer.compute_loss(trainer, tiny("mamba").float(), collate(pack(SAMPLES, 24, seed=0)))


def test_a_packed_training_has_the_loss_of_the_conversations_apart(tiny_llama, run_stage, tmp_path):
    """One step over all conversations: the loss that it reports is the first model's mean over all learned tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "data"
    folder.mkdir()
    texts = ["blue", "a longer answer of several words", "no", "an answer that goes on for quite a while, as some do"]
    rows = [
        {"id": str(k), "messages": [{"role": "user", "content": f"Say {k}"}, {"role": "assistant", "content": texts[k % 4]}]}
        for k in range(12)
    ]
    write_jsonl(folder / "sft.jsonl", rows)
    examples, _ = tokenise(rows, load_tokenizer(tiny_llama), "assistant", 128)
    packed_rows = len(pack(examples, 128, seed=0))
    chosen = training_settings(packing=True, loss_on="assistant", batch_size=packed_rows, max_steps=1)
    inputs, resources = {"policy": tiny_llama, "data": folder}, RESOURCES | {"micro_batch_size": packed_rows}
    metrics = run_stage("train.sft", "sft", chosen, inputs, resources=resources).metrics
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    apart = [{name: torch.tensor([example[name]]) for name in ("input_ids", "labels")} for example in examples]
    loss, _ = loss_and_gradients(model, apart)
    learned = sum(label != IGNORED for example in examples for label in example["labels"])
    assert metrics["train_loss"] == pytest.approx(loss / learned, rel=1e-5)
    assert metrics["packed_rows"] == packed_rows < metrics["examples"] == 12 and 0.5 < metrics["fill_ratio"] <= 1
