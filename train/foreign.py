"""Checkpoints that other programs write: whether they are whole, and how they come into the registry.

A checkpoint is registered under the fingerprint of its files, so the same weights are one row whatever they are called
and whoever found them first.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.errors import RegistryError
from core.fingerprint import chat_template, checkpoint_fingerprint, digest
from core.stage import environment, require_free_space
from db import Registry, insert_ignore, models, upsert
from db.models import now

REGISTERED = "registered"
"""`recipe_name` of a run that no recipe made: a training elsewhere whose checkpoints are registered here."""
INDEX = "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""peft's files of an adapter; a whole checkpoint may have the first one too."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_COPIED = (".json", ".jinja", ".model", ".txt")
_OF_TRAINING = {"trainer_state.json", "training_args.json", "harness.json", "manifest.json"}
_STEP = re.compile(r"(\d+)$")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft's without the model that it belongs to."""
    return (folder / ADAPTER[0]).is_file() and not (folder / "config.json").is_file()


def missing_parts(folder: Path) -> list[str]:
    """What keeps a folder from being a whole checkpoint, in words; empty for a whole one, and for a whole adapter.

    Whole: configuration, tokenizer, and every safetensors file that the index names with as many bytes as its header
    says (https://github.com/huggingface/safetensors#format: 8 bytes of header length, the header, the data). The tokenizer
    of an adapter may be its base model's.
    """
    if is_adapter(folder):
        return _cut(folder, ADAPTER[1:]) if _json(folder / ADAPTER[0]) is not None else [f"{ADAPTER[0]} (it is not whole)"]
    missing = [] if _json(folder / "config.json") is not None else ["config.json"]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append("a tokenizer")
    shards = ["model.safetensors"]
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        if index is None or not isinstance(index.get("weight_map"), dict):
            return [*missing, f"{INDEX} (it is not whole)"]
        shards = sorted(set(index["weight_map"].values()))
    missing += _cut(folder, shards)
    if missing and any(folder.glob("global_step*")):
        missing.append("gathered weights: this holds DeepSpeed's shards, which its zero_to_fp32.py puts together")
    return missing


def _cut(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some safetensors files that are not there, or not in full."""
    missing = []
    for name in names:
        expected = safetensors_size(folder / name)
        if not (folder / name).is_file():
            missing.append(name)
        elif expected is None or (folder / name).stat().st_size != expected:
            missing.append(f"{name} (it is not whole)")
    return missing


def safetensors_size(path: Path) -> int | None:
    """Bytes that a safetensors file must have by its own header; None for one whose header is not whole."""
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                return None
            header = json.loads(handle.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def step_of(folder: Path) -> int | None:
    """The training step in a folder's name (`checkpoint-500`, `step_500`, `iter500`), or None."""
    found = _STEP.search(folder.name)
    return int(found.group(1)) if found else None


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Put weights (hard links where the disk allows), configuration, tokenizer and template of a checkpoint into `folder`."""
    weights = sorted(source.glob("*.safetensors"))
    if not all(_link(path, folder / path.name) for path in weights):
        require_free_space(folder, sum(path.stat().st_size for path in weights), "The copy")
        for path in weights:
            (folder / path.name).unlink(missing_ok=True)
            shutil.copyfile(path, folder / path.name)
    for path in copied(source):
        shutil.copyfile(path, folder / path.name)


def copied(source: Path) -> list[Path]:
    """The files of a checkpoint beside its weights: configuration, tokenizer and template, not what belongs to its training."""
    return [p for p in sorted(source.iterdir()) if p.is_file() and p.suffix in _COPIED and p.name not in _OF_TRAINING]


def open_run(registry: Registry, name: str, description: dict[str, Any]) -> int:
    """The run that a foreign training's checkpoints belong to; returns its id. Raises RegistryError for a recipe's run."""
    with registry.write() as session:
        row = session.scalar(select(models.Run).where(models.Run.name == name))
        if row is not None and row.recipe_name != REGISTERED:
            raise RegistryError(f"The run {name!r} is one of the recipe {row.recipe_name}; give this training another name.")
        values = {"recipe_name": REGISTERED, "recipe": description, "recipe_hash": digest(description), "status": "running"}
        values |= {"pid": os.getpid(), "host": platform.node(), "heartbeat_at": now(), "error": None, "finished_at": None}
        return upsert(session, models.Run, {"name": name}, values | {"environment": environment()}).id


def close_run(registry: Registry, run_id: int, status: str) -> None:
    """Say how the training ended: done or stopped."""
    with registry.write() as session:
        run = session.get_one(models.Run, run_id)
        run.status, run.finished_at, run.pid = status, now(), None


def register_base(registry: Registry, run_id: int, folder: Path) -> str:
    """Register what a training started from; returns its fingerprint. Raises MissingInput when it is no checkpoint."""
    fingerprint = checkpoint_fingerprint(folder)
    _register(registry, run_id, fingerprint, folder.name, "base", folder, None, {"name": folder.name}, ("base", 0))
    return fingerprint


def register(
    registry: Registry,
    run_id: int,
    checkpoint: tuple[Path, str],
    name: str,
    step: int | None,
    parent: str | None,
    provenance: dict[str, Any],
) -> None:
    """Register a whole checkpoint as step `step` of a run. One without a step plays a part of its own.

    `checkpoint`: (folder, `checkpoint_fingerprint` of it); `parent`: fingerprint of what the training started from. Weights
    that are known already keep their first row.
    """
    folder, fingerprint = checkpoint
    told = provenance | {"name": name, "step": step}
    part = (folder.name[:30], 0) if step is None else ("policy", step)
    _register(registry, run_id, fingerprint, name, "third_party", folder, parent, told, part)


def templated(folder: Path) -> dict[str, str]:
    """{"chat_template": its text} of a checkpoint's provenance, so that its card shows what its prompts were rendered by."""
    template = chat_template(folder)
    return {"chat_template": template} if template else {}


def _register(
    registry: Registry,
    run_id: int,
    fingerprint: str,
    name: str,
    kind: str,
    folder: Path,
    parent: str | None,
    provenance: dict[str, Any],
    part: tuple[str, int],
) -> None:
    with registry.write() as session:
        above = session.scalar(select(models.Checkpoint.id).where(models.Checkpoint.fingerprint == parent)) if parent else None
        values = {"name": name, "kind": kind, "source": "imported", "path": str(folder), "run_id": run_id, "parent_id": above}
        row = values | {"fingerprint": fingerprint, "provenance": provenance | templated(folder)}
        insert_ignore(session, models.Checkpoint, [row], ["fingerprint"])
        known = session.scalars(select(models.Checkpoint).where(models.Checkpoint.fingerprint == fingerprint)).one()
        if not known.path or not Path(known.path).exists():  # these weights have moved
            known.path = str(folder)
        role, iteration = part
        upsert(
            session, models.RunCheckpoint, {"run_id": run_id, "role": role, "iteration": iteration}, {"checkpoint_id": known.id}
        )


def _link(path: Path, target: Path) -> bool:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one that has no hard links
        return False
    return True


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
