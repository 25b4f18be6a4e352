"""A DPO training that teaches nothing looks like one that runs: its loss stays where it began. Pure.

    standstill(trained.history, stage.settings)     # None, or a sentence with the likely causes

A message, not an error: a policy that starts at its reference and learns hard pairs in few steps may look the same.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, sqrt
from statistics import fmean, stdev
from typing import Any

LOG_2 = log(2)

# Losses of the pair's margin alone: (beta, label smoothing) -> their value at a margin of 0, where neither answer has gained on
# the other since the reference. By trl 1.16, `DPOTrainer._compute_loss`; every other loss also depends on something else.
AT_ZERO_MARGIN: dict[str, Callable[[float, float], float]] = {
    "sigmoid": lambda beta, e: LOG_2,
    "sigmoid_norm": lambda beta, e: LOG_2,
    "robust": lambda beta, e: LOG_2,
    "aot": lambda beta, e: LOG_2,
    "aot_unpaired": lambda beta, e: LOG_2,
    "hinge": lambda beta, e: 1.0,
    "apo_zero": lambda beta, e: 1.0,
    "ipo": lambda beta, e: 1 / (4 * beta**2),
    "exo_pair": lambda beta, e: -LOG_2 - (log(1 - e) + log(e)) / 2,
    "discopop": lambda beta, e: (LOG_2 + 1) / 2,
}

_QUARTER = 4
_FEWEST = 8
"""Logged steps below which no standard error can be told."""
_SAME = 0.01
"""Share of the loss at margin 0 beyond which it has moved, whatever its noise: 0.007 of log 2."""
_ROUNDING = 1e-5
"""Share of it that 16-bit activations may add where nothing is trained at all."""


def standstill(history: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> str | None:
    """One sentence where the loss did not move and the pairs are ranked no better than by a coin; else None.

    `history`: {"step", "loss", "rewards/accuracies"} of each logging step; `settings`: those of train.dpo. The first and the last
    quarter of the steps are compared: both means within 1 % of the loss at margin 0, their difference within two standard
    errors, and the last quarter's accuracy not above 1/2 by two of its own. (Below it is: pairs without any margin count as
    wrong.) None as well for losses whose value at margin 0 is not known, for sums, and below 8 logged steps.
    """
    at_zero = None if settings.get("added_losses") else AT_ZERO_MARGIN.get(settings["loss"])
    if at_zero is None or len(history) < _FEWEST:
        return None
    quarter = len(history) // _QUARTER
    first, last = history[:quarter], history[-quarter:]
    value = at_zero(settings["beta"], settings["label_smoothing"])
    begin, end = (fmean(entry["loss"] for entry in part) for part in (first, last))
    if max(abs(begin - value), abs(end - value)) > _SAME * value:
        return None
    noise = sqrt(sum(stdev(entry["loss"] for entry in part) ** 2 / quarter for part in (first, last)))
    if abs(end - begin) > max(2 * noise, _ROUNDING * value):
        return None
    steps = last[-1]["step"] - history[-quarter - 1]["step"]
    accuracy = fmean(entry["rewards/accuracies"] for entry in last)
    if accuracy - 0.5 > 2 * 0.5 / sqrt(steps * settings["batch_size"]):
        return None
    return (
        f"The loss stands at {end:.4f}, where it began and where a policy that learned nothing has it, and {accuracy:.0%} of the "
        f"pairs of the last {steps} steps are ranked as chosen, no more than by a coin: learning_rate "
        f"{settings['learning_rate']:g} may be too low, pure bf16 weights (precision: bf16) may round its updates away, or the "
        "chat template or the end of the turn may leave no difference between the answers to learn."
    )
