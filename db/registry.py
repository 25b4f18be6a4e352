"""The registry: one database of everything measured, opened to write or only to read.

    registry = Registry.open()
    with registry.write() as session: ...     # one short transaction, committed at the end or not at all
    with registry.read() as session: ...      # the database refuses writes

Guarantee: what `write` commits survives the death of any process. Several processes may write; on SQLite they take
turns; on PostgreSQL they write side by side (READ COMMITTED), and what two may change at once is changed by one statement
(`db.record`), not read and written back. It costs the writers of SQLite their concurrency: keep transactions short.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect, text
from sqlalchemy.orm import Session

from core.errors import RegistryError
from core.paths import default_registry_url
from db.engine import create_engine_for, enable_wal, plain_errors, registry_url
from db.models import Base

VERSION_TABLE = "harness_alembic_version"
MIGRATIONS = Path(__file__).parent / "migrations"

# Any constant; shared by every process that migrates one PostgreSQL database.
_MIGRATION_LOCK = 2_405_078_630


class Registry:
    """A registry whose schema is the one this version knows. Use `Registry.open`; the constructor checks nothing."""

    def __init__(self, url: str | None = None, readonly: bool = False):
        self._url: URL = registry_url(url or default_registry_url())
        self.readonly = readonly
        self._reader: Engine = create_engine_for(self._url, readonly=True)
        self._writer: Engine | None = None if readonly else create_engine_for(self._url)

    @classmethod
    def open(cls, url: str | None = None, readonly: bool = False) -> "Registry":
        """Open the registry at `url` (default: HARNESS_DB, else SQLite under HARNESS_HOME).

        A new database is made on first use, unless `readonly`. Raises RegistryError when it is missing, unreachable, of
        another version, or on a network file system.
        """
        registry = cls(url, readonly)
        try:
            registry._require_schema()
        except BaseException:
            registry.close()
            raise
        return registry

    @property
    def url(self) -> str:
        """The full URL, password included: what another process needs."""
        return self._url.render_as_string(hide_password=False)

    @property
    def place(self) -> str:
        """The URL without its password: what a person may see."""
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One write transaction. Rows stay readable after it. Raises RegistryError or DiskFull for the machine's faults."""
        if self._writer is None:
            raise RegistryError(f"The registry {self.place} was opened read-only; open it to write.")
        with plain_errors(self._url), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent view of the registry, which refuses writes (also on SQLite, where writers do not block it)."""
        with plain_errors(self._url), Session(self._reader, expire_on_commit=False) as session:
            yield session

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema to this version; safe when several processes do it at once. Returns (before, after).

        All migrations are one transaction: they happen whole or not at all.
        Raises RegistryError for a database that a newer version made.
        """
        if self.readonly:
            raise RegistryError(f"The registry {self.place} was opened read-only; open it to write.")
        if self._is_sqlite:
            self._make_folder()
        engine = create_engine_for(self._url, foreign_keys=False)
        try:
            with plain_errors(self._url):
                if self._is_sqlite:
                    enable_wal(engine)
                with engine.begin() as connection:
                    if not self._is_sqlite:
                        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                    before = _revision(connection)
                    self._refuse_newer(before)
                    if before is None:
                        self._refuse_foreign(connection)
                    if before != head():
                        _migrate(connection)
                    return before, head()
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close every pooled connection."""
        self._reader.dispose()
        if self._writer is not None:
            self._writer.dispose()

    @property
    def _is_sqlite(self) -> bool:
        return self._url.drivername == "sqlite"

    def _require_schema(self) -> None:
        missing = self._is_sqlite and not Path(self._url.database or "").exists()
        found = None if missing else self._found_revision()
        if found == head():
            return
        if found is None and not self.readonly:
            self.upgrade()
            return
        if found is None:
            raise RegistryError(
                f"There is no registry at {self.place}; make one with `harness train-and-eval quickstart`, or name another "
                "with --db or HARNESS_DB."
            )
        self._refuse_newer(found)
        raise RegistryError(
            f"The registry {self.place} has schema {found} and this version needs {head()}; copy the database, then run "
            "`harness db upgrade`."
        )

    def _found_revision(self) -> str | None:
        with plain_errors(self._url), self._reader.connect() as connection:
            return _revision(connection)

    def _refuse_newer(self, found: str | None) -> None:
        if found is not None and found not in revisions():
            raise RegistryError(
                f"The registry {self.place} has schema {found}, made by a newer version than this one, which knows "
                f"{head()}; upgrade the harness (the registry was left alone)."
            )

    def _refuse_foreign(self, connection: Connection) -> None:
        taken = set(inspect(connection).get_table_names()) & set(Base.metadata.tables)
        if taken:
            raise RegistryError(
                f"The database {self.place} already has tables named {', '.join(sorted(taken))} "
                "that the harness did not make; give it a database of its own with HARNESS_DB."
            )

    def _make_folder(self) -> None:
        folder = Path(self._url.database or "").parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(
                f"The folder {folder} of the registry cannot be made ({error.strerror}); "
                "set HARNESS_HOME or HARNESS_DB to another place."
            ) from error


def revisions() -> list[str]:
    """The schema revisions this version knows, oldest first: the numbers that the files of migrations/versions begin with."""
    return sorted(path.name.split("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*_*.py"))


def head() -> str:
    """The schema revision of `db.models`."""
    return revisions()[-1]


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if orphans:
            raise RuntimeError(
                f"the migration would leave {len(orphans)} rows without a parent, the first in table {orphans[0][0]}"
            )
