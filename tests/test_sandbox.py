"""The sandbox: honest programs pass, everything else is contained, and nothing outlives its time."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from core.errors import SandboxUnavailable
from evals.code import bubblewrap, hull, sandbox
from tests.test_escape_corpus import processes


@pytest.fixture(scope="module", autouse=True)
def contained():
    try:
        sandbox.probe()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))


def test_an_honest_program_passes_and_uses_the_standard_library():
    source = "import math, re, collections, hashlib, decimal, itertools, random, typing, heapq\nassert math.gcd(12, 18) == 6"
    assert sandbox.run_program(source).status == "passed"


def test_a_failed_assertion_fails_with_its_traceback():
    outcome = sandbox.run_program("x = 2\nassert x == 3, 'two is not three'")
    assert outcome.status == "failed" and "two is not three" in outcome.detail


OBJECTS = """
import collections, datetime, decimal, fractions, re
Point = collections.namedtuple("Point", "x y")
class Node:
    def __init__(self, value): self.value, self.next = value, None
    def __eq__(self, other): return True
def shout(x): return x
def values(): return [Point(1, 2), collections.Counter("aa"), fractions.Fraction(1, 3), decimal.Decimal("0.1"), range(3),
                      datetime.date(2020, 1, 2), {1, 2}, frozenset({3}), 1 + 2j, b"x", None, 10 ** 400, float("inf"), chr(0xD800)]
def total(node): return node.value + (total(node.next) if node.next else 0)
def count(n): yield from range(n)
def extend(values): values.append(4)
def fails(kind): raise kind("said")
def match(text): return re.match("a", text)
"""


def apart(tests: str, names: str, code: str = OBJECTS, **fields) -> sandbox.Outcome:
    return sandbox.run_program(sandbox.Program(code, tests, tuple(names.split()), **fields), 5.0)


@pytest.mark.parametrize(
    ("names", "tests"),
    [
        (
            "values",
            "import datetime, decimal, fractions\nv = values()\n"
            "assert v[:5] == [(1, 2), {'a': 2}, fractions.Fraction(1, 3), decimal.Decimal('0.1'), range(3)]\n"
            "assert v[5:8] == [datetime.date(2020, 1, 2), {1, 2}, frozenset({3})] and v[8:11] == [1 + 2j, b'x', None]\n"
            "assert v[11:] == [10 ** 400, float('inf'), chr(0xD800)] and type(v[0]) is tuple",
        ),
        ("Node total", "a = Node(3)\na.next = Node(4)\nassert total(a) == 7 and a.next.value == 4"),
        ("Node", "assert Node(1) != Node(1) and Node(1) != 1"),
        ("shout Node", "a = Node(5)\nassert shout([a, 1])[1] == 1 and shout([a])[0].value == 5"),
        ("count", "assert list(count(3)) == [0, 1, 2] and count(3) != [0, 1, 2]"),
        ("extend", "a = [1]\nassert extend(a) is None and a == [1, 4]"),
        ("fails", "for kind in (ValueError, KeyError):\n    try: fails(kind)\n    except kind: continue\n    assert False"),
        ("match", "assert match('b') is None and match('abc') is not None and match('abc').group() == 'a'"),
    ],
)
def test_values_and_objects_travel_between_code_and_tests(names: str, tests: str):
    outcome = apart(tests, names)
    assert outcome.passed, outcome.detail


def test_tests_run_apart_from_the_code():
    code = "import math\nmath.sqrt = lambda x: 2\ndef f(x): return 2\ndef helper(x): return 2\n"
    same = "import math\nassert f(9) == {}\n"
    assert apart(same.format("math.sqrt(9)"), "f", code).status == "failed"
    assert apart(same.format("helper(9)"), "f", code, given="def helper(x): return 3").status == "failed"
    assert apart(same.format("helper(9)"), "f helper", code, given="def helper(x): return 3").passed
    assert apart("assert f(1) == 2", "f", "def g(x): return 2", given="def f(x): return 2").status == "failed"


def test_calls_have_limits_of_their_own_and_tests_leave_an_output():
    tests = "harness.allow(0.2)\nassert f(0) == 1\nharness.output = harness.data[::-1] * 1000"
    assert apart(tests, "f", "def f(x): return 1", data=b"abc").output == b"cba" * 1000
    slow = "import time\ndef f(x):\n    try: time.sleep(600)\n    except BaseException: return 1"
    outcome = apart(f"try:\n    {tests!r}\n    exec({tests!r})\nexcept Exception: pass", "f", slow, data=b"abc")
    assert outcome.status == "failed" and "took longer than 0.2 s" in outcome.detail and outcome.seconds < 2


def test_threads_left_behind_do_not_hold_up_an_honest_program():
    began = time.monotonic()
    outcome = sandbox.run_program("import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()", timeout=5)
    assert outcome.passed and time.monotonic() - began < 4


def test_the_clock_is_the_program_s_own():
    assert sandbox.run_program("import time; time.sleep(0.8)", timeout=1.5).passed
    assert sandbox.run_program("import time; time.sleep(2)", timeout=1.0).status == "timeout"


def test_many_programs_keep_their_order_and_their_own_time():
    sources = [f"assert {i} % 3" for i in range(24)]
    assert [o.passed for o in sandbox.run_many(sources)] == [bool(i % 3) for i in range(24)]
    naps = ["import time; time.sleep(0.7)"] * 2
    assert [o.status for o in sandbox.run_many(naps, [0.2, 5.0])] == ["timeout", "passed"]


def test_a_timeout_counts_only_after_a_run_alone(monkeypatch: pytest.MonkeyPatch):
    calls = []
    slow_first = {"quick": ["passed"], "crowded": ["timeout", "passed"], "endless": ["timeout", "timeout"]}

    def scripted_run(source: str, timeout: float, mode: str, slot: object = None) -> sandbox.Outcome:
        """A mock: a machine so loaded that a good program times out once cannot be had on demand."""
        calls.append(source)
        return sandbox.Outcome(slow_first[source].pop(0), "", 0.0)

    monkeypatch.setattr(sandbox, "run_program", scripted_run)
    outcomes = sandbox.run_many(["quick", "crowded", "endless"], workers=1)
    assert [o.status for o in outcomes] == ["passed", "passed", "timeout"]
    assert calls == ["quick", "crowded", "endless", "crowded", "endless"]


def test_without_bubblewrap_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        sandbox.probe.__wrapped__()


def test_denied_user_namespaces_are_found_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    denied = tmp_path / "bwrap"
    denied.write_text(
        '#!/bin/sh\n[ "$1" = --help ] && echo --disable-userns && exit 0\n'
        "echo 'bwrap: No permissions to create namespace' >&2; exit 1\n"
    )
    denied.chmod(0o755)
    for folder in [denied.parent, *denied.parent.parents]:
        if os.geteuid() == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)
    monkeypatch.setattr(shutil, "which", lambda name: str(denied))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox, "nests", lambda: False)
    for cached in (bubblewrap._arguments, bubblewrap.alone):
        cached.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="No permissions to create namespace.*max_user_namespaces"):
            sandbox.probe.__wrapped__()
    finally:
        for cached in (bubblewrap._arguments, bubblewrap.alone, bubblewrap.around_many):
            cached.cache_clear()


def test_a_hull_that_ended_is_started_anew():
    if not sandbox.nests():
        pytest.skip("namespaces do not nest on this machine")
    first = hull.current()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert sandbox.run_program("x = 1").passed and hull.current() is not first


def test_a_network_that_is_used_again_holds_nothing_of_the_last_program():
    program = """
