"""The end of a stage's log, read from this machine's runs folder and from nowhere else."""

from pathlib import Path

from core import paths

BYTES = 16_384
"""Read at most; a page that refreshes must stay cheap however long a log grows."""


def tail(log: str | None, lines: int = 40) -> str | None:
    """The last lines of a log; None where it is not on this machine.

    A registry may come from a stranger and name any file: only what lies, links resolved, in HARNESS_HOME/runs is read.
    """
    if not log:
        return None
    try:
        path = Path(log).resolve()
        if not path.is_relative_to(paths.runs().resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - BYTES))
            read = file.read(BYTES)
    except OSError:
        return None  # rotated away or not readable: the same to who looks at the page
    text = read.decode("utf-8", "replace")
    whole = text if len(read) < BYTES else text.partition("\n")[2]
    # A progress bar rewrites its line: what was written last is what a terminal shows.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in whole.rstrip("\n").split("\n")]
    return "\n".join(shown[-lines:])
