"""What is reported of a reward model on held-out pairs. Pure functions on rewards and lengths."""

from typing import Any

from train.calibration import best_temperature, expected_calibration_error, log_loss, reliability, sigmoid, win
from train.statistics import spearman, wilson_interval


def heldout_metrics(rows: list[dict[str, Any]], chosen: list[float], rejected: list[float], tokens: list[int]) -> dict[str, Any]:
    """Figures of held-out pairs; `rows` have a "source".

    `chosen`, `rejected`: rewards of each pair; `tokens`: lengths of the chosen answers, then of the rejected.
    heldout_accuracy with its 95 % interval (Wilson), overall and by source, equal rewards (heldout_ties) counting half;
    heldout_ece, heldout_log_loss (nats), heldout_temperature: see `train.calibration`; heldout_margin: mean difference;
    length_correlation: Spearman of reward and answer length (tokens) over all answers; for the rest see `length_bias`.
    """
    differences = [c - r for c, r in zip(chosen, rejected, strict=True)]
    wins = [0.5 if d == 0 else float(d > 0) for d in differences]
    low, high = wilson_interval(sum(wins), len(wins))
    half = len(wins)
    return {
        "heldout_accuracy": sum(wins) / len(wins),
        "heldout_low": low,
        "heldout_high": high,
        "heldout_n": len(wins),
        "heldout_ties": differences.count(0.0),
        "heldout_by_source": by_source([row["source"] for row in rows], wins),
        "heldout_ece": expected_calibration_error(reliability([sigmoid(d) for d in differences])),
        "heldout_log_loss": log_loss(differences),
        "heldout_temperature": best_temperature(differences),
        "heldout_margin": sum(differences) / len(wins),
        "length_correlation": spearman([*chosen, *rejected], [float(n) for n in tokens]),
        **length_bias(differences, [a - b for a, b in zip(tokens[:half], tokens[half:], strict=True)]),
    }


def chance_warning(metrics: dict[str, Any]) -> str | None:
    """What to tell the user of `heldout_metrics` whose interval includes a coin's 50 %; None where it does not."""
    if metrics["heldout_low"] > 0.5:
        return None
    value, low, high = (f"{100 * metrics[f'heldout_{name}']:.1f}" for name in ("accuracy", "low", "high"))
    return (
        f"The held-out accuracy of {value} % (95 %: {low} to {high}, n {metrics['heldout_n']}) cannot be told from a coin's, and "
        "iterations would optimise noise; train on more pairs, or hold out more."
    )


def by_source(sources: list[str], wins: list[float]) -> dict[str, dict[str, float | int]]:
    """Accuracy of each source with its 95 % interval (Wilson) and n."""
    found: dict[str, list[float]] = {}
    for source, one in zip(sources, wins, strict=True):
        found.setdefault(source, []).append(one)
    table: dict[str, dict[str, float | int]] = {}
    for source, of_source in sorted(found.items()):
        low, high = wilson_interval(sum(of_source), len(of_source))
        table[source] = {"accuracy": sum(of_source) / len(of_source), "low": low, "high": high, "n": len(of_source)}
    return table


def length_bias(differences: list[float], gaps: list[int]) -> dict[str, float | None]:
    """How far a preference follows length inside pairs: reward differences and length gaps, chosen minus rejected.

    length_correlation_within: Spearman of difference and gap with every pair in both orders, so that it does not depend on
    which side is called first; longer_preferred: share of pairs of unequal length whose longer answer gets the higher
    reward, and longer_chosen: the share in which people chose it. None without such pairs.
    """
    unequal = [(d, g) for d, g in zip(differences, gaps, strict=True) if g]
    within = spearman([*differences, *(-d for d in differences)], [float(g) for g in [*gaps, *(-g for g in gaps)]])
    return {
        "length_correlation_within": within,
        "longer_preferred": sum(win(sigmoid(d if g > 0 else -d)) for d, g in unequal) / len(unequal) if unequal else None,
        "longer_chosen": sum(g > 0 for _, g in unequal) / len(unequal) if unequal else None,
    }
