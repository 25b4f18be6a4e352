"""Where a reward is read, what it is kept under, and what a forward pass holds."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.stage import Spec
from tests.test_annotate import CONVERSATIONS, SETTINGS, make_reward_model
from train.annotation_cache import reward_identity
from train.annotators import make_annotator
from train.chat import load_tokenizer, render
from train.scorers import default_batch_tokens, make_scorer, padding_identity


@pytest.fixture(scope="module")
def reward_model(tiny_llama, tmp_path_factory) -> Path:
    return make_reward_model(tiny_llama, tmp_path_factory.mktemp("reward"))


@pytest.fixture
def padded_with_0(reward_model, tmp_path) -> Path:
    """A reward model whose padding is token 0 by its tokenizer alone (Llama-2's way), and whose turns end with EOS."""
    copy = Path(shutil.copytree(reward_model, tmp_path / "padded-with-0"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    tokenizer = load_tokenizer(copy)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(copy)
    assert tokenizer.pad_token_id == 0
    return copy


def test_padding_with_token_0_reads_the_reward_at_the_last_token(padded_with_0):
    import torch
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(padded_with_0).eval(), load_tokenizer(padded_with_0)
    scorer = make_scorer("bradley_terry", padded_with_0, resources={"threads": 1})
    with torch.no_grad():
        rows = [torch.tensor([render(tokenizer, one, add_generation_prompt=False)[1]]) for one in CONVERSATIONS]
        expected = [model.score(model.model(ids).last_hidden_state[0, -1]).item() for ids in rows]
    assert scorer.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)


def test_rewards_of_padding_token_0_are_kept_apart(make_spec, padded_with_0, reward_model):
    from evals.judges.reward_judge import HeldOutRewardJudge, RewardModelJudge

    def identity(checkpoint: Path) -> tuple[str, str]:
        spec = Spec.load(make_spec("annotate", SETTINGS, {"scorer": checkpoint}))
        given = spec.inputs["scorer"]["fingerprint"]
        made = make_annotator(spec, {"name": "reward", "input": "scorer"} | SETTINGS).scorer.identity
        return made, reward_identity("bradley_terry", given, "float32", 512)

    assert padding_identity(reward_model) == {} and len(set(identity(reward_model))) == 1
    assert padding_identity(padded_with_0) == {"padding": 0} and len(set(identity(padded_with_0))) == 2
    assert padding_identity(Path("nowhere")) == {}

    benchmark = SimpleNamespace(name="b", reward_rule="r")
    configs = [RewardModelJudge(path, "f", {}, {}).config(benchmark, {}) for path in (reward_model, padded_with_0)]
    assert configs[1] == configs[0] | {"padding": 0}
    configs = [HeldOutRewardJudge((path, "f"), None, {}, {}).config(benchmark, {}) for path in (reward_model, padded_with_0)]
    assert configs[1] == configs[0] | {"padding_0": ["proxy"]}


def test_scoring_keeps_no_keys_and_values_that_nobody_reads(reward_model):
    scorer, kept = make_scorer("bradley_terry", reward_model, resources={"threads": 1}), []
    scorer.model.model.register_forward_hook(lambda module, inputs, output: kept.append(output.past_key_values))
    scorer.forward.rewards([(1, 2, 3), (4, 5)], ["a", "b"])
    assert kept and all(cache is None for cache in kept)


def test_float32_takes_fewer_tokens_at_once_on_a_gpu():
    """Keys and values of Llama-3-8B: 2 x 32 layers x 8 heads x 128 values a token; at most twice 8 GiB of them at once."""
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        assert default_batch_tokens("cuda", dtype) * 2 * 32 * 8 * 128 * size <= 8 * 2**30
        assert default_batch_tokens("cpu", dtype) == 1024
    assert default_batch_tokens("cuda", "bfloat16") == 65536
