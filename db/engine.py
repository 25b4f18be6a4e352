"""Database engines: one that writes, one that cannot.

SQLite, written from several processes, needs three things that are not the default: every write transaction begins with
BEGIN IMMEDIATE (a deferred one lets two processes read the same row before either writes, and under WAL then fails with
"database is locked" at once, whatever the timeout), a busy timeout, and a local disk (WAL shares memory between
processes, which no network file system does). PostgreSQL needs none of them.
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from core.errors import DiskFull, HarnessError, RegistryError
from db.types import to_json

BUSY_SECONDS = 30
CONNECT_SECONDS = 15

# File systems whose clients do not share memory, which WAL needs (https://sqlite.org/wal.html, section 2).
NETWORK_FILE_SYSTEMS = {
    *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "fuse.ceph", "glusterfs"),
    *("fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.mount-s3", "fuse.blobfuse2", "fuse.juicefs"),
    *("fuse.rclone", "lustre", "gpfs", "beegfs", "fhgfs", "orangefs", "pvfs2", "panfs", "wekafs"),
}


def registry_url(url: str) -> URL:
    """A registry URL in full: an absolute SQLite path, or PostgreSQL through psycopg.

    Raises RegistryError for anything else.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise RegistryError(f"{url!r} is not a database URL; use sqlite:///PATH or postgresql://USER@HOST/NAME.") from error
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise RegistryError("The registry is shared by processes and must be a plain file; use sqlite:///PATH.")
        return parsed.set(drivername="sqlite", database=str(Path(parsed.database).expanduser().resolve()))
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise RegistryError(f"A {backend} database cannot hold the registry; use sqlite:///PATH or postgresql://USER@HOST/NAME.")


def create_engine_for(url: str | URL, readonly: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine for the registry at `url`; nothing is connected yet.

    `readonly`: the database itself refuses every write, and all that one transaction reads is of one moment (a statement
    of PostgreSQL's default level sees what was committed since the one before). `foreign_keys=False` is for SQLite
    migrations, which rewrite whole tables: with foreign keys on, dropping the old table would delete its children.
    Raises RegistryError for an unusable URL, a missing driver, or SQLite on a network file system.
    """
    parsed = registry_url(str(url) if isinstance(url, str) else url.render_as_string(hide_password=False))
    if parsed.drivername == "sqlite":
        require_local(Path(parsed.database or ""))
        return _sqlite(parsed, readonly, foreign_keys)
    arguments = {"connect_timeout": CONNECT_SECONDS}
    if readonly:
        arguments["options"] = "-c default_transaction_read_only=on"
    level = "REPEATABLE READ" if readonly else None
    try:
        return create_engine(parsed, connect_args=arguments, pool_pre_ping=True, json_serializer=to_json, isolation_level=level)
    except ModuleNotFoundError as error:
        raise RegistryError("PostgreSQL needs the psycopg driver; run `pip install 'rlhf-harness[postgres]'`.") from error


def _sqlite(url: URL, readonly: bool, foreign_keys: bool) -> Engine:
    path = Path(url.database or "")

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?{_open_mode(path) if readonly else 'mode=rwc'}",
            uri=True,
            timeout=BUSY_SECONDS,
            check_same_thread=False,
            isolation_level=None,  # we say BEGIN ourselves
        )
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA synchronous = NORMAL")
        if readonly:
            connection.execute("PRAGMA query_only = ON")
        return connection

    engine = create_engine(url, creator=connect, json_serializer=to_json)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


def _open_mode(path: Path) -> str:
    """Reading a WAL database writes its shared-memory file; on a read-only disk with no writer it can be done without."""
    at_rest = not path.with_name(f"{path.name}-wal").exists()
    return "mode=ro&immutable=1" if at_rest and not os.access(path.parent, os.W_OK) else "mode=ro"


def enable_wal(engine: Engine) -> None:
    """Put a SQLite database into WAL mode, once: the mode is kept in the file.

    SQLite does not wait for the lock that the change needs, so we do. Raises OperationalError when it stays locked.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def require_local(path: Path, mounts: str | None = None) -> None:
    """Raise RegistryError when `path` lies on a network file system. `mounts`: text in the format of /proc/mounts."""
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text() if table.exists() else ""
    kind = file_system(path, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise RegistryError(
            f"{path} is on a network file system ({kind}), where SQLite cannot be shared safely; set HARNESS_DB to a file "
            "on a local disk (sqlite:///PATH) or to a PostgreSQL database (postgresql://USER@HOST/NAME)."
        )


def file_system(path: Path, mounts: str) -> str | None:
    """Type of the file system that holds `path`, from the text of /proc/mounts; None when no mount point contains it."""
    found, kind = -1, None
    for line in mounts.splitlines():
        fields = line.split()
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        # A later mount on the same point hides the earlier one, hence >=.
        if path.is_relative_to(point) and len(point.parts) >= found:
            found, kind = len(point.parts), fields[2]
    return kind


@contextmanager
def plain_errors(url: URL) -> Iterator[None]:
    """Turn the faults of a machine (full disk, permissions, no server) into one sentence; defects pass unchanged."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        fault = fault_of(error, url)
        if fault is None:
            raise
        raise fault from error


def fault_of(error: Exception, url: URL) -> HarnessError | None:
    """The HarnessError that a database error stands for, or None when it is a defect."""
    original = getattr(error, "orig", None) or error
    text = str(original).strip()
    first = text.splitlines()[0] if text else type(original).__name__
    place = url.render_as_string(hide_password=True)
    state = getattr(original, "sqlstate", None)
    if "database or disk is full" in text or state == "53100":
        return DiskFull(f"The disk of the registry {place} is full; free space there, then run the same command again.")
    if url.drivername != "sqlite":
        # Without a state the client failed before the server answered; classes 08, 28, 3D, 53, 57: connection, login,
        # database name, resources, shutdown (PostgreSQL manual, appendix A).
        if state[:2] in ("08", "28", "3D", "53", "57") if state else type(original).__name__ == "OperationalError":
            return RegistryError(f"The registry {place} cannot be reached ({first}); check HARNESS_DB and the server.")
        if state == "42501":
            return RegistryError(f"The registry {place} refuses this user ({first}); grant it the rights to the tables.")
        if state == "25006":
            return RegistryError(f"The registry {place} was opened read-only and cannot be written.")
        return None
    sentences = {
        "unable to open database file": "cannot be opened; check that its folder exists and may be read and written",
        "attempt to write a readonly database": "is read-only; check the permissions of the file and its folder",
        "database is locked": f"was held by another process for over {BUSY_SECONDS} s; see which with `fuser` and end it",
        "file is not a database": "is not a SQLite database; name another file with HARNESS_DB",
        "malformed": "is damaged; restore a copy, or keep what can be read with `sqlite3 FILE .recover`",
        "disk I/O error": "cannot be read or written (disk I/O error); check the disk and its free space",
    }
    for known, sentence in sentences.items():
        if known in text:
            return RegistryError(f"The registry {place} {sentence}.")
    return None
