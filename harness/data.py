"""Data on this machine: find it, verify it, fetch it.

A file is looked for in the package (the starter set), in the mirror that HARNESS_DATA names, then in HARNESS_HOME/data.
Wherever it is found its content is hashed before anyone reads it: a path is never trusted, and a file that differs is
an error, not a reason to look further.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.errors import HashMismatch, MissingInput, RecipeError
from harness.catalogue import PACKAGE, Entry, File, get_entry, load_catalogue
from harness.download import download
from harness.hub_data import locked_files, pin

Row = dict[str, Any]
LOCAL = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Endings of local files that can be a data source."""
_CHUNK = 1 << 20
_hashes: dict[tuple[Path, int, int], str] = {}


@dataclass(frozen=True)
class Located:
    """A verified file."""

    path: Path
    sha256: str
    """Of the content: decompressed where the path ends in .gz."""
    stand_in: bool = False
    """A reconstruction, used where the file itself is not here."""


def content_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content, decompressed if its name ends in .gz; remembered by size and time while we run.

    Raises HashMismatch for a .gz file that cannot be decompressed.
    """
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
                while chunk := handle.read(_CHUNK):
                    digest.update(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise HashMismatch(f"{path} is not a whole gzip file ({error}); delete it and fetch or copy it again.") from error
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def locate(name: str) -> list[Located]:
    """The verified files of a data set, or of a local file of rows given by its path.

    Raises MissingInput for what is not here, HashMismatch for what differs.
    """
    if is_local_rows(name):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise MissingInput(f"There is no file {path}; correct the path in the recipe's data sources.")
        return [Located(path, content_sha256(path))]
    return [located for _, located in _require(get_entry(name))]


def is_local_rows(name: str) -> bool:
    """Whether a source's name is the path of a file of rows (`train.standard_rows`) rather than a catalogue name."""
    return name.endswith(LOCAL)


def local_source(name: str) -> tuple[str, str]:
    """(name without folder and ending, reader) of a local file."""
    suffix = next(suffix for suffix in LOCAL if name.endswith(suffix))
    return Path(name).name.removesuffix(suffix), "parquet" if suffix == ".parquet" else "jsonl"


def benchmark_files(name: str, variant: str) -> dict[str, Located]:
    """{asset: verified file} of a benchmark's data variant, the questions first; optional files only where they are here.

    Raises RecipeError when the catalogue knows no such variant, MissingInput or HashMismatch as `locate`.
    """
    known = {(e.benchmark, e.variant): e for e in load_catalogue().values() if e.kind == "questions"}
    entry = known.get((name, variant))
    if entry is None:
        variants = [v for n, v in known if n == name]
        fix = f"set variant to {' or '.join(variants)}" if variants else f"it has {', '.join(sorted({n for n, _ in known}))}"
        raise RecipeError(f"The catalogue holds no {variant} data of benchmark {name!r}; {fix}.")
    return {file.asset: located for file, located in _require(entry)}


def official_benchmarks() -> list[str]:
    """Benchmarks of which the catalogue knows the official questions, here or not."""
    return [e.benchmark for e in load_catalogue().values() if e.kind == "questions" and e.variant == "official"]


def fetch(names: Sequence[str], progress: Callable[[str], None]) -> None:
    """Download what is not here into HARNESS_HOME/data, verified before it gets its name; `progress` gets a line per file.

    Raises MissingInput when a file cannot be had by a download, HashMismatch when it differs (and deletes it).
    """
    for entry in [get_entry(name) for name in names]:
        if entry.packaged:
            progress(f"{entry.name}: ships with the harness")
        elif entry.hub and not locked_files(entry):
            pin(entry, progress)
        else:
            for file in files_of(entry):
                _fetch_file(entry, file, progress)


def _fetch_file(entry: Entry, file: File, progress: Callable[[str], None]) -> None:
    target = paths.data_cache() / file.path
    if target.is_file() and _state(target, file.sha256) == "differs":
        progress(f"{entry.name}: {target} differs from the catalogue and is replaced")
        target.unlink()
    found = _find(entry, file)
    if found and not found.stand_in:
        progress(f"{entry.name}: {file.path} is here and verified")
        return
    if file.upstream is None:
        raise MissingInput(_how_to_get(entry, [file.path]))
    progress(f"{entry.name}: {file.path} <- {file.upstream.url}")
    try:
        download(file.upstream.url, target, file.upstream.sha256, file.upstream.transform, file.sha256)
    except MissingInput as error:
        if not file.optional:
            raise
        progress(f"{entry.name}: {file.path} is optional and stays missing. {error}")


