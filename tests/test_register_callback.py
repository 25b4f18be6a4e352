"""Checkpoints of trainers that are not ours: registered as they are saved, and never at the training's cost."""

import subprocess
from pathlib import Path

import pytest
from sqlalchemy import select

from core.errors import RecipeError
from core.fingerprint import checkpoint_fingerprint
from db import views
from db.models import Checkpoint, Run, RunCheckpoint
from db.registry import Registry
from train.foreign import missing_parts, open_run, safetensors_size, step_of

TEXTS = [[{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}] for word in ("one", "two", "six")]


def arguments(config: type, folder: Path, **changes):
    fixed = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1}
    fixed |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 5, "save_strategy": "steps"}
    return config(output_dir=str(folder), **(fixed | changes))


def train_sft(tiny_llama: Path, folder: Path, callback, peft_config=None, **changes) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        args=arguments(SFTConfig, folder, **changes),
        train_dataset=Dataset.from_list([{"messages": text} for text in TEXTS] * 2),
        callbacks=[callback],
        peft_config=peft_config,
    )
    trainer.train()


def registered(registry: Registry, run: str) -> dict[int, Checkpoint]:
    with registry.read() as session:
        query = select(RunCheckpoint.iteration, Checkpoint).join(Checkpoint, RunCheckpoint.checkpoint_id == Checkpoint.id)
        found = session.execute(
            query.join(Run, RunCheckpoint.run_id == Run.id).where(Run.name == run, RunCheckpoint.role == "policy")
        )
        return {step: row for step, row in found.all()}


def test_every_save_of_a_trl_trainer_becomes_a_row_with_its_lineage(tiny_llama: Path, registry: Registry, tmp_path: Path):
    from transformers import AutoTokenizer

    from train.register_callback import RegisterCheckpoints

    callback = RegisterCheckpoints("my-sft", registry=registry.url)
    train_sft(tiny_llama, tmp_path / "out", callback)
    assert callback.failures == [] and sorted(callback.registered) == [2, 4]
    rows = registered(registry, "my-sft")
    assert rows[4].fingerprint == checkpoint_fingerprint(tmp_path / "out" / "checkpoint-4") != rows[2].fingerprint
    assert (rows[4].name, rows[4].kind, rows[4].source) == ("my-sft/step-4", "third_party", "imported")
    told = rows[4].provenance
    assert told["chat_template"] == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    assert told["step"] == 4 and told["settings"]["learning_rate"] == 1e-3 and told["metrics"]["loss"] > 0
    with registry.read() as session:
        base = session.scalars(select(Checkpoint).where(Checkpoint.id == rows[4].parent_id)).one()
        assert (base.fingerprint, base.kind) == (checkpoint_fingerprint(tiny_llama), "base")
        run = session.scalars(select(Run)).one()
        assert (run.name, run.status, run.recipe["trainer"]["seed"]) == ("my-sft", "done", 5)
        assert [row.name for row in views.runs(session)] == ["my-sft"]


def test_a_dpo_trainer_and_a_plain_trainer_are_registered_too(tiny_llama: Path, registry: Registry, tmp_path: Path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
    from trl import DPOConfig, DPOTrainer

    from train.register_callback import RegisterCheckpoints

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    pairs = [{"prompt": "say " + word, "chosen": " " + word, "rejected": " no"} for word in ("one", "two")]
    dpo = RegisterCheckpoints(registry=registry.url)
    DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama),
        processing_class=tokenizer,
        args=arguments(DPOConfig, tmp_path / "dpo-out", max_steps=1, save_steps=1),
        train_dataset=Dataset.from_list(pairs),
        callbacks=[dpo],
    ).train()
    ids = tokenizer("some words")["input_ids"]
    plain = RegisterCheckpoints("plain", registry=registry.url)
    Trainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama),
        processing_class=tokenizer,
        args=arguments(TrainingArguments, tmp_path / "plain-out", max_steps=1, save_steps=1),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids}] * 2),
        callbacks=[plain],
    ).train()
    assert (dpo.failures, plain.failures) == ([], [])
    (run,) = {dpo.name}
    assert registered(registry, run)[1].provenance["settings"]["beta"] == 0.1
    assert registered(registry, "plain")[1].name == "plain/step-1"


