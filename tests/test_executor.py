"""A stage as a process: events come through, failures are one sentence, no orphan outlives the runner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.artifacts import Store
from core.errors import RunInUse, StageFailed
from core.fingerprint import digest
from core.stage import Spec
from harness.executor import run_process
from harness.lock import run_lock

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import sys, time
from core.errors import MissingInput
from core.stage import Stage, main

def run(stage: Stage) -> dict:
    what = stage.settings["do"]
    for i in range(3):
        stage.progress(i + 1, 3, "things")
    stage.metric(1, loss=0.5)
    if what == "mistake":
        raise MissingInput("There is no spoon; bring one.")
    if what == "defect":
        raise ZeroDivisionError("ours")
    if what == "full":
        raise OSError(28, "No space left on device")
    if what == "sleep":
        (stage.work / "started").write_text(str(__import__("os").getpid()))
        time.sleep(600)
    (stage.work / "out.txt").write_text("made")
    return {"answer": 42}

if __name__ == "__main__":
    main(run)
"""


def _spec(tmp_path: Path, store: Path, do: str) -> tuple[Spec, list[str]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    settings = {"do": do}
    events = str(tmp_path / "events.ndjson")
    spec = Spec("toy", 1, digest(settings), settings, {}, str(store), events=events)
    spec.save(tmp_path / "spec.json")
    return spec, [sys.executable, str(program), str(tmp_path / "spec.json")]


def _run(tmp_path: Path, store: Path, do: str) -> list[dict]:
    spec, command = _spec(tmp_path, store, do)
    events: list[dict] = []
    run_process(spec, "toy", command, {}, tmp_path / "log", events.append)
    return [e for e in events if e["event"] != "tick"]


def test_events_and_artifact(tmp_path: Path, store: Path) -> None:
    events = _run(tmp_path, store, "work")
    kinds = [e["event"] for e in events]
    assert kinds[0] == "started" and kinds[-2:] == ["metric", "sealed"] and "error" not in kinds
    assert {"done": 3, "total": 3, "unit": "things"}.items() <= [e for e in events if e["event"] == "progress"][-1].items()
    artifact = Store(store).find("toy", digest({"do": "work"}))
    assert artifact is not None and artifact.metrics == {"answer": 42}


@pytest.mark.parametrize(
    ("do", "sentence"),
    [
        ("mistake", r"^There is no spoon; bring one\.$"),
        ("defect", "ZeroDivisionError: ours. Its log"),
        ("full", "disk of .* is full; free space"),
    ],
)
def test_failures_are_sentences_and_seal_nothing(tmp_path: Path, store: Path, do: str, sentence: str) -> None:
    with pytest.raises(StageFailed, match=sentence):
        _run(tmp_path, store, do)
    assert Store(store).find("toy", digest({"do": do})) is None


def test_a_killed_runner_leaves_no_stage_behind(tmp_path: Path, store: Path) -> None:
    _, command = _spec(tmp_path, store, "sleep")
    runner = f"import subprocess, sys; subprocess.run({command!r})"
    parent = subprocess.Popen([sys.executable, "-c", runner], env=os.environ | {"PYTHONPATH": str(ROOT)})
    started = Store(store).partial("toy", digest({"do": "sleep"})) / "started"
    deadline = time.monotonic() + 30
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(started.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_second_owner_of_a_run_is_refused_with_pid_and_host(tmp_path: Path) -> None:
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.lock import run_lock\n"
        f"with run_lock(Path({str(tmp_path)!r}), 'mine'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
    try:
        with pytest.raises(RunInUse, match=f"process {owner.pid} on {os.uname().nodename}"), run_lock(tmp_path, "mine"):
            pass
    finally:
        owner.kill()
        owner.wait()
    with run_lock(tmp_path, "mine"):  # the kernel released a dead owner's lock
        pass


TORCHRUN = """
[rank1]: Traceback (most recent call last):
[rank1]:   File "train/dpo.py", line 1, in run
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
W1123 torch/distributed/elastic/multiprocessing/api.py] Sending process 7 closing signal SIGTERM
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.dpo FAILED
  exitcode  : 1 (pid: 24901)
============================================================
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (TORCHRUN, "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (lower micro_batch_size"),
        ("loading\nSegmentation fault\n-----\n", "Segmentation fault"),
        ("ValueError: no such layer\n", "ValueError: no such layer"),
        ("=====\n\n", "exit code 3"),
    ],
)
def test_a_log_says_why_even_where_a_launcher_has_the_last_word(tmp_path: Path, store: Path, log: str, said: str) -> None:
    spec, _ = _spec(tmp_path, store, "work")
    command = [sys.executable, "-c", f"import sys; sys.stdout.write({log!r}); sys.exit(3)"]
    with pytest.raises(StageFailed) as caught:
        run_process(spec, "toy", command, {}, tmp_path / "log", lambda event: None)
    assert f"toy failed: {said}" in str(caught.value)
