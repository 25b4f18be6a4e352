"""Runs generated code in bubblewrap: one sandbox per program, no network, no files of ours, hard limits.

Contained: every namespace is unshared, the file system is a read-only view of the system folders and of this very
interpreter, with a small writable /tmp; no further user namespaces can be made; the environment is empty; a program is
killed with all its descendants when its time is up. RLIMIT_NPROC does not bind root, so root first becomes nobody.
Inside, the tests run in a process of their own that calls the generated code's functions through a pipe
(`sandbox_child.py`): it alone holds the expected values and the random token that means "passed". Memory is limited per
process, not per sandbox. Uncontained (`unsafe_exec`) none of this is promised but the time limit.
"""

import atexit
import json
import marshal
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import BoundedSemaphore

from core.errors import SandboxUnavailable

BUBBLEWRAP = "bubblewrap"
UNSAFE = "unsafe_exec"
TESTS = "apart-1"
"""How programs are tested: part of the identity of a verdict. 1: tests in a process of their own."""
NOBODY = 65534
WRITABLE_BYTES = 64 << 20
STARTUP_SECONDS = 30.0
REPORT_BYTES = 64 << 10
OUTPUT_BYTES = 256 << 20
_CHILD = Path(__file__).with_name("sandbox_child.py")
# Slow to import and common: imported once, before the sandbox's two processes part, where the program names them.
_SLOW_MODULES = (
    "typing",
    "re",
    "collections",
    "functools",
    "hashlib",
    "random",
    "datetime",
    "decimal",
    "fractions",
    "statistics",
)
_INSTALL = "install it with `apt-get install bubblewrap` (0.8 or newer), or set unsafe_exec to run generated code uncontained"


@dataclass(frozen=True)
class Program:
    """Code that nobody trusts, and the tests that it must pass."""

    code: str
    tests: str = ""
    """Python that calls the code's functions; runs apart from them. It may use `harness` (`sandbox_child.Tools`)."""
    names: tuple[str, ...] = ()
    """Names that the tests take from the code: functions, classes and values."""
    given: str = ""
    """Definitions of the problem that the tests use: run before them; `names` replace those of the same name."""
    data: bytes = b""
    """What the tests find as `harness.data`."""


@dataclass(frozen=True)
class Outcome:
    """What became of one program."""

    status: str
    """passed | failed (it raised or ended early) | timeout | error (the sandbox, not the program, is at fault)."""
    detail: str
    """Tail of the traceback or of the sandbox's message; written by the program, so not to be believed."""
    seconds: float
    output: bytes = b""
    """What the tests left as `harness.output`, where they passed."""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@cache
def probe() -> str:
    """The mode in which code can be contained here ("bubblewrap"), checked by running one program.

    Raises SandboxUnavailable, naming the fix, when bubblewrap is absent, too old, or denied user namespaces.
    """
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable(f"Generated code cannot be contained: bubblewrap is not installed; {_INSTALL}.")
    if "--disable-userns" not in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout:
        raise SandboxUnavailable(
            f"Generated code cannot be contained: this bubblewrap is too old (no --disable-userns); {_INSTALL}."
        )
    try:
        outcome = run_program("", timeout=10.0, mode=BUBBLEWRAP)
    except PermissionError as error:  # root of a user namespace that maps no other user
        outcome = Outcome("error", f"cannot become user {NOBODY}: {error}", 0.0)
    if not outcome.passed:
        raise SandboxUnavailable(
            f"Generated code cannot be contained: bubblewrap fails here ({outcome.detail.strip() or outcome.status}); allow user "
            "namespaces (`sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0`, or run the "
            "container with a seccomp profile that permits them), or set unsafe_exec to run generated code uncontained."
        )
    return BUBBLEWRAP