def verify(names: Sequence[str] = ()) -> list[Row]:
    """{"name", "file", "state": "ok" | "differs" | "missing"} of every file of the named sets; of all that are here if none."""
    entries = [get_entry(name) for name in names] or list(load_catalogue().values())
    rows = []
    for entry in entries:
        for file in files_of(entry):
            states = [(path, _state(path, sha)) for _, path, sha, _ in _places(entry, file) if path.is_file()]
            rows += [{"name": entry.name, "file": str(path), "state": state} for path, state in states]
            if names and not states:
                rows.append({"name": entry.name, "file": file.path, "state": "missing"})
        if names and not files_of(entry):
            rows.append({"name": entry.name, "file": entry.hub.id, "state": "missing"})
    return rows


def status() -> list[Row]:
    """One row per data set: name, kind, licence, source, note, where it was found (package, mirror, cache, missing), bytes.

    Looks at names only; `verify` reads the bytes.
    """
    rows = []
    for entry in load_catalogue().values():
        present = [next(((label, p) for label, p, _, _ in _places(entry, f) if p.is_file()), None) for f in files_of(entry)]
        absent = [f for f, p in zip(files_of(entry), present, strict=True) if p is None and not f.optional]
        labels = list(dict.fromkeys(label for label, _ in filter(None, present)))
        size = sum(path.stat().st_size for _, path in filter(None, present))
        found = "missing" if absent or not labels else ", ".join(labels)
        fields = {"name": entry.name, "kind": entry.kind, "licence": entry.licence, "source": entry.source, "note": entry.note}
        rows.append(fields | {"found": found, "size": None if found == "missing" else size})
    return rows


def files_of(entry: Entry) -> tuple[File, ...]:
    """The files of an entry; of a hub data set, those that its first fetch recorded (none before)."""
    return entry.files or locked_files(entry)


def _places(entry: Entry, file: File) -> Iterator[tuple[str, Path, str, bool]]:
    """(label, path, expected sha256, is a stand-in) of everywhere a file may be, in the order of preference."""
    if entry.packaged:
        yield "package", PACKAGE / file.path, file.sha256, False
        return
    roots = [("mirror", paths.data_mirror()), ("cache", paths.data_cache())]
    for stand_in, wanted in ((False, file), (True, file.stand_in)):
        for label, root in roots:
            if root and wanted:
                yield label, root / wanted.path, wanted.sha256, stand_in


def _find(entry: Entry, file: File) -> Located | None:
    """The verified file, or None where it is nowhere. Raises HashMismatch for the first one that differs."""
    for label, path, expected, stand_in in _places(entry, file):
        if path.is_file():
            found = content_sha256(path)
            if found != expected:
                raise HashMismatch(_differs(entry, path, label, expected, found))
            return Located(path, found, stand_in)
    return None


def _require(entry: Entry) -> list[tuple[File, Located]]:
    """The verified files of an entry, optional ones where they are here. Raises MissingInput or HashMismatch."""
    files = files_of(entry)
    found = [(file, _find(entry, file)) for file in files]
    missing = [file.path for file, located in found if located is None and not file.optional]
    if missing or not files:
        raise MissingInput(_how_to_get(entry, missing))
    return [(file, located) for file, located in found if located]


def _state(path: Path, expected: str) -> str:
    try:
        return "ok" if content_sha256(path) == expected else "differs"
    except HashMismatch:
        return "differs"


def _differs(entry: Entry, path: Path, label: str, expected: str, found: str) -> str:
    fixes = {
        "package": "reinstall the harness",
        "mirror": "put the right file there, or unset HARNESS_DATA and run `harness data fetch " + entry.name + "`",
        "cache": f"run `harness data fetch {entry.name}` to replace it",
    }
    return f"{path} is not what the catalogue says of {entry.name}: its sha256 is {found}, expected {expected}; {fixes[label]}."


def _how_to_get(entry: Entry, missing: list[str]) -> str:
    what = f"The data set {entry.name} is not here" + (f" ({', '.join(missing)})" if missing else "")
    if entry.packaged:
        return f"{what}, though it ships with the harness; reinstall it."
    if entry.hub is None and all(f.upstream is None for f in entry.files if f.path in missing):
        return (
            f"{what} and no single download gives it: {entry.note or entry.source}. Set HARNESS_DATA to a mirror that holds it."
        )
    other = f"copy {paths.data_cache()} from a machine that has it" if entry.hub else "set HARNESS_DATA to a mirror"
    return f"{what}: run `harness data fetch {entry.name}`, or {other}."
