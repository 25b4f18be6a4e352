"""Adapters that other trainers save (peft's format), merged into whole checkpoints: W + s B A and its kin, by peft.

    merged_adapter(Path("outputs/checkpoint-500"), base)     # HARNESS_HOME/models/checkpoint-500-<hash>, made once

What evaluates a checkpoint need not know of adapters. The merging is a process of its own (`python -m train.merging`): the
memory of a second model is given back, and a training under ZeRO-3 does not shard it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from core import paths
from core.errors import MissingInput
from core.fingerprint import digest, file_sha256
from core.stage import require_free_space
from train.foreign import ADAPTER, INDEX, TOKENIZERS, copied, is_adapter, missing_parts

ROOT = Path(__file__).resolve().parent.parent
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
"""Variables by which the ranks of a distributed training are told apart: a process started beside it is none of them."""


def base_of(folder: Path) -> tuple[str, str | None]:
    """(directory or hub id, revision) of the model that an adapter was trained on. Raises MissingInput where it says none."""
    told = _config(folder)
    name = told.get("base_model_name_or_path")
    if not name:
        raise MissingInput(f"{folder}/adapter_config.json names no base model; write its base_model_name_or_path.")
    return str(name), told.get("revision")


def merged_adapter(folder: Path, base: Path) -> Path:
    """A whole checkpoint under HARNESS_HOME/models: `base` with the adapter of `folder` merged in, in the base's dtype.

    Tokenizer and template are the adapter's where it has a tokenizer. The same adapter on the same base is merged once.
    Raises MissingInput when the two do not fit or the adapter is no language model's, DiskFull.
    """
    config = _config(folder)
    if missing := missing_parts(folder):
        raise MissingInput(f"The adapter {folder} lacks {', '.join(missing)}; copy it again.")
    if missing := ["weights: it is an adapter itself"] if is_adapter(base) else missing_parts(base):
        raise MissingInput(f"The adapter's base model {base} lacks {', '.join(missing)}; give a whole checkpoint.")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise MissingInput(
            f"The adapter {folder} is of a {config['task_type']} model; merge it where it was trained (model.merge_and_unload())."
        )
    own = {path.name: file_sha256(path) for path in copied(folder)} | {name: file_sha256(folder / name) for name in ADAPTER}
    # Hashing the base would take as long as merging: a file that has its name, size and time is the same.
    stated = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(base.iterdir()) if path.is_file()}
    made = paths.home() / "models" / f"{folder.name}-{digest([own, str(base.resolve()), stated])[:16]}"
    if made.is_dir():
        return made
    require_free_space(made, sum(path.stat().st_size for path in base.glob("*.safetensors")), f"{folder.name} with its base")
    partial = made.with_name(f"{made.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _run(folder, base, partial)
        try:
            partial.rename(made)
        except OSError:
            if not made.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def local_model(name: str, revision: str | None = None) -> Path | None:
    """The directory of a model that is on this machine, by its path or by its hub id from the hub's cache; else None."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache; no hub id
        return None
    return None if missing_parts(folder) else folder


def _run(folder: Path, base: Path, into: Path) -> None:
    found = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{found}" if found else str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    for variable in RANKS:
        environment.pop(variable, None)
    command = [sys.executable, "-m", "train.merging", str(folder), str(base), str(into)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingInput(f"The adapter {folder} cannot be merged into {base} ({last}); is it this model's adapter?")


def merge(folder: Path, base: Path, into: Path) -> None:
    """Write the merged checkpoint into the empty directory `into`. Raises what transformers and peft raise."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), folder)
    model.merge_and_unload(safe_merge=True).save_pretrained(into)
    source = folder if any((folder / name).is_file() for name in TOKENIZERS) else base
    for path in copied(source):
        if not (into / path.name).exists() and path.name not in (ADAPTER[0], INDEX):
            shutil.copyfile(path, into / path.name)


def _config(folder: Path) -> dict[str, Any]:
    if not is_adapter(folder):
        raise MissingInput(f"{folder} holds no adapter; give a directory with {' and '.join(ADAPTER)}.")
    try:
        return json.loads((folder / ADAPTER[0]).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingInput(f"{folder}/{ADAPTER[0]} is not JSON ({error}); save the adapter again.") from error


if __name__ == "__main__":
    merge(*map(Path, sys.argv[1:]))
