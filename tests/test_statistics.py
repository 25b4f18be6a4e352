"""Intervals and tests against closed forms, scipy and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evals.closed_form import failure_bounds, holm, minimum_detectable_effect, standard_error, t_quantile, wilson
from evals.statistics import bca_ends, mean_interval, paired_difference

# Whole numbers: a spread of 1e-60 is none after a shift.
NUMBERS = st.lists(st.integers(-100, 100), min_size=2, max_size=60)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 164), (37, 48), (500, 1000)])
def test_wilson_is_scipys(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_refuses_what_is_no_proportion():
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(0, 0)


def test_bootstrap_interval_is_close_to_the_normal_one_for_many_values():
    values = np.random.default_rng(1).exponential(size=2000)
    interval = mean_interval(values)
    half = 1.96 * standard_error(values)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_repeats_with_its_seed_and_moves_with_another():
    values = np.random.default_rng(2).normal(size=40)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values).low != mean_interval(values, seed=1).low


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits = 0
    for seed in range(400):
        interval = mean_interval(generator.normal(size=60), resamples=600, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.985


def test_bootstrap_covers_skewed_ratings_of_80_questions():
    """Ratings that crowd at 9 and 10, as of a strong model."""
    generator = np.random.default_rng(11)
    ratings, shares = np.array([1.0, 3.0, 9.0, 10.0]), [0.03, 0.05, 0.42, 0.5]
    truth, hits = float(ratings @ shares), 0
    for seed in range(600):
        interval = mean_interval(generator.choice(ratings, 80, p=shares), resamples=800, seed=seed)
        hits += interval.low <= truth <= interval.high
    assert 0.925 <= hits / 600 <= 0.975


def test_ends_are_scipys_bca_but_for_the_small_sample_widening():
    values = np.random.default_rng(12).exponential(size=400) ** 2
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", random_state=0).confidence_interval
    ours = mean_interval(values)
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    # Both reach further to the right of a right-skewed mean than to its left.
    assert ours.high - ours.value > 1.1 * (ours.value - ours.low)


def test_t_quantile_is_scipys():
    for freedom in (10, 31, 79, 163, 499, 804):
        for p in (0.9, 0.975, 0.995):
            assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-4)


def test_ends_of_draws_without_skew_or_bias_are_the_widened_percentiles():
    draws = np.linspace(-1, 1, 2001)
    low, high = bca_ends(draws, 0.0, 80)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 79) * math.sqrt(80 / 79))
    assert (low, high) == pytest.approx((2 * tail - 1, 1 - 2 * tail), abs=1e-6)
    # An acceleration that turns the map round ends at the extreme draw instead of crossing over.
    assert bca_ends(draws, 0.0, 80, acceleration=0.9)[1] == 1.0


def test_standard_error_of_an_interval_counts_clusters():
    values = np.random.default_rng(13).normal(size=60)
    assert mean_interval(values).stderr == pytest.approx(standard_error(values))
    paired = mean_interval(np.repeat(values, 2), np.repeat(np.arange(60), 2))
    assert paired.stderr == pytest.approx(standard_error(values))
    assert mean_interval([3.0] * 9).stderr is None and mean_interval([1.0, 2.0], ["a", "a"]).stderr is None
    weights = np.random.default_rng(14).integers(1, 4, 60)
    drawn = np.random.default_rng(15).integers(0, 60, (4000, 60))
    resampled = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    assert mean_interval(values, weights=weights).stderr == pytest.approx(resampled.std(), rel=0.05)


def test_copies_of_a_cluster_do_not_narrow_the_interval():
    values = np.random.default_rng(4).normal(size=50)
    alone = mean_interval(values)
    copied = mean_interval(np.repeat(values, 4), np.repeat(np.arange(50), 4))
    assert copied == alone
    assert mean_interval(np.repeat(values, 4)).low > alone.low


def test_weights_make_a_ratio_of_sums():
    interval = mean_interval([1.0, 0.0, 1.0], ["a", "a", "b"], [3, 1, 1])
    assert interval.value == pytest.approx(4 / 5)
    assert interval.low == pytest.approx(3 / 4)
    assert interval.high == 1.0


def test_values_without_spread_claim_no_certainty():
    interval = mean_interval([0.0] * 16, support=(0, 100))
    assert (interval.low, interval.high) == pytest.approx((0, 100 * wilson(0, 16)[1]))
    assert interval.method == "Wilson (no spread)"
    assert mean_interval([2.0] * 5).low is None


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_failed_items_cannot_be_averaged(bad):
    with pytest.raises(ValueError, match="value"):
        mean_interval(bad)


@given(NUMBERS)
@settings(max_examples=50, deadline=None)
def test_interval_lies_within_the_values_and_shifts_with_them(values):
    interval = mean_interval(values, resamples=200)
    if interval.low is not None:
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
        shifted = mean_interval([v + 10 for v in values], resamples=200)
        assert shifted.low == pytest.approx(interval.low + 10, abs=1e-6)


def test_failures_are_bounded_by_the_ends_of_the_scale():
    assert failure_bounds(8.0, 8, 2, 0, 1) == pytest.approx((0.8, 1.0))
    assert failure_bounds(0.0, 0, 3, 1, 10) == (1, 10)
    assert failure_bounds(5.0, 10, 0, 0, 1) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no items"):
        failure_bounds(0, 0, 0, 0, 1)


def test_paired_p_is_scipys_exact_permutation():
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=10), generator.normal(size=10) + 0.4
    expected = stats.permutation_test((a - b,), np.sum, permutation_type="samples", n_resamples=np.inf)
    difference = paired_difference(a, b)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.value == pytest.approx((a - b).mean())


def test_paired_p_of_many_clusters_is_close_to_the_t_test():
    generator = np.random.default_rng(6)
    a = generator.normal(size=300)
    b = a + 0.1 + generator.normal(size=300)
    assert paired_difference(a, b).p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_p_under_the_null_is_uniform():
    generator = np.random.default_rng(7)
    p = [paired_difference(generator.normal(size=12), generator.normal(size=12), resamples=100).p for _ in range(500)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_two_rows_of_one_question_are_one_observation():
    a, b = np.ones(20), np.zeros(20)
    # Ten clusters of two: all differences agree, so p is that of ten coin flips.
    assert paired_difference(a, b, np.arange(20) // 2).p == pytest.approx(2 / 2**10)


def test_pairing_sees_what_separate_intervals_cannot():
    generator = np.random.default_rng(8)
    difficulty = generator.normal(scale=5, size=80)
    a, b = difficulty + 0.3 + generator.normal(scale=0.3, size=80), difficulty + generator.normal(scale=0.3, size=80)
    assert mean_interval(a).low < mean_interval(b).high
    assert paired_difference(a, b).low > 0


def test_equal_answers_are_no_evidence():
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.value, same.p) == (0, 1)


def test_paired_needs_the_same_questions():
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1.0, 2.0], [1.0])


def test_minimum_detectable_effect_is_found_four_times_in_five():
    n, deviation = 100, 1.0
    effect = minimum_detectable_effect(deviation / math.sqrt(n))
    assert effect == pytest.approx(2.8016 * 0.1, abs=1e-4)
    generator = np.random.default_rng(9)
    samples = generator.normal(effect, deviation, size=(4000, n))
    found = np.abs(samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_reported_mde_follows_from_the_spread_of_differences():
    a, b = np.random.default_rng(10).normal(size=(2, 50))
    assert paired_difference(a, b).mde == pytest.approx(minimum_detectable_effect(standard_error(a - b)))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_no_adjustment_and_bonferroni(p):
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw <= adjusted <= min(1, len(p) * raw) + 1e-12
