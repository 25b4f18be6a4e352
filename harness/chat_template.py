"""A chat template for a model that has none, or instead of its own (`chat_template` of a recipe's models).

A checkpoint is its weights and its template, so the two are put into one directory before anything is planned: links to the
model's files, the template, and nothing of the old one. Its fingerprint is what every stage is keyed by, and whatever is
trained from it is saved with the template.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from core import paths
from core.artifacts import write_durably
from core.errors import MissingInput, RecipeError
from core.fingerprint import digest, eos_token_ids
from harness.catalogue import nearest
from harness.safety import refuse_unsafe_template

SHIPPED = Path(__file__).resolve().parent.parent / "train" / "chat_templates"
"""llama-3: Meta's published format (BOS once, trimmed contents); chatml: OpenAI's, without BOS and default system text."""

TEMPLATE, TOKENIZER, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
_OLD = {TEMPLATE, "chat_template.json"}


def template_text(name: str) -> str:
    """The template that a recipe names: a shipped one, or a .jinja file. Raises MissingInput, UnsafeCheckpoint."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.jinja"))}
    path = shipped.get(name) or Path(name).expanduser()
    if not path.is_file():
        raise MissingInput(
            f"There is no chat template {name!r}{nearest(name, shipped)}; use {', '.join(shipped)} or the path of a .jinja file."
        )
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise MissingInput(f"The chat template {path} is empty; correct the file.")
    refuse_unsafe_template(path, text)
    return text


def with_template(folder: Path, name: str) -> Path:
    """A checkpoint directory under HARNESS_HOME/models with the files of `folder` and the template `name`; made once.

    Where the template ends a turn with a token at which the model does not stop (a Llama-3 base has <|end_of_text|>), its
    generation config gets that token: trained checkpoints then stop there in every engine.
    Raises as `template_text`, RecipeError where the tokenizer does not have the template's turn end as a special token.
    """
    text = template_text(name)
    links = {path.name: str(path.resolve()) for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _OLD}
    written = {TEMPLATE: text}
    tokenizer = _read(folder / TOKENIZER)
    if tokenizer.pop("chat_template", None):
        written[TOKENIZER] = json.dumps(tokenizer, indent=2, ensure_ascii=False)
    # The hub's cache names files by their content; a local file may change under its name.
    stated = {target: (os.stat(target).st_size, os.stat(target).st_mtime_ns) for target in links.values()}
    made = paths.home() / "models" / f"{folder.name}-{digest([links, stated, written])[:16]}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = made.with_name(f"{made.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for file, target in links.items():
            if file not in written:
                (partial / file).symlink_to(target)
        for file, content in written.items():
            write_durably(partial / file, content)
        _stop_at_turn_end(partial, name)
        try:
            partial.rename(made)
        except OSError:
            if not made.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _stop_at_turn_end(folder: Path, name: str) -> None:
    """Write the template's turn end into generation_config.json unless the model stops at it already. Raises RecipeError."""
    from train.chat import load_tokenizer, template_turn_end, turn_end_ids

    tokenizer = load_tokenizer(folder)
    end = template_turn_end(tokenizer)
    if end is None:
        raise RecipeError(
            f"The chat template {name} ends a turn with no special token of this model's tokenizer, so that answers would never "
            "stop; choose a template whose tokens the tokenizer has."
        )
    if end in {*eos_token_ids(folder / "config.json"), *eos_token_ids(folder / GENERATION)}:
        return
    config = _read(folder / GENERATION) | {"eos_token_id": turn_end_ids(tokenizer, folder)}
    write_durably(folder / GENERATION, json.dumps(config, indent=2))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
