"""A reward model is used only if a conversation's reward does not depend on what else is in the batch."""

import json
import shutil
import sys

import pytest

from core.errors import HarnessError, MissingInput
from tests.training import write_jsonl
from train.reward_parity import PROBES, main, parity_report, require_parity
from train.scorers import BradleyTerryScorer


def reward_checkpoint(folder, source, **config):
    """A randomly initialised classifier on the tokenizer of `source`, or of `source`'s weights where no config is given."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if config:
        made = config.pop("config_class")(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **config)
        model = AutoModelForSequenceClassification.from_config(made)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backbone", ["Llama", "Qwen2", "Gemma2", "GPTNeoX"])
def test_backbones_score_alike_alone_batched_and_padded(backbone, tiny_llama, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "head_dim": 8} if backbone in ("Llama", "Gemma2") else {}
    more |= {"num_key_value_heads": 2} if backbone == "Qwen2" else {}
    config = getattr(transformers, f"{backbone}Config")
    folder = reward_checkpoint(
        tmp_path / "reward", tiny_llama, config_class=config, max_position_embeddings=1024, **sizes, **more
    )
    report = require_parity(BradleyTerryScorer(folder), PROBES)
    assert set(report) == {"batched", "padded_16", "padded_128", "scale"} and report["scale"] > 1e-4


class Shifted:
    """Stands for a model that reads at a padding token: its score depends on the longest conversation of the batch."""

    max_length = 512

    def score(self, conversations):
        lengths = [sum(len(message["content"]) for message in conversation) for conversation in conversations]
        return [n / 100 + (max(lengths) - n) / 1000 for n in lengths]


def test_a_score_that_depends_on_the_batch_is_refused_and_the_cause_named():
    assert parity_report(Shifted(), PROBES)["padded_128"] == pytest.approx((5 * 128 + 3 - 20) / 1000, abs=0.1)
    with pytest.raises(HarnessError, match=r"otherwise batched than alone .*pad_token that its chat template never writes"):
        require_parity(Shifted(), PROBES)


def test_a_score_that_is_no_number_is_refused():
    class Broken(Shifted):
        def score(self, conversations):
            return [float("nan")] * len(conversations)

    with pytest.raises(HarnessError, match="otherwise batched"):
        require_parity(Broken(), PROBES)


def test_another_way_of_scoring_is_compared_too():
    class Steady(Shifted):
        def score(self, conversations):
            return [float(len(conversation)) for conversation in conversations]

    assert require_parity(Steady(), PROBES, others={"vllm": Steady().score})["vllm"] == 0
    with pytest.raises(HarnessError, match="otherwise vllm than alone .*vLLM and transformers read it at another token"):
        require_parity(Steady(), PROBES, others={"vllm": Shifted().score})


def test_vllm_is_asked_before_a_scorer_takes_memory_in_a_process_of_its_own(tiny_llama, tmp_path, monkeypatch):
    """Shown by a fault that vLLM's side meets before its engine starts."""
    bare = shutil.copytree(tiny_llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    write_jsonl(tmp_path / "pairs.jsonl", [{"chosen": conversation} for conversation in PROBES])
    monkeypatch.setattr("train.scorers.BradleyTerryScorer", lambda *a, **k: pytest.fail("the scorer holds the GPU already"))
    monkeypatch.setattr(sys, "argv", ["reward_parity", str(bare), str(tmp_path / "pairs.jsonl"), "--vllm"])
    with pytest.raises(MissingInput, match="has no chat template") as refused:
        main()
    assert type(refused.value.__cause__).__name__ == "_RemoteTraceback"


@pytest.mark.slow
def test_vllms_pooling_gives_the_rewards_of_transformers(tiny_llama, tmp_path):
    import subprocess

    pytest.importorskip("vllm")
    folder = reward_checkpoint(tmp_path / "reward", tiny_llama)
    write_jsonl(tmp_path / "pairs.jsonl", [{"chosen": conversation} for conversation in PROBES])
    command = [sys.executable, "-m", "train.reward_parity", str(folder), str(tmp_path / "pairs.jsonl"), "--vllm"]
    finished = subprocess.run([*command, "--max-length", "512"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    report = json.loads(finished.stdout[finished.stdout.rindex("{") :])
    assert report["vllm"] < 1e-3
