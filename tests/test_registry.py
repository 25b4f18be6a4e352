"""The registry keeps what was committed, whatever dies, on SQLite and on PostgreSQL."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from core.errors import RegistryError
from db import Registry, complete_answer_set, insert_ignore, models, upsert
from db import registry as registry_module
from db.engine import create_engine_for
from db.registry import VERSION_TABLE, head
from tests.conftest import ROOT

pytest_plugins = ["tests.postgres"]

RUN = {"recipe_name": "quickstart", "recipe": {"seed": 1}, "recipe_hash": "0" * 64, "status": "running"}

CLAIM = """
import sys, time
from sqlalchemy import select
from db import Registry, models
registry, me = Registry.open(sys.argv[1]), int(sys.argv[2])
while True:
    with registry.write() as session:
        waiting = select(models.StageRun).where(models.StageRun.status == "waiting").order_by(models.StageRun.id).limit(1)
        stage = session.scalar(waiting.with_for_update(skip_locked=True))
        if stage is None:
            break
        time.sleep(0.001)  # between the read and the write, where two claims of one row would meet
        stage.status, stage.pid = "running", me
        stage.attempts += 1
        print(stage.id)
"""

UPSERT = """
import sys
from db import Registry, models, upsert
registry = Registry.open(sys.argv[1])
for i in range(50):
    with registry.write() as session:
        upsert(session, models.Judge, {"key": str(i % 5)}, {"name": sys.argv[2], "kind": "none"})
"""

HALF_A_WRITE = """
import sys, time
from db import Registry, models, insert_ignore
with Registry.open(sys.argv[1]).write() as session:
    rows = [{"key": f"lost {i}", "name": "x" * 200, "kind": "none"} for i in range(20_000)]
    insert_ignore(session, models.Judge, rows, ["key"])
    print("written, not committed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def opened(database_url: str):
    registry = Registry.open(database_url)
    yield registry
    registry.close()


def start(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """The output of each; fails with the stderr of one that failed."""
    ended = [(process, *process.communicate(timeout=120)) for process in processes]
    for process, _, err in ended:
        assert process.returncode == 0, err
    return [out for _, out, _ in ended]


def add_run(registry: Registry, name: str = "a") -> models.Run:
    with registry.write() as session:
        return upsert(session, models.Run, {"name": name}, RUN)


def count(registry: Registry, model: type[models.Base]) -> int:
    with registry.read() as session:
        return session.scalar(select(func.count()).select_from(model))


# Opening and migrating


def test_the_migrated_schema_is_that_of_the_models(opened: Registry):
    with opened.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, models.Base.metadata) == []


def test_processes_that_open_a_new_database_together_make_one(database_url: str):
    program = "import sys; from db import Registry; Registry.open(sys.argv[1]).close()"
    finish([start(program, database_url) for _ in range(4)])
    registry = Registry.open(database_url, readonly=True)
    with registry.read() as session:
        assert session.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [(head(),)]
    registry.close()


def test_the_change_to_wal_waits_for_a_writer(tmp_path: Path):
    # SQLite itself does not: it answers "database is locked" at once, whatever the timeout.
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    engine = create_engine_for(url)
    with ThreadPoolExecutor() as pool:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE other (id INTEGER)"))
            opening = pool.submit(Registry.open, url)
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)
        registry = opening.result(timeout=20)
    assert count(registry, models.Run) == 0
    with registry.read() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    registry.close()
    engine.dispose()


