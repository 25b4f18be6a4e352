"""Time Arena-Hard's score with 1,000 bootstrap rounds by prompt, beside the reference's own method at 1,000 rounds.

    python -m benchmarks.arena_hard [--reference DIR] [--rounds 1000]

Needs HARNESS_DATA. DIR is a checkout of lmarena/arena-hard-auto v0.1, whose `compute_mle_elo` and `get_bootstrap_result`
(`show_result.py` or `utils_math.py`) run in a process of their own; without it only ours are timed.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from evals.benchmark import read_jsonl
from evals.chat.arena_scores import points
from evals.statistics import mean_interval

MODEL, BASELINE = "gpt-4-0613", "gpt-4-0314"
_PEER = """
import sys, time
import pandas as pd
sys.path.insert(0, sys.argv[1])
try:
    from utils_math import compute_mle_elo, get_bootstrap_result
except ImportError:
    from show_result import compute_mle_elo, get_bootstrap_result
battles = pd.read_json(sys.argv[2], lines=True)
battles = battles[(battles.model_a == sys.argv[3]) | (battles.model_b == sys.argv[3])].reset_index(drop=True)
began = time.perf_counter()
get_bootstrap_result(battles, compute_mle_elo, int(sys.argv[4]))
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    folder = Path(os.environ["HARNESS_DATA"]) / "arena_hard"
    rows = read_jsonl(folder / "model_judgment" / "gpt-4-1106-preview" / f"{MODEL}.jsonl.gz")
    games = [(row["question_id"], *points(game["score"], g)) for row in rows for g, game in enumerate(row["games"], 1)]
    prompts, values, weights = zip(*games, strict=True)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        interval = mean_interval(100 * np.array(values), prompts, weights, support=(0, 100), resamples=given.rounds)
        times.append(time.perf_counter() - began)
    ours = statistics.median(times[1:])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"ours, {given.rounds} rounds by prompt: {1000 * ours:.1f} ms ({interval.value:.2f})")
    if given.reference is None:
        print("reference: not timed; give a checkout with --reference")
        return
    battles = folder / "battles_v0.1_official_gpt-4-1106-preview_judge_2models.jsonl.gz"
    command = [sys.executable, "-c", _PEER, str(given.reference), str(battles), MODEL, str(given.rounds)]
    peer = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"reference, {given.rounds} rounds of battles: {peer:.2f} s; ours is {peer / ours:.0f} times as fast")


if __name__ == "__main__":
    main()
