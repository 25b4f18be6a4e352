"""What a checkpoint may not bring: code. Checked on the files themselves, before any library opens them.

Refused: pickled weights without safetensors beside them (unpickling runs code), `auto_map` in any configuration (it
names Python to import), Python files, and chat templates that reach for Python's internals.
"""

import json
import re
from pathlib import Path
from typing import Any

from core.errors import MissingInput, UnsafeCheckpoint

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_DUNDER = re.compile(r"__\w+__")


def safe_checkpoint(folder: Path) -> Path:
    """The folder, once it is known to be a checkpoint that runs no code when loaded.

    Raises MissingInput when it is no checkpoint, UnsafeCheckpoint when it could run code.
    """
    if not (folder / "config.json").is_file():
        raise MissingInput(f"{folder} is not a checkpoint: it has no config.json; give a directory saved by save_pretrained.")
    refuse_code(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise UnsafeCheckpoint(
                f"{folder} holds pickled weights ({', '.join(pickles[:3])}), which can run code when loaded; convert it where "
                "you trust it: model.save_pretrained(folder) of a current transformers writes safetensors."
            )
        raise MissingInput(f"{folder} holds no weights; give a directory with *.safetensors files.")
    index = folder / "model.safetensors.index.json"
    shards = set(_read_json(index)["weight_map"].values()) if index.is_file() else set()
    absent = sorted(shard for shard in shards if not (folder / shard).is_file())
    if absent:
        raise MissingInput(f"{folder} lacks {len(absent)} of its {len(shards)} weight files ({absent[0]}); copy it again.")
    return folder


def refuse_code(folder: Path) -> None:
    """Raise UnsafeCheckpoint for Python files, `auto_map`, or a chat template that uses double-underscore names."""
    python = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
    if python:
        raise UnsafeCheckpoint(
            f"{folder} holds Python files ({', '.join(python[:3])}), and code of a checkpoint is never run here; remove them if "
            "the architecture is one that transformers has."
        )
    for path in sorted(folder.glob("*config*.json")):
        if "auto_map" in _keys(_read_json(path)):
            raise UnsafeCheckpoint(
                f"{path} has an auto_map, which makes loading import the checkpoint's own Python; remove that key if the "
                "architecture is one that transformers has."
            )
    for path, template in _chat_templates(folder):
        refuse_unsafe_template(path, template)


def refuse_unsafe_template(path: Path, template: str) -> None:
    """Raise UnsafeCheckpoint for a chat template that uses double-underscore names."""
    if found := _DUNDER.search(template):
        raise UnsafeCheckpoint(
            f"The chat template in {path} uses {found.group()}, which reaches into Python; replace the template by the model "
            "family's own."
        )


def _chat_templates(folder: Path) -> list[tuple[Path, str]]:
    """(file, template) of every place where transformers looks for chat templates."""
    found = [(path, path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.jinja"))]
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        path = folder / name
        template = _read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, str):
            found.append((path, template))
        elif isinstance(template, list):
            found += [(path, item["template"]) for item in template]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MissingInput(f"{path} is not JSON ({error}); save or download the checkpoint again.") from error


def _keys(value: Any) -> set[str]:
    """All keys at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(_keys, value.values()))
    return set().union(*map(_keys, value)) if isinstance(value, list) else set()
