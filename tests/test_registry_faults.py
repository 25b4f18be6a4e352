"""Faults of the machine and of the URL, each one sentence with the way out."""

import os
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from core.errors import DiskFull, RegistryError
from db import Registry, insert_ignore, models, upsert
from db.engine import file_system, registry_url, require_local

pytest_plugins = ["tests.postgres"]

RUN = {"recipe_name": "quickstart", "recipe": {"seed": 1}, "recipe_hash": "0" * 64, "status": "running"}


def add_run(registry: Registry, name: str = "a") -> models.Run:
    with registry.write() as session:
        return upsert(session, models.Run, {"name": name}, RUN)


def count(registry: Registry, model: type[models.Base]) -> int:
    with registry.read() as session:
        return session.scalar(select(func.count()).select_from(model))


def test_a_full_disk_is_one_sentence_and_loses_nothing(registry: Registry):
    add_run(registry)
    with pytest.raises(DiskFull, match="The disk of the registry .* is full; free space"), registry.write() as session:
        # SQLite's own limit gives the same error as a disk without space.
        pages = session.execute(text("PRAGMA page_count")).scalar()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        insert_ignore(session, models.Judge, [{"key": str(i), "name": "x" * 200, "kind": "none"} for i in range(500)], ["key"])
    assert count(registry, models.Judge) == 0 and count(registry, models.Run) == 1


def test_a_lock_that_is_held_too_long_is_one_sentence(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("db.engine.BUSY_SECONDS", 0.2)
    impatient = Registry.open(registry.url)
    with registry.write() as session:
        upsert(session, models.Run, {"name": "a"}, RUN)
        with pytest.raises(RegistryError, match="held by another process"):
            add_run(impatient, "b")
    add_run(impatient, "b")
    impatient.close()
    assert count(registry, models.Run) == 2


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path):
    (tmp_path / "registry.db").write_text("not a database, but long enough to have the header of one" * 10)
    with pytest.raises(RegistryError, match="is not a SQLite database"):
        Registry.open(f"sqlite:///{tmp_path}/registry.db")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="cannot be made .* HARNESS_HOME or HARNESS_DB"):
        Registry.open(f"sqlite:///{tmp_path}/file/registry.db")


def test_an_unreachable_server_is_one_sentence_without_the_password(tmp_path: Path):
    with pytest.raises(RegistryError, match="cannot be reached .* check HARNESS_DB") as caught:
        Registry.open(f"postgresql://user:secret@/name?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there_is_one_sentence(postgres_cluster: str):
    with pytest.raises(RegistryError, match='cannot be reached .*"nowhere" does not exist'):
        Registry.open(postgres_cluster.format(name="nowhere"))


def test_the_url_for_other_processes_keeps_the_password_and_the_one_for_people_does_not():
    registry = Registry("postgresql://user:secret@host/name")
    assert registry.url == "postgresql+psycopg://user:secret@host/name"
    assert registry.place == "postgresql+psycopg://user:***@host/name"


@pytest.mark.parametrize("url", ["registry.db", "sqlite://", "sqlite:///:memory:", "mysql://host/name", "sqlite:///f?mode=ro"])
def test_a_url_that_cannot_hold_a_registry_is_refused(url: str):
    with pytest.raises(RegistryError, match="use sqlite:///PATH"):
        registry_url(url)


def test_a_relative_path_is_made_absolute_for_stages_that_run_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert registry_url("sqlite:///registry.db").database == os.path.realpath(tmp_path / "registry.db")


MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
host:/x /mnt/with\\040space fuse.sshfs rw 0 0
/dev/sdc1 /over lustre rw 0 0
tmpfs /over tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/registry.db", "ext4"),
        ("/home/me/registry.db", "nfs4"),
        ("/home/local/registry.db", "ext4"),
        ("/homely/registry.db", "ext4"),
        ("/mnt/with space/registry.db", "fuse.sshfs"),
        ("/over/registry.db", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str):
    assert file_system(Path(path), MOUNTS) == kind


def test_sqlite_on_a_network_file_system_is_refused_with_the_way_out():
    require_local(Path("/var/registry.db"), MOUNTS)
    with pytest.raises(RegistryError, match=r"network file system \(nfs4\).*postgresql://"):
        require_local(Path("/home/me/registry.db"), MOUNTS)
