"""Training curves as a training leaves them: the trainer's own log, which its rolling checkpoints keep, sealed with the weights.

The events of a stage are lost with a runner that is killed beside it; what is sealed is the whole curve, whatever was killed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.artifacts import write_rows

FILE = "curves.jsonl"
"""In a training's artifact: {"step": steps done, metric: value, ...} a line."""

HELD_OUT = {"eval_rewards/accuracies": "held_out/accuracy", "eval_rewards/margins": "held_out/margin"}
"""What is kept of trl's evaluation on held-out pairs: its name there and ours."""


def values_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """The curve values of one entry of a trainer's log; {} of one that is no point of a curve, as the summary at the end."""
    held_out = {ours: float(entry[theirs]) for theirs, ours in HELD_OUT.items() if theirs in entry}
    if "loss" not in entry:
        return held_out
    values = {name: float(value) for name, value in entry.items() if isinstance(value, int | float)}
    return {name: value for name, value in values.items() if name not in ("epoch", "step")} | held_out


def write_curves(folder: Path, log_history: Iterable[Mapping[str, Any]]) -> None:
    """Write `folder/curves.jsonl` from `TrainerState.log_history`."""
    points = [(entry["step"], values_of(entry)) for entry in log_history]
    write_rows(folder / FILE, [{"step": step} | values for step, values in points if values])
