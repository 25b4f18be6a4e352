"""Every program of the corpus is contained, ends in time, does not pass, and leaves nothing behind."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.errors import SandboxUnavailable
from evals.code import hull, sandbox
from tests.escape_corpus import CORPUS

TIMEOUT = 1.0
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9\ncheck(f)\n"


@dataclass
class Ran:
    outcome: sandbox.Outcome
    seconds: float


@pytest.fixture(scope="module", params=["in a hull", "alone"])
def contained(request: pytest.FixtureRequest):
    """Each way in which a sandbox is made."""
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    if request.param == "in a hull" and not sandbox.nests():
        pytest.skip("namespaces do not nest on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "nests", lambda: request.param == "in a hull")
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, contained: None):
    """(what became of each program, name of their mark, secret, listener): all run once, two at a time."""
    secret = tmp_path_factory.mktemp("user") / "secret.txt"
    secret.write_text("secret")
    mark = f"escaped-{os.getpid()}-{time.monotonic_ns()}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known = {
            "secret": repr(str(secret)),
            "home": repr(str(Path.home())),
            "mark": repr(mark),
            "port": listener.getsockname()[1],
        }

        def run(source: str) -> Ran:
            began = time.monotonic()
            outcome = sandbox.run_program(sandbox.Program(source.format(**known), TESTS, ("f",)), TIMEOUT)
            return Ran(outcome, time.monotonic() - began)

        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(CORPUS, pool.map(run, CORPUS.values()), strict=True))
        listener.setblocking(False)
        yield found, mark, secret, listener


def test_the_corpus_is_large_and_an_honest_program_passes_its_tests(ran):
    assert len(CORPUS) >= 60
    for name, source in CORPUS.items():
        if name not in ("not Python", "null byte"):
            compile(source.format(secret="''", home="''", mark="''", port=1), name, "exec")
    assert sandbox.run_program(sandbox.Program("def f(x): return x * x", TESTS, ("f",)), 5.0).passed


@pytest.mark.parametrize("name", CORPUS)
def test_a_program_is_contained_and_does_not_pass(name: str, ran):
    one = ran[0][name]
    assert one.outcome.status in ("failed", "timeout"), one
    assert one.seconds < TIMEOUT + 2, one


def test_nothing_is_left_of_them(ran):
    _, mark, secret, listener = ran
    assert not processes("sleep 600"), "a process of a program is still running"
    if sandbox.nests():
        assert len(living_descendants(hull.current().process.pid)) == 2, "more than bubblewrap's init and the waiting process"
    hull.close()
    assert not processes("bwrap", parent=os.getpid()), "a sandbox of ours is still running"
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert secret.read_text() == "secret" and [p.name for p in secret.parent.iterdir()] == ["secret.txt"]
    for folder in ("/", "/tmp", "/var/tmp", "/dev/shm", "/usr", "/usr/lib"):
        assert not (Path(folder) / mark).exists()
    assert not list(Path(sandbox.__file__).parent.glob("**/sitecustomize.py"))
    assert Path("/proc/sys/kernel/hostname").read_text().strip() != mark


def test_the_process_with_the_verdict_is_out_of_reach(contained: None):
    """Tried by the code, counted by the tests: nothing of the checker can be opened, traced or read."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def reached(word):
    found = []
    parent = os.getppid()
    for what in ('mem', 'environ', 'maps', 'stack', 'auxv'):
        try: open('/proc/%d/%s' % (parent, what), 'rb').read(1); found.append(what)
        except OSError: pass
    try: os.listdir('/proc/%d/fd' % parent); found.append('fd')
    except OSError: pass
    if libc.ptrace(16, parent, 0, 0) == 0: found.append('ptrace')
    try: os.pidfd_open(parent) and libc.syscall(438, os.pidfd_open(parent), 0, 0) >= 0 and found.append('pidfd_getfd')
    except OSError: pass
    for fd in range(64):
        try: content = os.read(os.open('/proc/1/fd/%d' % fd, os.O_RDONLY | os.O_NONBLOCK), 1 << 20)
        except OSError: continue
        if word.encode()[::-1] in content: found.append('fd %d of the first process' % fd)
    return found
"""
    word = "expected-value"
    tests = f"hidden = {word!r}\nassert reached(hidden[::-1]) == [], reached(hidden[::-1])\n"
    outcome = sandbox.run_program(sandbox.Program(code, tests, ("reached",)), 5.0)
    assert outcome.passed, outcome.detail


def processes(word: str, parent: int | None = None) -> list[str]:
    """Command lines of the running processes that hold `word` (and have that parent)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            of = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended while we looked
            continue
        if word in command and parent in (None, of):
            found.append(command)
    return found


def living_descendants(pid: int) -> list[int]:
    """Processes below `pid` that are no zombies."""
    states = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            states[int(entry.name)] = (state, int(parent))
    found, wanted = [], [pid]
    while wanted:
        above = wanted.pop()
        below = [one for one, (_, parent) in states.items() if parent == above]
        found += [one for one in below if states[one][0] != "Z"]
        wanted += below
    return found
