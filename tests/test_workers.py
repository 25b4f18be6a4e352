"""Worker processes: every job is done once, an error is raised as it was, a dead worker ends the others, GPUs are shared out."""

import os
import signal
import time

import pytest

from core.errors import HarnessError, MissingInput, RecipeError
from train.workers import layout, run_workers


def squares(offset, jobs):
    for job in jobs:
        yield job, offset + job * job, os.environ["OMP_NUM_THREADS"]


def test_every_job_is_done_once_whatever_the_number_of_workers(monkeypatch):
    monkeypatch.setattr("train.workers.visible_gpus", lambda: [])
    found = {}
    for processes in (1, 3):
        done = []
        run_workers(squares, (5,), [0, 1, 2, 7], layout(processes, 1, threads=2), done.append)
        found[processes] = sorted(done)
    assert found[1] == found[3] == [(0, 5, "2"), (1, 6, "2"), (2, 9, "2"), (7, 54, "2")]


def failing(kind, jobs):
    """The worker of job 1 fails after its first job; the other would take a minute."""
    for job in jobs:
        if job == 0:
            time.sleep(60)
        yield job
        raise MissingInput("The weights are gone; fetch them.") if kind == "mistake" else ZeroDivisionError("a defect")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [("mistake", MissingInput, "The weights are gone"), ("defect", RuntimeError, "ZeroDivisionError: a defect")],
)
def test_a_workers_error_is_raised_as_its_own_and_ends_the_others(kind, error, words):
    began, done = time.monotonic(), []
    with pytest.raises(error, match=words):
        run_workers(failing, (kind,), [0, 1], layout(2, 1), done.append)
    assert done == [1] and time.monotonic() - began < 30


def killed(jobs):
    """A worker that is gone without a word, as the kernel ends one for want of memory."""
    for job in jobs:
        os.kill(os.getpid(), signal.SIGKILL) if job else time.sleep(60)
        yield job


def test_a_killed_worker_ends_the_others_at_once():
    began = time.monotonic()
    with pytest.raises(HarnessError, match="-9.*memory"):
        run_workers(killed, (), [0, 1], layout(2, 1), lambda done: None)
    assert time.monotonic() - began < 30


def test_gpus_are_shared_out_and_too_few_are_refused(monkeypatch):
    monkeypatch.setattr("train.workers.visible_gpus", lambda: ["0", "1", "5", "7"])
    assert [e["CUDA_VISIBLE_DEVICES"] for e in layout(2, 2).environments] == ["0,1", "5,7"]
    with pytest.raises(RecipeError, match="need 6 GPUs, and 4"):
        layout(3, 2)
    monkeypatch.setattr("train.workers.visible_gpus", lambda: [])
    assert layout(2, 1, threads=3).environments == ({"OMP_NUM_THREADS": "3"},) * 2
