"""The catalogue: every data set the harness knows, typed. `harness/catalogue.yaml` explains each field.

A user's own `HARNESS_HOME/catalogue.yaml` adds sets in the same form; it cannot redefine ours, whose hashes are the
reason to trust them.
"""

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core import paths
from core.errors import MissingInput, RecipeError
from harness.transforms import TRANSFORMS

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PACKAGE = Path(__file__).parent


def _stays_inside(path: str) -> str:
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leaves its folder; give a relative path")
    return path


RelativePath = Annotated[str, AfterValidator(_stays_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Upstream(_Part):
    """One public file."""

    url: str = Field(pattern=r"^https?://")
    sha256: Sha256
    """Of the bytes as they arrive."""
    transform: str | None = None

    @field_validator("transform")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in TRANSFORMS:
            raise ValueError(f"transform {value!r} is not known; use one of {', '.join(TRANSFORMS)}")
        return value


class StandIn(_Part):
    """A reconstruction of a file that cannot be redistributed."""

    path: RelativePath
    sha256: Sha256


class File(_Part):
    path: RelativePath
    sha256: Sha256
    """Of the content: decompressed where the path ends in .gz."""
    asset: str | None = None
    """What a benchmark calls this file."""
    optional: bool = False
    upstream: Upstream | None = None
    stand_in: StandIn | None = None


class Hub(_Part):
    """A data set of the Hugging Face hub: trust on first use."""

    id: str
    revision: str | None
    """A commit; None takes the head of main at the first fetch."""
    files: str
    """Pattern of the names of its files."""


class Entry(_Part):
    name: str
    kind: Literal["preferences", "prompts", "sft", "questions"]
    licence: str
    source: str
    note: str = ""
    reader: str | None = None
    """Name in `train.readers.READERS`; all kinds but questions."""
    benchmark: str | None = None
    variant: str | None = None
    """Questions only: the benchmark and which of its data variants this is."""
    packaged: bool = False
    files: tuple[File, ...] = ()
    hub: Hub | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Entry":
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.kind == "questions" and not (self.benchmark and self.variant and all(f.asset for f in self.files)):
            raise ValueError("questions need benchmark, variant and an asset name for each file")
        if self.kind != "questions" and not self.reader:
            raise ValueError(f"{self.kind} need a reader")
        return self


def load_catalogue() -> dict[str, Entry]:
    """All entries by name: the shipped ones, then the user's own. Raises RecipeError for a catalogue that does not validate."""
    entries = dict(_read(PACKAGE / "catalogue.yaml"))
    own = paths.home() / "catalogue.yaml"
    if own.is_file():
        added = _read(own)
        repeated = sorted(entries.keys() & added.keys())
        if repeated:
            raise RecipeError(f"{own} redefines {', '.join(repeated)}; give your sets names of their own.")
        entries |= added
    return entries


def get_entry(name: str) -> Entry:
    """The entry of that name; raises MissingInput with the nearest known one."""
    entries = load_catalogue()
    if name not in entries:
        raise MissingInput(
            f"No data set {name!r}{nearest(name, entries)}; `harness data list` names all of them, and the path of a .jsonl "
            "or .parquet file is taken too."
        )
    return entries[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` when something is near, else nothing."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _read(path: Path) -> dict[str, Entry]:
    stat = path.stat()
    return _parse(path, stat.st_size, stat.st_mtime_ns)


@cache
def _parse(path: Path, size: int, mtime_ns: int) -> dict[str, Entry]:
    """Size and time are in the signature so that an edited file is read again."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        return {name: Entry.model_validate(fields | {"name": name}) for name, fields in content.items()}
    except (yaml.YAMLError, ValidationError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"{path} is not a catalogue: {' '.join(str(error).split())}. Correct it as harness/catalogue.yaml shows."
        ) from error
