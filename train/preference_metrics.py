"""What is reported of a preference model on held-out pairs. Pure functions on its comparisons."""

from statistics import fmean
from typing import Any

from train.calibration import expected_calibration_error, reliability, win
from train.preference_model import Comparison
from train.reward_metrics import by_source
from train.statistics import wilson_interval


def heldout_metrics(sources: list[str], compared: list[Comparison]) -> dict[str, Any]:
    """Figures of pairs whose first response is the chosen one, both orders averaged; a tie (0.5) counts half.

    heldout_accuracy with its 95 % interval (Wilson), overall and by source (there with position_consistency);
    heldout_accuracy_one_order: mean accuracy without the averaging; heldout_ece: see `train.calibration`;
    position_consistency: share of pairs about which both orders agree; first_position_preference: mean probability of the
    response shown first (0.5 is unbiased).
    """
    wins = [win(c.probability) for c in compared]
    low, high = wilson_interval(sum(wins), len(wins))
    of_sources: dict[str, dict[str, Any]] = by_source(sources, wins)
    for source, row in of_sources.items():
        of_source = (c for name, c in zip(sources, compared, strict=True) if name == source)
        row["position_consistency"] = fmean(c.agree for c in of_source)
    return {
        "heldout_accuracy": fmean(wins),
        "heldout_low": low,
        "heldout_high": high,
        "heldout_n": len(wins),
        "heldout_by_source": of_sources,
        "heldout_accuracy_one_order": fmean((win(c.shown_first) + win(c.shown_second)) / 2 for c in compared),
        "heldout_ece": expected_calibration_error(reliability([c.probability for c in compared])),
        "position_consistency": fmean(c.agree for c in compared),
        "first_position_preference": fmean((c.shown_first + 1 - c.shown_second) / 2 for c in compared),
    }


def position_warning(metrics: dict[str, Any]) -> str | None:
    """What to tell the user whose model contradicts itself about most pairs when their order is turned round; else None."""
    if metrics["position_consistency"] >= 0.5:
        return None
    share = f"{100 * metrics['position_consistency']:.1f} %"
    return (
        f"Of {metrics['heldout_n']} held-out pairs only {share} get the same verdict in both orders: the position decides, "
        "not the answers; train on more pairs, or set preference.orders: both."
    )
