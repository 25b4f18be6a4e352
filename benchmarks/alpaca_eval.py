"""Time of scoring one AlpacaEval model from its annotations file, beside the alpaca_eval package's own code, in one run.

    HARNESS_DATA=... python -m benchmarks.alpaca_eval [--model claude-2] [--repeats 5]

Both read the same annotations.json and the same gamed rows and end with raw and length-controlled win rates. Ours adds
intervals: 10,000 resamples of the raw rates, 1,000 refits of the length-controlled one; a third line leaves them
out. The package's only part that is replaced is its download of the gamed rows. Prints medians, ratios, and the numbers,
which must agree.
"""

import argparse
import gzip
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from core.paths import data_mirror
from evals.chat.alpaca_eval_metrics import summarise
from evals.chat.length_control import length_controlled, read_difficulty, read_gamed
from evals.formats.saved import get_format, read_rows


def timed(score: Callable[[], float], repeats: int) -> tuple[float, float]:
    """(median seconds after one run to warm up, the number computed)."""
    value, times = score(), []
    for _ in range(repeats):
        began = time.perf_counter()
        value = score()
        times.append(time.perf_counter() - began)
    return statistics.median(times), value


def ours(path: Path, files: dict[str, Path]) -> Callable[[], float]:
    made = get_format("alpaca_eval")
    options = {name: allowed[0] for name, allowed in made.options.items()}

    def score() -> float:
        (evaluation,) = made.read([path], options, files)
        return next(row.value for row in evaluation.scores if row.metric == "length_controlled_winrate") or 0.0

    return score


def point_only(path: Path, files: dict[str, Path]) -> Callable[[], float]:
    """What the package computes and no more: the same functions without the intervals."""

    def score() -> float:
        rows = read_rows(path)
        summarise([row["preference"] for row in rows])
        y, first, second = (
            np.array(column, dtype=float)
            for column in zip(*((r["preference"] - 1, len(r["output_1"]), len(r["output_2"])) for r in rows), strict=True)
        )
        difficulty = read_difficulty(files["difficulty"])[: len(rows)]
        return length_controlled(y, first, second, difficulty, read_gamed(files["gamed"])).win_rate

    return score


def theirs(path: Path, gamed: Path) -> Callable[[], float]:
    import pandas
    from alpaca_eval.metrics import glm_winrate

    def download(**_: Any) -> Path:
        return gamed

    def score() -> float:
        with mock.patch.object(glm_winrate, "hf_hub_download", download), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = pandas.read_json(path, orient="records")
            return float(glm_winrate.get_length_controlled_winrate(frame, save_weights_dir=None)["length_controlled_winrate"])

    return score


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="claude-2", help="one whose annotations_full_MODEL.json.gz is in HARNESS_DATA")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    mirror = data_mirror()
    if mirror is None:
        parser.error("set HARNESS_DATA: the annotations and the gamed rows are read from there")
    folder = mirror / "alpaca_eval"
    files = {
        "questions": folder / "eval_set_and_baseline_outputs.jsonl.gz",
        "gamed": folder / "df_gamed_reconstructed.csv.gz",
        "difficulty": folder / "instruction_difficulty_recovered.csv",
    }
    with tempfile.TemporaryDirectory() as temporary:
        plain = {}
        for name, source in (
            ("annotations.json", folder / f"annotations_full_{options.model}.json.gz"),
            ("df_gamed.csv", files["gamed"]),
        ):
            plain[name] = Path(temporary) / name
            with gzip.open(source) as packed, open(plain[name], "wb") as target:
                shutil.copyfileobj(packed, target)
        files["gamed"] = plain["df_gamed.csv"]
        point, point_value = timed(point_only(plain["annotations.json"], files), options.repeats)
        own, own_value = timed(ours(plain["annotations.json"], files), options.repeats)
        peer, peer_value = timed(theirs(plain["annotations.json"], plain["df_gamed.csv"]), options.repeats)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{options.model}, {options.repeats} repeats, {machine}")
    print(f"{'':<30}{'median s':>10}{'x alpaca_eval':>15}{'LC win rate':>14}")
    for name, seconds, value in (
        ("alpaca_eval, no intervals", peer, peer_value),
        ("harness, no intervals", point, point_value),
        ("harness, with intervals", own, own_value),
    ):
        print(f"{name:<30}{seconds:>10.3f}{seconds / peer:>15.2f}{value:>14.6f}")


if __name__ == "__main__":
    main()
