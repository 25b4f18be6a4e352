"""What the dashboard asks the registry is asked once for all sessions, and never shown later than it says."""

import threading
import time

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dashboard import source
from db import Registry, models
from tests.test_registry import add_run


@pytest.fixture
def asked(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HARNESS_DB", registry.url)
    return []


def counting(asked: list[str], wait: float = 0.0):
    def runs(session: Session, name: str = "") -> int:
        asked.append(name)
        time.sleep(wait)
        return session.scalar(select(func.count()).select_from(models.Run))

    return runs


def test_the_same_question_is_asked_again_only_after_a_change(registry: Registry, asked: list[str], monkeypatch):
    monkeypatch.setattr(source, "STALE_SECONDS", 0.0)
    add_run(registry)
    runs = counting(asked)
    assert [source.read(runs, name) for name in ("a", "a", "b")] == [1, 1, 1] and asked == ["a", "b"]
    add_run(registry, "another")
    assert source.read(runs, "a") == 2 and asked == ["a", "b", "a"]


def test_while_others_write_a_page_is_at_most_so_many_seconds_old(registry: Registry, asked: list[str], monkeypatch):
    monkeypatch.setattr(source, "STALE_SECONDS", 0.3)
    add_run(registry)
    runs = counting(asked)
    assert source.read(runs) == 1
    add_run(registry, "another")
    first = time.monotonic()
    seen = {source.read(runs) for _ in range(5)}
    assert time.monotonic() - first > 0.3 or seen == {1}
    time.sleep(0.35)
    assert source.read(runs) == 2


def test_of_sessions_that_ask_at_once_one_computes(registry: Registry, asked: list[str]):
    add_run(registry)
    runs, found = counting(asked, wait=0.3), []
    threads = [threading.Thread(target=lambda: found.append(source.read(runs))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8 and len(asked) == 1


def test_a_failure_is_not_kept(registry: Registry, asked: list[str]):
    def broken(session: Session) -> int:
        asked.append("")
        raise LookupError("not yet")

    for _ in range(2):
        with pytest.raises(LookupError):
            source.read(broken)
    assert len(asked) == 2


def test_who_waited_through_a_change_does_not_ask_for_the_older_state():
    shared, asked, state = source.Shared(), [], ["1"]

    def ask() -> int:
        asked.append(state[0])
        state[0] = "2" if len(asked) == 1 else state[0]
        time.sleep(0.1)
        return len(asked)

    threads = [threading.Thread(target=shared.answer, args=("q", lambda: state[0], ask)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["1", "2"]


def test_what_time_alone_changes_is_asked_again_while_nobody_writes(registry: Registry, asked: list[str], monkeypatch):
    add_run(registry)
    runs, clock = counting(asked), [100.0]
    monkeypatch.setattr(source.time, "monotonic", lambda: clock[0])
    for at in (100.0, 101.0, 102.5, 103.0, 104.5):
        clock[0] = at
        source.read_now(runs, "aged")
        source.read(runs, "kept")
    assert asked.count("aged") == 3 and asked.count("kept") == 1
