"""The dashboard on a big registry: start, reruns, bytes, and a crowd of visitors while others write.

    python -m benchmarks.dashboard [--registry big.db] [--checkpoints 1000] [--samples 1000000] [--load 120]

Makes a synthetic registry (scripts/synthetic_registry.py) unless one is given, and visits its pages as sessions of their own
over the websocket, without a browser: what is timed is the server's work and its transport. Limits, from the project's
own targets: started in 4 s, a rerun in 300 ms, a page of samples in 150 ms, 0.2 MB a page; with `--load`, eight writing
processes and twenty visitors, who stay on a page for `--pause` seconds, for so many seconds: no error, 95 % of the pages
within 2 s.
"""

import argparse
import asyncio
import math
import os
import platform
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.streamlit_session import Run, Visitor
from db.registry import Registry
from scripts.synthetic_registry import BENCHMARKS, fill

ROOT = Path(__file__).resolve().parent.parent
SERVE = "import sys; from dashboard.serve import main; main(sys.argv[1], int(sys.argv[2]))"
WRITE = """
import sys, time
from core.fingerprint import digest
from db import Registry, models, upsert
from db.record import insert_ignore
registry, me, until, n = Registry.open(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3]), 0
while time.monotonic() < until:
    with registry.write() as session:
        run = upsert(session, models.Run, {"name": f"synthetic-writer-{me}"}, {
            "recipe_name": "synthetic", "recipe": {}, "recipe_hash": digest(me), "status": "running"})
        rows = [{"answer_set_id": 9 + int(me), "question_id": f"load-{me}-{n}-{i}", "turn": 1, "sample": 0, "prompt": "p",
                 "text": "synthetic " * 50, "output_tokens": 50, "prompt_tokens": 1, "detail": {}} for i in range(20)]
        insert_ignore(session, models.Answer, rows, ["answer_set_id", "question_id", "turn", "sample"])
    n += 1
    time.sleep(0.2)
print(n)
"""


@contextmanager
def serving(url: str) -> Iterator[tuple[str, float, int]]:
    """(origin, seconds from the start of the process until it is healthy, its id) of a dashboard."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", SERVE, url, str(port)], cwd=ROOT, stdout=subprocess.DEVNULL)
    origin = f"http://127.0.0.1:{port}"
    try:
        while time.perf_counter() - began < 90:
            if process.poll() is not None:
                sys.exit("the dashboard ended at once")
            try:
                with urllib.request.urlopen(f"{origin}/_stcore/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.02)
        yield origin, time.perf_counter() - began, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def places(checkpoints: int) -> dict[str, tuple[str, str]]:
    """name -> (page, query) of what is visited; the samples are the last evaluation's, the deepest in the table."""
    last = len(BENCHMARKS) * (checkpoints + 1) - 1
    return {
        "leaderboard": ("", ""),
        "leaderboard, one run": ("", "run=synthetic-1"),
        "iterations": ("iterations", "run=synthetic-1"),
        "compare": ("compare", ""),
        "checkpoint": ("checkpoint", ""),
        "samples": ("samples", f"evaluation={last}"),
        "samples, the next page": ("samples", f"evaluation={last}&after=50"),
        "judges": ("judges", ""),
        "runs": ("runs", "run=synthetic-1"),
        "costs": ("costs", ""),
        "health": ("health", ""),
    }


async def each_page(origin: str, checkpoints: int, repeat: int = 7) -> tuple[Run, dict[str, tuple[Run, list[Run]]]]:
    """The very first visit of the server, and per place the first visit and the later ones of a session."""
    async with Visitor(origin) as visitor:
        first = await visitor.visit()
    found = {}
    for name, place in places(checkpoints).items():
        async with Visitor(origin) as visitor:
            opened = await visitor.visit(*place)
            found[name] = (opened, [await visitor.visit(*place) for _ in range(repeat)])
    return first, found


