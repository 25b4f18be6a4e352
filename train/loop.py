"""The part of training that SFT, reward modelling and DPO share: resume, train, save, leave the process group.

Guarantee: a killed training goes on from its newest whole rolling checkpoint with the same examples in the same order;
a checkpoint is returned only after it was verified from disk.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.stage import Stage
from train.checkpoint import stored_dtype, verify_checkpoint
from train.curves import write_curves
from train.lora import merged, save_adapter
from train.rolling import keep_only, newest_complete
from train.saving import require_same_tensors, require_tied, take_probe


@dataclass(frozen=True)
class Trained:
    """What a training left in this process."""

    history: list[dict[str, Any]]
    """{"step", "loss", ...} of each logging step, those before a resume included."""
    epochs: float
    """Of this process: from the step that it resumed at."""
    seconds: float
    """Of this process's steps, with the rolling checkpoints and evaluations between them."""
    ranks: int


def train_and_save(trainer: Any, stage: Stage, source: Path, tokenizer: Any = None) -> Trained:
    """Train (or go on training), write and verify `stage.work/checkpoint`, and end the process group; all ranks call it.

    The training's curves are left in `stage.work/curves.jsonl` (`train.curves`). Weights are stored in the dtype of
    `source`, the checkpoint that training started from. `tokenizer` is saved with them; None copies the files of `source`
    unchanged, as well as its configuration.
    """
    rolling = stage.work / "rolling"
    resume = newest_complete(rolling, trainer.args.world_size)
    if resume:
        stage.message(f"Resuming from step {resume.name.rpartition('-')[2]}.")
    _barrier()
    if stage.is_main:
        keep_only(rolling, resume)
    _barrier()
    clock = StepClock()
    trainer.add_callback(clock.callback())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if stage.is_main:
        write_curves(stage.work, trainer.state.log_history)
    probe = take_probe(trainer)
    _save(trainer, stage.work / "checkpoint", source, tokenizer, stage.is_main)
    _leave(trainer)
    if stage.is_main:
        verify_checkpoint(stage.work / "checkpoint", probe)
    return Trained(history, clock.epochs, clock.seconds, trainer.args.world_size)


class StepClock:
    """Epochs and seconds from the first step of a process to its last."""

    def __init__(self) -> None:
        self.epochs = self.seconds = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock, began = self, [0.0, 0.0]

        class Clock(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                began[:] = [time.perf_counter(), state.epoch or 0.0]

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.seconds, clock.epochs = time.perf_counter() - began[0], state.epoch - began[1]

        return Clock()


def finish(stage: Stage) -> None:
    """Delete the rolling checkpoints, once the final one is verified."""
    shutil.rmtree(stage.work / "rolling", ignore_errors=True)


def mean_of(history: list[dict[str, Any]], name: str, last_share: float = 1.0) -> float:
    """Mean of a logged value over the last share of the steps; each entry stands for the steps since the one before."""
    total = history[-1]["step"]
    begin = total * (1 - last_share)
    weighted, weight, previous = 0.0, 0, 0
    for entry in history:
        steps, previous = entry["step"] - previous, entry["step"]
        if entry["step"] > begin:
            weighted, weight = weighted + steps * entry[name], weight + steps
    return weighted / weight


def _save(trainer: Any, folder: Path, source: Path, tokenizer: Any, is_main: bool) -> None:
    """Write `folder` from all ranks' weights; an adapter is merged into it and written beside, as `adapter/`."""
    from accelerate.utils import is_peft_model
    from transformers import AutoConfig

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers the shards of ZeRO-3: all ranks take part
    if is_main:
        dtype, model = stored_dtype(source), trainer.accelerator.unwrap_model(trainer.model_wrapped)
        shutil.rmtree(folder, ignore_errors=True)
        if is_peft_model(model):
            adapter = model.peft_config["default"]
            save_adapter(model, state, folder.with_name("adapter"))
            state, model = merged(state, adapter.lora_alpha / adapter.r), model.get_base_model()
        require_tied(state, model.all_tied_weights_keys)
        for name in model.all_tied_weights_keys:
            state.pop(name, None)
        for name in list(state):
            state[name] = state[name].to(device="cpu", dtype=dtype).contiguous()
        model.save_pretrained(folder, state_dict=state)
        require_same_tensors(folder, state)
        # save_pretrained records the dtype of the weights in memory, and trl has put its padding token into the config.
        config = model.config if tokenizer else AutoConfig.from_pretrained(source)
        config.architectures = [type(model).__name__]
        config.dtype = dtype
        config.save_pretrained(folder)
        if tokenizer:
            tokenizer.save_pretrained(folder)
        else:
            copy_tokenizer(source, folder)
    _barrier()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation defaults byte for byte."""
    for file in sorted(source.iterdir()):
        of_model = file.name == "config.json" or file.name.endswith(".index.json")
        if file.is_file() and not of_model and file.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(file, folder / file.name)


def _barrier() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _leave(trainer: Any) -> None:
    """Free the trained model and end the process group, so that rank 0 can load the checkpoint as an ordinary process."""
    import gc

    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    _barrier()
    trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = trainer.deepspeed = None
    trainer.accelerator.free_memory()  # DeepSpeed's engine takes its leave of the group
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    unset_hf_deepspeed_config()  # else from_pretrained would go on sharding under ZeRO-3
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