def run_program(
    program: Program | str, timeout: float = 3.0, mode: str = BUBBLEWRAP, slot: AbstractContextManager = nullcontext()
) -> Outcome:
    """Run one program; it passes when code and tests run to their end within `timeout` seconds of wall time.

    A string is code without tests. The clock starts when the program does, not when the sandbox does; `slot` is held while
    it runs. No process of it is left when this returns.
    """
    if isinstance(program, str):
        program = Program(program)
    token = secrets.token_hex(16)
    token_in, token_out = os.pipe()
    report_in, report_out = os.pipe()
    info_in, info_out = os.pipe()
    source_fd = os.memfd_create("program")
    try:
        with os.fdopen(os.dup(source_fd), "wb") as handle:
            handle.write(_child() + marshal.dumps((program.code, program.given, program.tests, program.names, program.data)))
            handle.flush()
            os.lseek(source_fd, len(_child()), os.SEEK_SET)
        process = subprocess.Popen(
            _command(mode, source_fd, report_out, info_out, timeout, _imports(program)),
            stdin=token_in,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(source_fd, report_out, info_out),
            cwd="/",
            env={},
            start_new_session=True,
            **_identity(mode),
        )
    except BaseException:
        for descriptor in (report_in, info_in, token_out):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (token_in, report_out, info_out, source_fd):
            os.close(descriptor)
    try:
        with slot:
            with suppress(BrokenPipeError):  # a sandbox that did not start: `_watch` says so
                os.write(token_out, token.encode())
            return _watch(process, report_in, token.encode(), timeout)
    finally:
        os.close(token_out)
        _kill(process, info_in)
        os.close(report_in)
        os.close(info_in)
        process.stderr.close()


def run_many(
    programs: Sequence[Program | str],
    timeout: float | Sequence[float] = 3.0,
    mode: str = BUBBLEWRAP,
    workers: int | None = None,
) -> list[Outcome]:
    """Run programs side by side (default: one per core); a timeout or a sandbox error counts only after one more run alone.

    `timeout` is one for all, or one for each. While some run, the sandboxes of the next are made and those of the last
    cleared away: the kernel lets both wait more than work.
    """
    limits = list(timeout) if isinstance(timeout, Sequence) else [timeout] * len(programs)
    running = workers or len(os.sched_getaffinity(0))
    slots = BoundedSemaphore(running)
    with ThreadPoolExecutor(2 * running) as pool:
        outcomes = list(pool.map(lambda program, limit: run_program(program, limit, mode, slots), programs, limits))
    return [
        run_program(program, limit, mode) if outcome.status in ("timeout", "error") else outcome
        for program, limit, outcome in zip(programs, limits, outcomes, strict=True)
    ]


def _watch(process: subprocess.Popen, report: int, token: bytes, timeout: float) -> Outcome:
    """Read the report until the token, the end of the process, or the deadline."""
    received, began = b"", time.monotonic()
    deadline, started = began + STARTUP_SECONDS, False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([report], [], [], left)[0]:
            status = "timeout" if started else "error"
            return Outcome(
                status, "" if started else f"the sandbox did not start within {STARTUP_SECONDS:g} s", time.monotonic() - began
            )
        chunk = os.read(report, 4096)
        if chunk and not started:  # the first byte is the child's own: it is sent before the program is compiled
            began, started = time.monotonic(), True
            deadline = began + timeout
        received += chunk
        seconds = time.monotonic() - began
        if b"T" + token in received:
            return _passed(report, received.partition(b"T" + token)[2], deadline, seconds)
        if not started and not chunk:
            os.set_blocking(process.stderr.fileno(), False)
            message = process.stderr.read(4096) or b""
            return Outcome("error", message.decode(errors="replace"), seconds)
        if not chunk or len(received) > REPORT_BYTES:
            return Outcome("failed", received[1:].removeprefix(b"F").decode(errors="replace")[-2000:], seconds)


def _passed(report: int, received: bytes, deadline: float, seconds: float) -> Outcome:
    """The outcome of a program that passed, its output read to the end; `received` is what followed the token."""
    parts, size = [received], len(received)
    while size < 8 or size < 8 + int.from_bytes(b"".join(parts)[:8], "little"):
        left = deadline - time.monotonic()
        chunk = os.read(report, 1 << 20) if left > 0 and select.select([report], [], [], left)[0] else b""
        if not chunk or size > OUTPUT_BYTES:
            return Outcome("timeout" if left <= 0 else "failed", "the output was cut off", seconds)
        parts.append(chunk)
        size += len(chunk)
        parts = [b"".join(parts)] if size < 4096 else parts
    received = b"".join(parts)
    return Outcome("passed", "", seconds, received[8 : 8 + int.from_bytes(received[:8], "little")])


