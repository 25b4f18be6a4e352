"""Running one stage as a local process: start it, follow its events, keep its log, report how it ended."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.artifacts import Store
from core.claim import claimed, clear_if_begun_otherwise
from core.errors import StageFailed
from core.stage import Spec, die_with_parent

POLL_SECONDS = 0.2
ROOT = Path(__file__).resolve().parent.parent

# A stage that failed because of the user or the machine says so in one sentence; no attempt is repeated for those.
EventHandler = Callable[[dict[str, Any]], None]


def run_process(
    spec: Spec, program: str, command: list[str], environment: dict[str, str], log: Path, on_event: EventHandler
) -> bool:
    """Run `command` (which must read the spec) until it ends, passing each event and a `tick` every poll to `on_event`.

    Returns False where another run, which held the stage, has made it meanwhile: nothing was run then.
    Raises StageFailed with the stage's own sentence, or with its last line and the log's path.
    """
    store, inputs = Store(Path(spec.store)), {name: value["fingerprint"] for name, value in spec.inputs.items()}

    def waiting(text: str | None) -> None:
        on_event({"event": "tick"} if text is None else {"event": "message", "text": text})

    with claimed(store, spec.stage, spec.key, spec.run or program, waiting) as waited:
        if waited and store.find(spec.stage, spec.key) is not None:
            return False
        if clear_if_begun_otherwise(store, spec.stage, spec.key, inputs):
            on_event({"event": "message", "text": "What was begun from other inputs is discarded; starting anew."})
        _run(spec, program, command, environment, log, on_event)
    return True


def _run(spec: Spec, program: str, command: list[str], environment: dict[str, str], log: Path, on_event: EventHandler) -> None:
    events = Path(spec.events)
    events.parent.mkdir(parents=True, exist_ok=True)
    events.touch()
    position = events.stat().st_size
    failure: dict[str, Any] | None = None
    child_environment = os.environ | {"PYTHONPATH": _with_root(), "PYTHONUNBUFFERED": "1"} | environment
    with open(log, "w", encoding="utf-8") as output:
        # Same process group: Ctrl-C reaches the stage. It dies with this process, a torchrun in between included.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=child_environment,
            preexec_fn=die_with_parent,
        )
        on_event({"event": "started", "pid": process.pid})
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None  # read once more after the end: the last events count
                position, fresh = _read_events(events, position)
                for event in fresh:
                    if event["event"] == "error":
                        failure = event
                    on_event(event)
                on_event({"event": "tick"})
                if not ended:
                    time.sleep(POLL_SECONDS)
        except BaseException:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    if process.returncode != 0:
        if failure is not None and failure["kind"] != "defect":
            raise StageFailed(failure["text"])
        reason = failure["text"] if failure else _last_line(log) or f"exit code {process.returncode}"
        if process.returncode == -9:
            reason = "killed (signal 9), most likely by the kernel for want of memory"
        raise StageFailed(
            f"{program} failed: {reason}. Its log: {log}. Fix the cause and run the same command: what is done is kept."
        )


def python_command(program: str, spec_path: Path) -> tuple[list[str], dict[str, str]]:
    """(argv, extra environment) of a single-process stage."""
    return [sys.executable, "-m", program, str(spec_path)], {}


def _with_root() -> str:
    """PYTHONPATH under which a stage finds the packages of this very checkout, installed or not."""
    existing = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{existing}" if existing else str(ROOT)


def _read_events(path: Path, position: int) -> tuple[int, list[dict[str, Any]]]:
    """Whole lines after `position`; a line still being written waits for the next call."""
    with open(path, "rb") as handle:
        handle.seek(position)
        chunk = handle.read()
    end = chunk.rfind(b"\n") + 1
    return position + end, [json.loads(line) for line in chunk[:end].splitlines() if line.strip()]


_RULE = re.compile(r"\W*$")
_EXCEPTION = re.compile(r"^(\[rank\d+\]:\s*)?([A-Za-z_][\w.]*(Error|Exception|Interrupt)|torch\.\S*OutOfMemoryError)\b.*")
_LAUNCHER = ("ChildFailedError", "SignalException")


def _last_line(log: Path) -> str:
    """What a log says of its end: the last exception that is not the launcher's own, else the last line with a word in it.

    torchrun closes the log of a failed rank with a summary of its own, below that rank's traceback.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if not _RULE.match(line.strip())]
    raised = [line for line in lines if _EXCEPTION.match(line) and not any(name in line for name in _LAUNCHER)]
    said = (raised or lines or [""])[-1][:300]
    if "out of memory" in said.lower():
        said += " (lower micro_batch_size or batch_tokens, set gradient_checkpointing, or a higher zero_stage)"
    return said