async def crowd(
    origin: str, checkpoints: int, visitors: int, seconds: float, pause: tuple[float, float]
) -> list[tuple[str, Run]]:
    """(place, visit) of so many sessions, each going from place to place; it reads for `pause` seconds, drawn uniformly."""
    everywhere = list(places(checkpoints).items())
    until = time.monotonic() + seconds

    async def stroll(seed: int) -> list[tuple[str, Run]]:
        draw, seen = random.Random(seed), []
        # They do not come at the same instant.
        await asyncio.sleep(draw.uniform(0, pause[1]))
        async with Visitor(origin) as visitor:
            while time.monotonic() < until:
                name, place = draw.choice(everywhere)
                seen.append((name, await visitor.visit(*place)))
                await asyncio.sleep(draw.uniform(*pause))
        return seen

    return [run for seen in await asyncio.gather(*map(stroll, range(visitors))) for run in seen]


def load(chosen: argparse.Namespace, url: str, origin: str, server: int) -> None:
    """Print what the crowd met while the writers wrote, and who used the processor for it."""
    command, seconds, pause = [sys.executable, "-c", WRITE, url], chosen.load, tuple(chosen.pause)
    before = cpu_seconds(server), time.process_time(), _of_children()
    processes = [
        subprocess.Popen([*command, str(i), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in range(chosen.writers)
    ]
    visits = asyncio.run(crowd(origin, chosen.checkpoints, chosen.visitors, seconds, pause))
    used = cpu_seconds(server) - before[0], time.process_time() - before[1]
    written = [process.communicate(timeout=120)[0].strip() for process in processes]
    writing = _of_children() - before[2]
    failed = [process.returncode for process in processes if process.returncode]
    errors = [run.error for _, run in visits if run.error]
    said = (
        f"{chosen.writers} writers and {chosen.visitors} visitors with pauses of {pause[0]:g} to {pause[1]:g} s, {seconds:.0f} s"
    )
    print(f"\n{said}: {len(visits)} pages, {sum(int(count or 0) for count in written)} writes")
    print(_times([run for _, run in visits]) + " (p95 limit 2000)")
    for name in places(chosen.checkpoints):
        if runs := [run for place, run in visits if place == name]:
            print(f"  {name:24s} {_times(runs)}")
    print(f"processor: server {used[0]:.0f} s, writers {writing:.0f} s (their start included), visitors {used[1]:.0f} s")
    print(f"errors on pages: {len(errors)} {sorted(set(errors))[:3]}; writers that failed: {len(failed)}")


def _times(runs: list[Run]) -> str:
    times = sorted(run.milliseconds for run in runs)
    p50, p95 = statistics.median(times), times[math.ceil(0.95 * len(times)) - 1]
    return f"n {len(times):4d}, p50 {p50:5.0f} ms, p95 {p95:5.0f} ms, slowest {times[-1]:5.0f} ms"


def cpu_seconds(pid: int) -> float:
    """Processor time of a running process and all its threads (Linux: /proc/PID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _of_children() -> float:
    """Processor seconds of the children that have ended: of the writers, since the server has not."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one line per page, then the load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, help="a synthetic registry made before")
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.0, help="seconds of load; 0 leaves it out")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--pause", type=float, nargs=2, default=(3.0, 6.0), metavar=("LOW", "HIGH"), help="seconds on a page")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.registry or Path(folder) / "registry.db"
        url = f"sqlite:///{path.resolve()}"
        if not chosen.registry:
            registry = Registry.open(url)
            fill(registry, chosen.checkpoints, chosen.samples)
            registry.close()
        print(f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        print(f"{chosen.checkpoints} checkpoints x {len(BENCHMARKS)} benchmarks, {chosen.samples} samples")
        with serving(url) as (origin, started, server):
            first, pages = asyncio.run(each_page(origin, chosen.checkpoints))
            total = started + first.milliseconds / 1000
            print(f"cold start: {started:.2f} s until healthy, {total:.2f} s with its first page (limit 4)\n")
            print(f"{'page':24s} {'opened':>9s} {'rerun':>9s} {'slowest':>9s} {'received':>10s}")
            for name, (opened, later) in pages.items():
                times = [run.milliseconds for run in later]
                shown = f"{opened.milliseconds:6.0f} ms {statistics.median(times):6.0f} ms {max(times):6.0f} ms"
                print(f"{name:24s} {shown} {opened.received / 1e6:7.3f} MB", opened.error or "")
            if chosen.load:
                load(chosen, url, origin, server)


if __name__ == "__main__":
    main()