def _kill(process: subprocess.Popen, info: int) -> None:
    """Kill the tree and wait for its end.

    Bubblewrap itself may end while the kernel is still clearing the namespace, so the namespace's init, which ends after
    all else in it, is waited for. It is never signalled by number: --die-with-parent kills it, and a number can be reused.
    """
    init = _namespace_init(info)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if init is not None:
        select.select([init], [], [], 10.0)
        os.close(init)


def _namespace_init(info: int) -> int | None:
    """A pidfd of the process that is PID 1 in the sandbox; None when there is none (any more).

    Bubblewrap writes its report before it lets the program start, so the first object is never the program's.
    """
    os.set_blocking(info, False)
    try:
        report = os.read(info, 4096).decode(errors="replace")
    except BlockingIOError:
        return None
    if not report:
        return None
    try:
        return os.pidfd_open(json.JSONDecoder().raw_decode(report.lstrip())[0]["child-pid"])
    except ProcessLookupError:
        return None


def _imports(program: Program) -> str:
    """Slow modules that both code and tests may import, comma-separated."""
    words = set(re.findall(r"^\s*(?:from|import)\s+(\w+)", f"{program.given}\n{program.tests}\n{program.code}", re.MULTILINE))
    return ",".join(name for name in _SLOW_MODULES if name in words)


def _command(mode: str, source_fd: int, report_fd: int, info_fd: int, timeout: float, imports: str) -> list[str]:
    python = os.path.realpath(sys.executable)
    start = f"import marshal, os; exec(marshal.loads(os.pread({source_fd}, {len(_child())}, 0)))"
    child = [python, "-I", "-S", "-c", start, str(source_fd), str(report_fd), str(int(timeout) + 2), imports]
    if mode == UNSAFE:
        return child
    return [*_bubblewrap(), "--info-fd", str(info_fd), "--", *child]


@cache
def _child() -> bytes:
    """`sandbox_child.py` as a marshalled code object: compiling it takes as long as all else that it does."""
    return marshal.dumps(compile(_CHILD.read_text(), _CHILD.name, "exec"))


@cache
def _bubblewrap() -> tuple[str, ...]:
    arguments = [shutil.which("bwrap") or "bwrap"]
    arguments += ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"]
    arguments += ["--hostname", "sandbox", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        folder = Path("/") / name
        if folder.is_symlink():
            arguments += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.is_dir():
            arguments += ["--ro-bind", str(folder), str(folder)]
    base = Path(os.path.realpath(sys.base_prefix))
    if not base.is_relative_to("/usr"):
        arguments += ["--ro-bind", str(_readable(base)), str(base)]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        arguments += ["--size", str(WRITABLE_BYTES), "--tmpfs", folder]
    # bubblewrap's root is itself a tmpfs without a size limit
    arguments += ["--remount-ro", "/", "--chdir", "/tmp"]
    return tuple(arguments)


def _readable(base: Path) -> Path:
    """`base`, or a copy of the interpreter where nobody can read it (root's home is closed to others)."""
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in [base, *base.parents]):
        return base
    copy = Path(tempfile.mkdtemp(prefix="sandbox-python-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    unneeded = shutil.ignore_patterns("test", "site-packages", "config-*", "ensurepip", "idlelib", "tkinter", "turtledemo", "*.a")
    for folder in {Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base)})), base / "lib", base / "bin"}:
        target = copy / folder.relative_to(base)
        if folder.name.startswith("python"):
            shutil.copytree(folder, target, ignore=unneeded, symlinks=True, copy_function=_link_or_copy)
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file() and (".so" in file.name or file.name.startswith("python")):
                _link_or_copy(file, target / file.name)
    return copy


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or links to foreign files are forbidden
        shutil.copy2(source, target, follow_symlinks=False)


def _identity(mode: str) -> dict:
    """Popen arguments that turn root into nobody. Uncontained, root stays: nobody may not be able to read the interpreter."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if mode == BUBBLEWRAP and os.geteuid() == 0 else {}
