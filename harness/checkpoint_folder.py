"""Where the files of a checkpoint are that somebody names: a directory, a hub id, or an adapter in one of the two."""

import re
from pathlib import Path

from core.errors import MissingInput
from harness.hub_model import download_model
from harness.safety import refuse_code, safe_checkpoint
from train.foreign import is_adapter
from train.merging import base_of, merged_adapter

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def checkpoint_folder(source: str, revision: str | None = None, base: Path | None = None) -> Path:
    """The directory of a checkpoint, checked; that of an adapter (peft's format) is merged into its base model first.

    `base`: of an adapter, instead of the model that it names. Raises MissingInput, UnsafeCheckpoint, DiskFull.
    """
    folder = _located(source, revision)
    if not is_adapter(folder):
        return safe_checkpoint(folder)
    refuse_code(folder)
    below = base or _located(*base_of(folder))
    if is_adapter(below):
        raise MissingInput(f"The adapter {source} was trained on another adapter ({below}); merge that one into its base first.")
    return merged_adapter(folder, safe_checkpoint(below))


def _located(source: str, revision: str | None) -> Path:
    folder = Path(source).expanduser()
    if source.startswith("package:"):
        raise MissingInput(
            f"{source} must be converted first; give a directory or a hub id, or run a recipe with this base model "
            "(`harness train-and-eval quickstart`), which evaluates it as `base`."
        )
    if folder.is_dir():
        return folder.resolve()
    if HUB_ID.match(source):
        return download_model(source, revision)
    raise MissingInput(f"There is no checkpoint {source}: it is neither a directory here nor a hub id like org/model.")
