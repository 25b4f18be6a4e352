"""Who works on an unfinished artifact, and what it is made from.

Guarantee: of the runs that want one stage at a time, one makes it and the others wait and take the result; and what was
begun from other inputs is never gone on with: shards, rolling checkpoints and log-probabilities of other weights would pass
for this stage's own, because a key is made of what was asked for, not of the bytes that came.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from core.artifacts import Store, write_durably

POLL_SECONDS = 0.5


@contextlib.contextmanager
def claimed(store: Store, stage: str, key: str, who: str, waiting: Callable[[str | None], None]) -> Iterator[bool]:
    """Hold the stage of this key; yields whether another process held it until now.

    `who`: what the others are told, such as a run's name. `waiting` is called with a sentence at first and with None at
    every later poll. The kernel releases the claim with its owner, so a killed run never leaves one.
    """
    with open(_beside(store, stage, key, "lock"), "a+", encoding="utf-8") as handle:
        waited = False
        while not _held(handle.fileno()):
            handle.seek(0)
            owner = handle.read() or "another process"
            waiting(None if waited else f"Waiting for {owner}, which is making the same; its result will be taken.")
            waited = True
            time.sleep(POLL_SECONDS)
        handle.seek(0)
        handle.truncate()
        handle.write(f"{who} (process {os.getpid()})")
        handle.flush()
        yield waited


def clear_if_begun_otherwise(store: Store, stage: str, key: str, inputs: Mapping[str, str]) -> bool:
    """Remove the working directory of a stage unless it was begun from these inputs {name: fingerprint}; call it in a claim.

    Returns whether something was removed. A directory that nothing is known of was begun by an earlier version: it stays.
    """
    partial, note = store.partial(stage, key), _beside(store, stage, key, "json")
    begun = json.loads(note.read_text(encoding="utf-8")) if note.exists() else dict(inputs)
    stale = partial.exists() and begun != dict(inputs)
    if stale:
        shutil.rmtree(partial)
    write_durably(note, json.dumps(dict(inputs)))
    return stale


def _held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beside(store: Store, stage: str, key: str, kind: str) -> Path:
    folder = store.root / ".work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{store.path(stage, key).name}.{kind}"