import os, socket, time
for family, address in ((socket.AF_INET, ("127.0.0.1", 4242)), (socket.AF_UNIX, "\\0somebody")):
    try: socket.socket(family).connect(address)
    except ConnectionRefusedError: pass
    else: raise RuntimeError("the last program still listens")
server = socket.create_server(("127.0.0.1", 4242))
named = socket.socket(socket.AF_UNIX)
named.bind("\\0somebody")
named.listen()
socket.create_connection(("127.0.0.1", 4242)).sendall(b"x")
assert server.accept()[0].recv(1) == b"x"
assert sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]) == ["lo"]
try: open("/proc/sys/net/ipv4/ip_default_ttl", "w")
except OSError: pass
else: raise RuntimeError("a setting of the network can be changed")
if os.fork() == 0: time.sleep(600)
"""
    outcomes = sandbox.run_many([program] * 12, timeout=5.0)
    assert [o.detail for o in outcomes if not o.passed] == []


def test_children_made_ahead_serve_programs_of_that_time_limit_only():
    if not sandbox.nests():
        pytest.skip("namespaces do not nest on this machine")
    made = hull.current()
    made.make_ahead(2)
    assert sandbox.run_program("x = 1", timeout=9.0).passed and len(made._ready) == 2
    assert sandbox.run_program("x = 1", timeout=hull.READY_TIMEOUT).passed and len(made._ready) == 1
    inside = made.process.pid
    hull.close()
    assert not Path(f"/proc/{inside}").exists() and sandbox.run_program("x = 1").passed


def test_where_namespaces_do_not_nest_each_program_has_a_bubblewrap(monkeypatch: pytest.MonkeyPatch):
    def refused(*_):
        """A mock: a kernel that refuses nested namespaces cannot be had on demand."""
        raise hull.StartFailed("unshare: Operation not permitted")

    monkeypatch.setattr(hull, "child", refused)
    assert not sandbox.nests.__wrapped__()
    monkeypatch.setattr(sandbox, "nests", lambda: False)
    assert sandbox.probe.__wrapped__() == sandbox.BUBBLEWRAP and sandbox.run_program("x = 1").passed


def test_uncontained_mode_has_limits_and_kills_the_process_group():
    assert sandbox.run_program("x = 1", mode=sandbox.UNSAFE).passed
    assert sandbox.run_program("import os; os._exit(0)", mode=sandbox.UNSAFE).status == "failed"
    assert sandbox.run_program("x = bytearray(10 << 30)", mode=sandbox.UNSAFE).status == "failed"
    nap = "import subprocess; subprocess.run(['/bin/sleep', '599'])"
    assert sandbox.run_program(nap, timeout=1.0, mode=sandbox.UNSAFE).status == "timeout"
    assert not processes("sleep 599")
    left = "import subprocess; subprocess.Popen(['/bin/sleep', '598'])"
    assert sandbox.run_program(left, mode=sandbox.UNSAFE).passed and not processes("sleep 598")


def test_the_sandbox_needs_no_model_library():
    imports = "import sys, evals.code.sandbox, evals.code.extraction"
    code = f"{imports}; sys.exit(bool({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([os.sys.executable, "-c", code], cwd=Path(sandbox.__file__).parents[2]).returncode == 0
