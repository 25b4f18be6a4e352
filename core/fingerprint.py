"""A checkpoint is its weights: identities are hashes of bytes, never paths or names."""

import hashlib
import json
from pathlib import Path
from typing import Any

from core.errors import MissingInput

# What changes a model's answers: weights, architecture, tokenizer, chat template. Of `generation_config.json` only the tokens
# that end an answer: every engine here is given its sampling settings explicitly.
_CHECKPOINT_NAMES = {
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
}
_WEIGHT_SUFFIXES = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-serialisable value in canonical form: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Files of strangers hold lone surrogates, which UTF-8 proper refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, streamed."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tree_sha256(files: dict[str, str]) -> str:
    """Identity of a set of files: `{relative name: sha256}` hashed in name order."""
    return digest(sorted(files.items()))


def checkpoint_fingerprint(folder: Path) -> str:
    """Identity of a checkpoint directory: hash of its weight, config, tokenizer and chat-template files.

    The `eos_token_id` of its generation_config.json count where they name a token that config.json does not (`train.chat`
    stops at both). Raises MissingInput when the directory holds no config.json or no weights, or one of the two is no JSON.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingInput(f"{folder} is not a checkpoint: it has no config.json; give a directory saved by save_pretrained.")
    names = [p for p in sorted(folder.iterdir()) if p.is_file() and (p.name in _CHECKPOINT_NAMES or p.suffix in _WEIGHT_SUFFIXES)]
    if not any(p.suffix in _WEIGHT_SUFFIXES for p in names):
        raise MissingInput(f"{folder} holds no weights; give a directory with *.safetensors files.")
    files = {p.name: file_sha256(p) for p in names}
    ends = eos_token_ids(folder / "generation_config.json")
    if set(ends) - set(eos_token_ids(folder / "config.json")):
        files["generation_config.json/eos_token_id"] = digest(ends)
    return tree_sha256(files)


def eos_token_ids(file: Path) -> list[int]:
    """The ids under `eos_token_id` of a config.json or generation_config.json, sorted; none where there is no such file.

    Raises MissingInput for a file that is no JSON object.
    """
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise MissingInput(f"{file} is not a JSON object ({error}); save or download the checkpoint again.") from error
    return sorted({found} if isinstance(found, int) else set(found or ()))


def chat_template(folder: Path) -> str | None:
    """The text of a checkpoint's chat template as transformers finds it, the default one of several; None where there is none.

    A chat_template.json is of processors and does not count. Raises MissingInput for a tokenizer_config.json that is no JSON.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise MissingInput(f"{file} is not a JSON object ({error}); save or download the checkpoint again.") from error
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if found and isinstance(found, str) else None