def test_nothing_that_fails_reaches_the_training(tiny_llama: Path, tmp_path: Path, registry: Registry):
    from train.register_callback import RegisterCheckpoints

    (tmp_path / "file").touch()
    nowhere = RegisterCheckpoints("x", registry=f"sqlite:///{tmp_path}/file/registry.db")
    train_sft(tiny_llama, tmp_path / "a", nowhere, max_steps=1, save_steps=1)
    assert (tmp_path / "a" / "checkpoint-1" / "model.safetensors").exists() and "could not be registered" in nowhere.failures[0]
    with registry.write() as session:
        session.add(Run(name="taken", recipe_name="quickstart", recipe={}, recipe_hash="h", status="done"))
    taken = RegisterCheckpoints("taken", registry=registry.url)
    train_sft(tiny_llama, tmp_path / "b", taken, max_steps=1, save_steps=1)
    assert "another name" in taken.failures[0] and registered(registry, "taken") == {}
    with pytest.raises(RecipeError, match="never, end, every_save"):
        RegisterCheckpoints(evaluate="sometimes")


def test_other_ranks_do_nothing(tmp_path: Path):
    from transformers import TrainerState

    from train.register_callback import RegisterCheckpoints

    callback, state = RegisterCheckpoints("x", registry=f"sqlite:///{tmp_path}/r.db"), TrainerState(is_world_process_zero=False)
    for event in (callback.on_train_begin, callback.on_save, callback.on_step_end, callback.on_train_end):
        event(None, state, None)
    assert not (tmp_path / "r.db").exists() and callback.failures == []


def test_evaluations_run_one_after_the_other_and_outlive_rotation(
    tiny_llama: Path, registry: Registry, tmp_path: Path, monkeypatch
):
    """The command that is started is replaced: what is tested is when it starts, on which files, and what its failure does."""
    from train import register_callback

    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    seen, started = tmp_path / "seen", subprocess.Popen

    def stand_in(command: list[str], **options):
        assert command[1:4] == ["-m", "harness", "eval"] and command[5:] == ["--benchmarks", "human_eval"]
        assert options["env"]["HARNESS_DB"] == registry.url and options["env"]["CUDA_VISIBLE_DEVICES"] == "7"
        code = 3 if "checkpoint-1" in command[4] else 0
        # Fails to start a second one at a time: the lock is a folder.
        script = f"mkdir {seen}.lock && sleep 0.2 && ls {command[4]} >> {seen} && rmdir {seen}.lock && exit {code}"
        return started(["bash", "-c", script], **options)

    monkeypatch.setattr(register_callback.subprocess, "Popen", stand_in)
    callback = register_callback.RegisterCheckpoints(
        "kept",
        registry=registry.url,
        evaluate="every_save",
        options=["--benchmarks", "human_eval"],
        env={"CUDA_VISIBLE_DEVICES": "7"},
    )
    train_sft(tiny_llama, tmp_path / "out", callback, max_steps=3, save_steps=1, save_total_limit=1)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert seen.read_text().count("model.safetensors") == 3
    assert len(callback.failures) == 1 and "exit code 3" in callback.failures[0]
    for row in registered(registry, "kept").values():
        assert checkpoint_fingerprint(Path(row.path)) == row.fingerprint


# --- what a whole checkpoint is ---


def test_a_half_written_checkpoint_is_named_for_what_it_lacks(tiny_llama: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "checkpoint-12"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1 and missing_parts(folder) == ["a tokenizer"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama / name).read_bytes())
    assert missing_parts(folder) == [] and missing_parts(tiny_llama) == [] and step_of(folder) == 12
    whole = shards[0].read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        shards[0].write_bytes(whole[:cut])
        assert missing_parts(folder) == [f"{shards[0].name} (it is not whole)"]
    shards[0].write_bytes(whole)
    assert safetensors_size(shards[0]) == len(whole)
    shards[1].unlink()
    assert missing_parts(folder) == [shards[1].name]
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    assert missing_parts(folder) == ["model.safetensors.index.json (it is not whole)"]


def test_shards_of_deepspeed_and_cut_adapters_are_said_to_be_that(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "a" / "global_step10").mkdir(parents=True)
    assert "zero_to_fp32" in missing_parts(tmp_path / "a")[-1]
    adapter = tmp_path / "b"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": ')
    assert missing_parts(adapter) == ["adapter_config.json (it is not whole)"]
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert missing_parts(adapter) == ["adapter_model.safetensors"]
    (adapter / "adapter_model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes()[:-1])
    assert missing_parts(adapter) == ["adapter_model.safetensors (it is not whole)"]


def test_a_training_is_reopened_and_recipes_runs_are_left_alone(registry: Registry):
    assert open_run(registry, "again", {"a": 1}) == open_run(registry, "again", {"a": 2})
