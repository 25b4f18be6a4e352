"""Calibration: closed forms, and a check against the log-loss that is minimised."""

import math
import random

import pytest

from train.calibration import best_temperature, expected_calibration_error, log_loss, reliability, sigmoid


def test_the_error_is_the_mean_gap_of_the_bins():
    # Bin [0.6, 0.65): 0.62 right, 0.38 wrong (confidence 0.62); bin [0.95, 1]: 1.0 right.
    table = reliability([0.62, 0.38, 1.0])
    assert [(row["n"], row["accuracy"]) for row in table] == [(2, 0.5), (1, 1.0)]
    assert (table[0]["low"], table[0]["high"], table[0]["confidence"]) == pytest.approx((0.6, 0.65, 0.62))
    assert expected_calibration_error(table) == pytest.approx((2 * 0.12 + 0) / 3)
    assert table[0]["accuracy_low"] < 0.5 < table[0]["accuracy_high"]


def test_a_tie_is_half_right_and_so_without_error():
    assert expected_calibration_error(reliability([0.5] * 7)) == 0


def test_judgments_drawn_at_their_own_confidence_are_calibrated_and_bold_ones_are_not():
    generator = random.Random(0)
    honest, bold = [], []
    for _ in range(20_000):
        p = generator.uniform(0.5, 1)
        right = generator.random() < p
        honest.append(p if right else 1 - p)
        q = sigmoid(3 * math.log(p / (1 - p)))
        bold.append(q if right else 1 - q)
    assert expected_calibration_error(reliability(honest)) < 0.02
    assert expected_calibration_error(reliability(bold)) > 0.1


def test_the_best_temperature_minimises_the_log_loss_and_is_found_again_after_scaling():
    generator = random.Random(1)
    differences = [generator.gauss(0.7, 2) for _ in range(400)]
    best = best_temperature(differences)
    around = [log_loss([d / t for d in differences]) for t in (best * 0.99, best, best * 1.01)]
    assert min(around) == around[1]
    assert best_temperature([3 * d for d in differences]) == pytest.approx(3 * best)
    assert best_temperature([1.0, 2.0]) is None and best_temperature([1.0, -2.0]) is None


def test_log_loss_and_sigmoid_do_not_overflow():
    assert log_loss([0.0]) == pytest.approx(math.log(2)) and log_loss([-1000.0, 1000.0]) == pytest.approx(500)
    assert sigmoid(-1000.0) == 0.0 and sigmoid(1000.0) == 1.0 and sigmoid(0.0) == 0.5
