"""`harness watch`: checkpoints that something else writes into a folder, registered and evaluated as they become whole.

Guarantee: no half-written checkpoint is evaluated, each content once. A checkpoint that is rewritten is a new one; a
watch that was stopped goes on where it was, since every evaluation resumes by what the registry holds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core import paths
from core.errors import HarnessError, HashMismatch, MissingInput
from core.fingerprint import checkpoint_fingerprint
from db import Registry
from db.leaderboard import cells
from db.models import AnswerSet, Checkpoint
from harness.checkpoint_folder import checkpoint_folder
from harness.lock import run_lock
from harness.plan import Ref
from train.foreign import close_run, missing_parts, open_run, register, register_base, step_of

Signature = tuple[tuple[str, int, int], ...]
_UNFINISHED = (".tmp", ".part", ".partial", ".incomplete", ".lock")
_SIGNS = ("config.json", "adapter_config.json", "trainer_state.json")


@dataclass(frozen=True)
class Look:
    """What one look at a folder found."""

    folder: Path
    step: int | None
    signature: Signature
    """Name, size and time of every file: another one is another content."""
    missing: tuple[str, ...]
    """Why it is not evaluated yet; empty for a whole checkpoint that nobody writes to."""


@dataclass
class Watch:
    """Looks at a folder again and again. `tell(event, **fields)` hears of everything."""

    folder: Path
    registry: Registry
    name: str
    """Of the run that the checkpoints belong to."""
    evaluate: Callable[[Ref, str], str] | None
    """(checkpoint, its name) -> name of the run that evaluated it; None only registers."""
    tell: Callable[..., None]
    base: Path | None = None
    """What the training started from, and what adapters are merged into."""
    settle: float = 10.0
    """Seconds for which no file may have changed."""
    failed: int = 0
    done: dict[Path, Signature] = field(default_factory=dict)
    _told: dict[Path, tuple[str, ...]] = field(default_factory=dict)

    def run(self, once: bool, interval: float) -> None:
        """Evaluate what is whole, in the order of the steps; without `once`, look again every `interval` seconds.

        Raises MissingInput for a folder that is not there, RunInUse where another watch has this name.
        """
        if not self.folder.is_dir():
            raise MissingInput(f"There is no folder {self.folder} to watch; give the one that the training saves into.")
        with run_lock(paths.runs() / self.name, self.name):
            run = open_run(self.registry, self.name, {"watched": self.folder.name, "base": self.base and self.base.name})
            parent = register_base(self.registry, run, self.base) if self.base else None
            try:
                while True:
                    # One at a time: while it is evaluated, others become whole.
                    while look := next(self._ready(), None):
                        self._take(look, run, parent)
                    if once:
                        break
                    time.sleep(interval)
            except BaseException:
                close_run(self.registry, run, "stopped")
                self.tell("stopped", checkpoint=str(self.folder), step=None)
                raise
            close_run(self.registry, run, "done")

    def _ready(self) -> Iterator[Look]:
        for look in looks(self.folder, self.settle, time.time()):
            if look.missing:
                if self._told.get(look.folder) != look.missing:
                    self._told[look.folder] = look.missing
                    self.tell("waiting", checkpoint=str(look.folder), step=look.step, missing=list(look.missing))
            elif self.done.get(look.folder) != look.signature:
                yield look

    def _take(self, look: Look, run: int, parent: str | None) -> None:
        """Register and evaluate one checkpoint. What is wrong with it is told, and does not end the watch."""
        self.done[look.folder] = look.signature
        label = f"step-{look.step}" if look.step is not None else look.folder.name
        name = f"{self.name}/{label}"
        try:
            folder = checkpoint_folder(str(look.folder), base=self.base)
            fingerprint = checkpoint_fingerprint(folder)
            if not _still(look):
                raise HashMismatch("it was rewritten while it was read; it is taken again once it is whole")
            told = {"program": "watched", "run": self.name}
            register(self.registry, run, (folder, fingerprint), name, look.step, parent, told)
            self.tell("registered", checkpoint=str(folder), step=look.step, name=name, fingerprint=fingerprint)
            if self.evaluate:
                self.evaluate(Ref(path=str(folder), fingerprint=fingerprint), name)
                scores = headlines(self.registry, fingerprint)
                self.tell("evaluated", checkpoint=str(folder), step=look.step, fingerprint=fingerprint, scores=scores)
        except HarnessError as error:
            self.failed += 1
            self.tell("failed", checkpoint=str(look.folder), step=look.step, error=str(error))
        except FileNotFoundError as error:
            if _still(look):
                raise
            self.failed += 1
            gone = f"it was removed while it was read ({error.filename}); let the trainer keep more checkpoints"
            self.tell("failed", checkpoint=str(look.folder), step=look.step, error=gone)


def looks(folder: Path, settle: float, at: float) -> list[Look]:
    """Every checkpoint of a folder (its subfolders, and itself), by step, those without one last. `at`: seconds since 1970."""
    found = []
    for path in [*(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), folder]:
        try:
            signature = _signature(path)
            names = {name for name, *_ in signature}
            sharded = path != folder and any(path.glob("global_step*"))
            if names.intersection(_SIGNS) or sharded or any(name.endswith(".safetensors") for name in names):
                step = None if path == folder else step_of(path)
                found.append(Look(path.resolve(), step, signature, _missing(path, signature, settle, at)))
        except FileNotFoundError:  # rotated away while it was looked at
            if path == folder:
                raise
    return sorted(found, key=lambda look: (look.step is None, look.step or 0, look.folder == folder.resolve(), look.folder.name))


def headlines(registry: Registry, fingerprint: str) -> dict[str, Any]:
    """benchmark -> {"value", "low", "high", "n", "metric"} of a checkpoint's headline scores."""
    with registry.read() as session:
        at = select(Checkpoint.id).where(Checkpoint.fingerprint == fingerprint).scalar_subquery()
        found = [cell for cell in cells(session, AnswerSet.checkpoint_id == at) if cell.headline]
    return {cell.benchmark: {key: getattr(cell, key) for key in ("metric", "value", "low", "high", "n")} for cell in found}


def _still(look: Look) -> bool:
    """Whether the folder holds what it held at that look: it does not while the trainer rotates or rewrites it."""
    try:
        return _signature(look.folder) == look.signature
    except FileNotFoundError:
        return False


def _missing(path: Path, signature: Signature, settle: float, at: float) -> tuple[str, ...]:
    unfinished = [
        name for name, *_ in signature if name.endswith(_UNFINISHED) or ".safetensors." in name and name.startswith(".")
    ]
    if unfinished:
        return (f"the rest of {unfinished[0]}",)
    missing = missing_parts(path)
    if missing:
        return tuple(missing)
    newest = max(changed for *_, changed in signature) / 1e9
    # A file of the future is on another machine's clock: it says nothing about when it was written.
    return () if newest > at or at - newest >= settle else (f"{settle:g} s without a change",)


def _signature(path: Path) -> Signature:
    files = []
    for entry in path.iterdir():
        try:
            stat = entry.stat()
        except FileNotFoundError:  # deleted between the two calls: rotated away
            continue
        if entry.is_file():
            files.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(files))
