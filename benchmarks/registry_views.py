"""Time the leaderboard's queries on a registry of 1,000 checkpoints x 9 benchmarks.

    python -m benchmarks.registry_views [--checkpoints 1000] [--samples 0] [--url postgresql://...]

The registry is made in a temporary folder unless --url names an empty database. `--samples` stores so many answers
in all, to see that the leaderboard does not read them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from db import Registry
from db.views import groups, iteration_curves, leaderboard, rank_ranges, run_status, runs, scores_of, training_curves
from scripts.synthetic_registry import BENCHMARKS, fill


def timed(registry: Registry, view: Callable[..., Any], repeat: int = 7) -> tuple[float, float]:
    """Median and slowest of `repeat` runs, each in a new session, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        with registry.read() as session:
            view(session)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times), max(times)


def main() -> None:
    """Fill a registry and print one line per view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--url", help="an empty database (default: SQLite in a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry.open(options.url or f"sqlite:///{folder}/registry.db")
        started = time.perf_counter()
        fill(registry, options.checkpoints, options.samples)
        print(
            f"{options.checkpoints} checkpoints x {len(BENCHMARKS)} benchmarks written in {time.perf_counter() - started:.1f} s"
        )
        with registry.read() as session:
            board = leaderboard(session)
        column = {row.checkpoint_id: row.cells["alpaca_eval"] for row in board}
        views = {
            "leaderboard": leaderboard,
            "leaderboard of one run": lambda session: leaderboard(session, run="synthetic-1"),
            "leaderboard of one benchmark": lambda session: leaderboard(session, benchmarks=["alpaca_eval"]),
            "groups": lambda session: groups(board),
            "rank_ranges of one column": lambda session: rank_ranges(column),
            "runs": runs,
            "run_status": lambda session: run_status(session, "synthetic-1"),
            "iteration_curves": lambda session: iteration_curves(session, "synthetic-1"),
            "training_curves": lambda session: training_curves(session, "synthetic-1"),
            "scores_of": lambda session: scores_of(session, board[0].checkpoint_id),
        }
        for name, view in views.items():
            median, slowest = timed(registry, view)
            print(f"{name:30s} {median:8.1f} ms  (slowest {slowest:.1f})")
        registry.close()


if __name__ == "__main__":
    main()