def test_a_newer_schema_is_refused_and_left_alone(opened: Registry):
    add_run(opened)
    with opened.write() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for attempt in (
        lambda: Registry.open(opened.url),
        lambda: Registry.open(opened.url, readonly=True),
        lambda: Registry(opened.url).upgrade(),
    ):
        with pytest.raises(RegistryError, match="9999, made by a newer version .* upgrade the harness"):
            attempt()
    assert count(opened, models.Run) == 1


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`next_version(body)`: as if this version had one more migration, whose upgrade() is `body`."""

    def add(body: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(registry_module.MIGRATIONS, folder)
        (folder / "versions" / "0099_next.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = '0099'\ndown_revision = '{head()}'\n\n\ndef upgrade():\n    {body}\n"
        )
        monkeypatch.setattr(registry_module, "MIGRATIONS", folder)

    return add


REWRITE_RUN = """with op.batch_alter_table("run", recreate="auto") as batch:
        batch.add_column(sa.Column("note", sa.String(10)))
        batch.drop_column("host")
        batch.alter_column("status", type_=sa.String(40))"""


def test_an_old_schema_is_refused_and_upgraded_without_losing_children(opened: Registry, next_version):
    run = add_run(opened)
    with opened.write() as session:
        insert_ignore(session, models.Iteration, [{"run_id": run.id, "index": i} for i in range(3)], ["run_id", "index"])
    before = head()
    next_version(REWRITE_RUN)
    with pytest.raises(RegistryError, match=f"schema {before} and this version needs 0099; .*`harness db upgrade`"):
        Registry.open(opened.url)
    assert Registry(opened.url).upgrade() == (before, "0099")
    assert Registry(opened.url).upgrade() == ("0099", "0099")
    Registry.open(opened.url).close()
    assert count(opened, models.Iteration) == 3
    with opened.read() as session:
        assert session.execute(text("SELECT name, note FROM run")).all() == [("a", None)]


def test_a_migration_that_leaves_orphans_or_fails_is_undone(registry: Registry, next_version, monkeypatch: pytest.MonkeyPatch):
    run = add_run(registry)
    with registry.write() as session:
        insert_ignore(session, models.Iteration, [{"run_id": run.id, "index": 0}], ["run_id", "index"])
    next_version("op.add_column('run', sa.Column('note', sa.String(10)))\n    op.execute('DELETE FROM run')")
    with pytest.raises(RuntimeError, match="1 rows without a parent, the first in table iteration"):
        Registry(registry.url).upgrade()
    monkeypatch.undo()
    again = Registry.open(registry.url)  # the version is as before, and so are the columns
    assert (count(again, models.Run), count(again, models.Iteration)) == (1, 1)
    with again.read() as session:
        assert "note" not in session.execute(text("SELECT * FROM run")).keys()  # noqa: SIM118
    again.close()


def test_tables_of_others_are_not_taken_over(database_url: str):
    engine = create_engine_for(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE run (id INTEGER)"))
    engine.dispose()
    with pytest.raises(RegistryError, match="already has tables named run .* HARNESS_DB"):
        Registry.open(database_url)


def test_the_default_registry_is_under_harness_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HARNESS_DB", raising=False)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "new" / "home"))
    Registry.open().close()
    assert (tmp_path / "new" / "home" / "registry.db").is_file()


# Reading only


def test_a_missing_registry_is_not_made_by_a_reader(database_url: str, tmp_path: Path):
    with pytest.raises(RegistryError, match="no registry at .*`harness train-and-eval quickstart`.*HARNESS_DB"):
        Registry.open(database_url, readonly=True)
    assert not list(tmp_path.glob("registry.db*"))


def test_the_database_itself_refuses_a_reader_that_writes(opened: Registry):
    add_run(opened)
    reader = Registry.open(opened.url, readonly=True)
    with pytest.raises(RegistryError, match="read-only"), reader.read() as session:
        session.execute(text("DELETE FROM run"))
    with pytest.raises(RegistryError, match="read-only"), reader.write():
        pass
    with pytest.raises(RegistryError, match="read-only"), opened.read() as session:
        session.execute(text("DELETE FROM run"))
    assert count(reader, models.Run) == 1
    reader.close()


def test_a_reader_is_not_blocked_by_a_writer_and_sees_no_half_of_it(opened: Registry):
    with opened.write() as session:
        upsert(session, models.Run, {"name": "a"}, RUN)
        assert count(opened, models.Run) == 0
    assert count(opened, models.Run) == 1


def test_a_reader_sees_one_moment_until_it_ends(opened: Registry):
    add_run(opened, "before")
    with opened.read() as session:
        assert session.scalar(select(func.count(models.Run.id))) == 1
        add_run(opened, "meanwhile")
        assert session.scalars(select(models.Run.name)).all() == ["before"]
        session.rollback()
        assert session.scalar(select(func.count(models.Run.id))) == 2
    assert count(opened, models.Run) == 2


def test_a_reader_whose_connection_died_comes_back_as_it_was(postgres_url: str):
    opened = Registry.open(postgres_url)
    add_run(opened, "before")
    with opened.read() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with opened.write() as session:
        assert session.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        assert session.scalar(text("SHOW transaction_isolation")) == "read committed", "writers wait for each other's rows"
    with opened.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
        add_run(opened, "meanwhile")
        assert session.scalars(select(models.Run.name)).all() == ["before"]
    opened.close()


def test_a_registry_at_rest_is_read_from_a_read_only_folder(registry: Registry, tmp_path: Path):
    add_run(registry)
    registry.close()
    program = (
        "import os, sys\nfrom db import Registry, models\n"
        "Registry.open(sys.argv[2]).close(); os.getuid() or os.setuid(65534)  # root may write anywhere\n"
        "with Registry.open(sys.argv[1], readonly=True).read() as session: print(session.query(models.Run).one().name)"
    )
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shutil.copy(tmp_path / "registry.db", shelf)
    for folder in (shelf, *(parent for parent in shelf.parents if parent.stat().st_uid == os.getuid())):
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(folder.stat().st_mode | 0o055)
    shelf.chmod(0o555)
    assert finish([start(program, f"sqlite:///{shelf}/registry.db", registry.url)]) == ["a\n"]


# Writing from several processes


def test_two_processes_claim_each_row_once(opened: Registry):
    run = add_run(opened)
    with opened.write() as session:
        stage = {"run_id": run.id, "program": "train.generate", "key": "0" * 64, "status": "waiting"}
        insert_ignore(session, models.StageRun, [stage | {"name": f"generate[{i}]"} for i in range(150)], ["run_id", "name"])
    outputs = finish([start(CLAIM, opened.url, "1"), start(CLAIM, opened.url, "2")])
    claimed = [set(output.split()) for output in outputs]
    assert len(claimed[0]) + len(claimed[1]) == 150 and not claimed[0] & claimed[1]
    with opened.read() as session:
        stages = session.scalars(select(models.StageRun)).all()
    assert {stage.attempts for stage in stages} == {1}
    assert {str(stage.id) for stage in stages if stage.pid == 1} == claimed[0]


def test_concurrent_upserts_of_one_key_are_one_row(opened: Registry):
    finish([start(UPSERT, opened.url, name) for name in ("x", "y", "z")])
    assert count(opened, models.Judge) == 5


def test_kill_in_the_middle_of_a_write_loses_only_that_write(opened: Registry):
    add_run(opened)
    process = start(HALF_A_WRITE, opened.url)
    assert process.stdout.readline() == "written, not committed\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = Registry.open(opened.url)
    assert (count(again, models.Run), count(again, models.Judge)) == (1, 0)
    began = time.monotonic()
    add_run(again, "b")  # the dead writer's lock is gone
    assert time.monotonic() - began < 20 and count(again, models.Run) == 2
    if again.url.startswith("sqlite"):
        with again.read() as session:
            assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    again.close()


def test_an_exception_undoes_the_whole_transaction(opened: Registry):
    with pytest.raises(ZeroDivisionError), opened.write() as session:
        upsert(session, models.Run, {"name": "a"}, RUN)
        raise ZeroDivisionError
    assert count(opened, models.Run) == 0


# Idempotent writes and faithful values


def test_upsert_makes_then_changes_one_row(opened: Registry):
    with opened.write() as session:
        first = upsert(session, models.Run, {"name": "a"}, RUN)
        made = first.created_at
        second = upsert(session, models.Run, {"name": "a"}, RUN | {"status": "done"})
        assert second is first and second.status == "done"
    with opened.write() as session:
        third = upsert(session, models.Run, {"name": "a"}, RUN)
        assert (third.id, third.created_at, third.status) == (first.id, made, "running")
    assert count(opened, models.Run) == 1


def test_upsert_without_values_finds_the_row(opened: Registry):
    run = add_run(opened)
    with opened.write() as session:
        first = upsert(session, models.Iteration, {"run_id": run.id, "index": 1}, {})
        assert upsert(session, models.Iteration, {"run_id": run.id, "index": 1}, {}).id == first.id


def test_insert_ignore_counts_the_new_and_keeps_the_old(opened: Registry):
    with opened.write() as session:
        assert insert_ignore(session, models.Judge, [], ["key"]) == 0
        first = [{"key": str(i), "name": "first", "kind": "none"} for i in range(5)]
        second = [{"key": str(i), "name": "second", "kind": "none"} for i in range(8)]
        assert insert_ignore(session, models.Judge, first, ["key"]) == 5
        assert insert_ignore(session, models.Judge, second, ["key"]) == 3
        assert session.scalars(select(models.Judge.name).order_by(models.Judge.key)).all() == ["first"] * 5 + ["second"] * 3


def test_a_child_without_its_parent_is_refused(opened: Registry):
    with pytest.raises(IntegrityError), opened.write() as session:
        insert_ignore(session, models.Iteration, [{"run_id": 404, "index": 0}], ["run_id", "index"])


def test_times_come_back_in_utc(opened: Registry):
    there = datetime(2024, 5, 13, 23, 30, 0, 123456, tzinfo=timezone(timedelta(hours=-7)))
    with opened.write() as session:
        upsert(session, models.Run, {"name": "a"}, RUN | {"heartbeat_at": there, "finished_at": None})
    with opened.read() as session:
        run = session.scalar(select(models.Run).where(models.Run.heartbeat_at == there))
    assert run.heartbeat_at == there and run.heartbeat_at.tzinfo is UTC and run.finished_at is None
    with pytest.raises(StatementError, match="no timezone"), opened.write() as session:
        upsert(session, models.Run, {"name": "a"}, RUN | {"heartbeat_at": datetime(2024, 5, 13)})


def test_a_complete_answer_set_knows_the_mean_length_of_its_answers(opened: Registry):
    with opened.write() as session:
        checkpoint = upsert(session, models.Checkpoint, {"fingerprint": "f"}, {"name": "c", "kind": "base", "source": "imported"})
        values = {"checkpoint_id": checkpoint.id, "benchmark": "mt_bench", "version": "v", "settings": {}, "settings_hash": "h"}
        answers = upsert(session, models.AnswerSet, {"key": "k"}, values | {"status": "partial", "n_questions": 2})
        rows = [{"question_id": str(i), "prompt": "p", "text": "t", "output_tokens": n} for i, n in enumerate((100, 201))]
        insert_ignore(
            session,
            models.Answer,
            [row | {"answer_set_id": answers.id} for row in rows],
            ["answer_set_id", "question_id", "turn", "sample"],
        )
        complete_answer_set(session, answers.id)
        assert (answers.status, answers.mean_tokens) == ("complete", 150.5)
