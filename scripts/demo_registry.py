"""Make the registry that `harness dashboard --demo` shows, from a finished quickstart of this project.

python -m scripts.demo_registry HARNESS_HOME/registry.db

Takes out what belongs to one machine: paths, host, process ids. Scores, answers, judgments, curves and costs stay as the run
left them.
"""

import gzip
import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from dashboard.demo import BUNDLED

# Columns that name a machine or a place on it.
_PRIVATE = {"run": ["pid", "host"], "stage": ["pid", "host", "log", "artifact"], "checkpoint": ["path"]}


def main(source: Path) -> None:
    """Write dashboard/demo.db.gz. Raises ValueError when a path of the machine is left in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "demo.db"
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
            with new:
                for table, columns in _PRIVATE.items():
                    new.execute(f"UPDATE {table} SET {', '.join(f'{column} = NULL' for column in columns)}")
                for table, column in (("checkpoint", "provenance"), ("run", "environment"), ("stage", "metrics")):
                    _drop_places(new, table, column)
            new.execute("PRAGMA journal_mode = DELETE")
            new.execute("VACUUM")
        content = copy.read_bytes()
    for trace in (str(source.resolve().parent), str(Path.home()), sys.prefix):
        if trace.encode() in content:
            raise ValueError(f"the registry still names {trace}; take the column out in _PRIVATE")
    # No time stamp in the file: the same registry makes the same bytes.
    BUNDLED.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{BUNDLED}: {BUNDLED.stat().st_size / 1024:.0f} KiB")


def _drop_places(database: sqlite3.Connection, table: str, column: str) -> None:
    """Take hosts and entries that are absolute paths out of a JSON column."""
    for identity, text in database.execute(f"SELECT id, {column} FROM {table}").fetchall():
        kept = json.dumps(without_places(json.loads(text)))
        database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (kept, identity))


def without_places(value: Any) -> Any:
    """A JSON value without entries called `host` and without texts that are absolute paths, at any depth."""
    if isinstance(value, dict):
        return {k: without_places(v) for k, v in value.items() if k != "host" and not _is_path(v)}
    return [without_places(v) for v in value if not _is_path(v)] if isinstance(value, list) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
