"""Adapters of other trainers: merged once, into what they were trained on, and refused where that cannot be."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import MissingInput, UnsafeCheckpoint
from core.fingerprint import checkpoint_fingerprint
from db.models import Checkpoint
from db.registry import Registry
from harness.checkpoint_folder import checkpoint_folder
from harness.resolve import resolve_checkpoint
from tests.test_register_callback import registered, train_sft
from tests.test_watching import Heard, watch
from train.foreign import is_adapter, missing_parts
from train.merging import local_model, merged_adapter

IDS = torch.arange(3, 19).view(2, 8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def adapted(base: Path, **changes):
    """A model of peft with an adapter that is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | changes
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return model.eval()


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    """`checkpoint-7`: an adapter without tokenizer, as a trainer saves it."""
    folder = tmp_path / "out" / "checkpoint-7"
    adapted(tiny_llama).save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True, "alpha_pattern": {"q_proj": 2}}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_a_merged_adapter_computes_what_the_adapted_model_computes(changes, tiny_llama: Path, tmp_path: Path, monkeypatch):
    for rank in ("RANK", "WORLD_SIZE", "MASTER_PORT"):  # a rank of a training: its merging is no rank
        monkeypatch.setenv(rank, "1")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    model = adapted(tiny_llama, **changes)
    model.save_pretrained(tmp_path / "a")
    whole = merged_adapter(tmp_path / "a", tiny_llama)
    assert missing_parts(whole) == [] and not is_adapter(whole) and is_adapter(tmp_path / "a")
    loaded = AutoModelForCausalLM.from_pretrained(whole, dtype="auto")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    assert not torch.allclose(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(tiny_llama)), atol=1e-2)
    assert AutoTokenizer.from_pretrained(whole).chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template


def test_it_is_merged_once_and_anew_when_it_or_its_base_changes(adapter: Path, tiny_llama: Path, home: Path, tmp_path: Path):
    first = merged_adapter(adapter, tiny_llama)
    at = (first / "model.safetensors").stat().st_mtime_ns
    assert merged_adapter(adapter, tiny_llama) == first and (first / "model.safetensors").stat().st_mtime_ns == at
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    other = merged_adapter(adapter, base)
    assert other != first and checkpoint_fingerprint(other) == checkpoint_fingerprint(first)
    adapted(tiny_llama, r=2).save_pretrained(adapter)
    assert merged_adapter(adapter, tiny_llama) not in (first, other)
    assert sorted(path.name for path in (home / "models").iterdir() if "." in path.name) == [], "nothing half made is left"


def test_its_own_tokenizer_and_template_win(adapter: Path, tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(adapter)
    assert AutoTokenizer.from_pretrained(merged_adapter(adapter, tiny_llama)).chat_template == tokenizer.chat_template


def test_what_cannot_be_merged_is_refused_by_name(adapter: Path, tiny_llama: Path, home: Path, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "other"
    LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(other)
    with pytest.raises(MissingInput, match="is it this model's adapter"):
        merged_adapter(adapter, other)
    with pytest.raises(MissingInput, match="an adapter itself"):
        merged_adapter(adapter, adapter)
    with pytest.raises(MissingInput, match="holds no adapter"):
        merged_adapter(tiny_llama, tiny_llama)
    config = json.loads((adapter / "adapter_config.json").read_text())

    def configure(**changes) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))

    for changes, message in (
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS model"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": str(adapter)}, "trained on another adapter"),
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "There is no checkpoint"),
    ):
        configure(**changes)
        with pytest.raises(MissingInput, match=message):
            checkpoint_folder(str(adapter))
    configure(auto_map={"x": "y.Z"})
    with pytest.raises(UnsafeCheckpoint):
        checkpoint_folder(str(adapter))
    configure()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(MissingInput, match="lacks adapter_model.safetensors"):
        checkpoint_folder(str(adapter))
    assert list((home / "models").iterdir()) == []


def test_an_adapter_is_a_checkpoint_wherever_one_is_named(adapter: Path, tiny_llama: Path):
    found = resolve_checkpoint(str(adapter))
    assert found.path == str(merged_adapter(adapter, tiny_llama))
    assert found.fingerprint == checkpoint_fingerprint(Path(found.path)) != checkpoint_fingerprint(tiny_llama)


def test_watched_adapters_are_evaluated_merged_into_the_base_that_is_given(
    adapter: Path, tiny_llama: Path, registry: Registry, tmp_path: Path
):
    moved = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "elsewhere"}
    (adapter / "adapter_config.json").write_text(json.dumps(moved))
    heard = Heard()
    watch(registry, adapter.parent, heard, base=tiny_llama).run(once=True, interval=0)
    assert heard.evaluated == ["run/step-7"] and heard.of("failed") == []
    with registry.read() as session:
        row = session.query(Checkpoint).filter_by(name="run/step-7").one()
        assert row.path == str(merged_adapter(adapter, tiny_llama))
        assert session.get(Checkpoint, row.parent_id).fingerprint == checkpoint_fingerprint(tiny_llama)


def test_adapters_of_a_trl_trainer_are_registered_whole(tiny_llama: Path, registry: Registry, tmp_path: Path):
    from peft import LoraConfig

    from train.register_callback import RegisterCheckpoints

    callback = RegisterCheckpoints("lora", registry=registry.url)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    train_sft(tiny_llama, tmp_path / "out", callback, peft_config=config)
    assert callback.failures == [] and sorted(callback.registered) == [2, 4]
    rows = registered(registry, "lora")
    for step, row in rows.items():
        saved = tmp_path / "out" / f"checkpoint-{step}"
        assert is_adapter(saved) and row.path == str(merged_adapter(saved, tiny_llama))
        assert row.fingerprint == checkpoint_fingerprint(Path(row.path)) and len(row.provenance["adapter_sha256"]) == 64
    assert rows[2].fingerprint != rows[4].fingerprint and rows[4].parent_id is not None


def test_an_adapter_whose_base_is_not_here_is_told_and_the_training_goes_on(adapter: Path, registry: Registry, tmp_path: Path):
    from transformers import TrainerState

    from train.register_callback import RegisterCheckpoints

    told = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "nobody/has-this"}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    callback = RegisterCheckpoints("x", registry=registry.url, base="nobody/has-this")
    args, state = type("Arguments", (), {"output_dir": str(adapter.parent)}), TrainerState(global_step=7)
    callback.on_train_begin(args, state, None)
    callback.on_save(args, state, None)
    assert len(callback.failures) == 1 and "give its folder as `base`" in callback.failures[0] and callback.registered == {}


def test_a_model_of_the_hubs_cache_is_found_by_its_id(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert local_model("org/tiny") is None and local_model("no such id!") is None
    commit = "a" * 40
    cached = tmp_path / "hub" / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_llama, cached / "snapshots" / commit)
    assert local_model("org/tiny") == cached / "snapshots" / commit and local_model(str(tiny_llama)) == tiny_llama.resolve()
    os.remove(cached / "snapshots" / commit / "model.safetensors")
    assert local_model("org/tiny") is None
