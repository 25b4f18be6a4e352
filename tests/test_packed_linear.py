"""Packed layers compute what plain ones do, and only where they may stand in for them."""

from pathlib import Path

import pytest

from train.packed_linear import available, pack_linear_layers

torch = pytest.importorskip("torch")


@pytest.fixture
def wide():
    """A Llama whose matrices are worth packing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
    return LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=True)).eval()


@pytest.mark.skipif(not available(), reason="this torch has no oneDNN")
def test_logits_are_those_of_the_plain_layers(wide):
    ids = torch.arange(3 * 17).view(3, 17)
    with torch.inference_mode():
        plain = wide(input_ids=ids).logits
        # Seven matrices a layer; the head is the embeddings' own tensor and stays.
        assert pack_linear_layers(wide) == 14
        packed = wide(input_ids=ids).logits
    assert torch.equal(wide.lm_head.weight, wide.model.embed_tokens.weight)
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
    assert pack_linear_layers(wide) == 0, "nothing is packed twice"


def test_other_dtypes_are_left_alone(wide):
    assert pack_linear_layers(wide.bfloat16()) == 0


def test_small_models_are_left_alone(tiny_llama: Path):
    from transformers import AutoModelForCausalLM

    assert pack_linear_layers(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)) == 0
