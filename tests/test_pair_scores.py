"""The scores and win rates that a pair carries for losses that read them: those by which the pair was chosen."""

import math
from statistics import fmean

import pytest
from hypothesis import given

from tests.test_pairs import SETTINGS, candidates, of, prompt, rules, sample
from train.pairs import build_pairs
from train.selection import Rules, penalised_scores, select_pairs, win_rates


def test_win_rates_are_bradley_terry_means_over_all_samples():
    assert win_rates([0.0, math.log(3)]) == pytest.approx([(0.5 + 0.25) / 2, (0.75 + 0.5) / 2])
    assert win_rates([2.0]) == [0.5] and win_rates([]) == []
    many = win_rates([-800.0, 0.3, 0.1, 800.0])
    assert fmean(many) == pytest.approx(0.5) and many[0] < many[2] < many[1] < many[3]


RATIO = [(0, 1, 0.9), (0, 2, 0.2), (1, 2, 0.6)]
"""Comparisons of three answers that no scores explain: 0 beats 1, which beats 2, which beats 0."""


def test_win_rates_are_what_was_measured_where_every_two_answers_were_compared():
    """Rows of P(i beats j): (.5 .9 .2), (.1 .5 .6), (.8 .4 .5); the scores say something else."""
    assert win_rates([3.0, 2.0, 1.0], RATIO) == pytest.approx([1.6 / 3, 1.2 / 3, 1.7 / 3])
    assert win_rates([3.0, 2.0, 1.0], RATIO[:2]) == win_rates([3.0, 2.0, 1.0])  # a knockout: not every two
    assert win_rates([None, 2.0, 1.0], RATIO) == [None, pytest.approx(1.1 / 2), pytest.approx(0.9 / 2)]
    scores = [0.3, -1.2, 2.0, 0.0]
    told = [(i, j, 1 / (1 + math.exp(scores[j] - scores[i]))) for i in range(4) for j in range(i + 1, 4)]
    assert win_rates([0.0] * 4, told) == pytest.approx(win_rates(scores))  # of a Bradley-Terry model both are the same


@given(candidates, rules)
def test_penalised_scores_are_in_the_order_of_every_pair(answers, how):
    scores = penalised_scores(answers, how)
    rates = win_rates(scores)
    pairs, _ = select_pairs(answers, Rules("all_margin", how.length_penalty, 0.0, how.truncated))
    for pair in pairs:
        difference = scores[pair.chosen] - scores[pair.rejected]
        assert difference == pytest.approx(pair.margin, abs=1e-9) if pair.margin is not None else difference > -1e-9
        assert rates[pair.chosen] >= rates[pair.rejected] - 1e-9


def test_cut_off_answers_are_lowered_together_below_the_finished_ones():
    answers = of((1.0, 9.0, 2.0, 8.5, -3.0), truncated={1, 3, 4})
    assert penalised_scores(answers, Rules(truncated="penalise")) == [1.0, 1.0, 2.0, 0.5, -11.0]
    assert penalised_scores(answers, Rules()) == [1.0, 9.0, 2.0, 8.5, -3.0]
    low = of((1.0, None, 0.5), (10, 10, 100), truncated={2})
    assert penalised_scores(low, Rules(length_penalty=0.01, truncated="penalise")) == [0.9, None, -0.5]  # low enough already
    assert penalised_scores(of((4.0, 5.0), truncated={0, 1}), Rules(truncated="penalise")) == [4.0, 5.0]


def penalised_example(**settings: object) -> dict:
    """The pair of the specification's example (rewards 2.0, 1.8, 0.5 of 3,000, 500 and 400 characters), all of whose answers
    were compared as their rewards say."""
    rewards = (2.0, 1.8, 0.5)
    samples = [sample("x" * n, r, [k]) for k, (n, r) in enumerate(zip((3000, 500, 400), rewards, strict=True))]
    told = [(i, j, 1 / (1 + math.exp(rewards[j] - rewards[i]))) for i, j in ((0, 1), (0, 2), (1, 2))]
    (row,), *_ = build_pairs([prompt("a", samples) | {"comparisons": told}], SETTINGS | settings)
    return row


def test_losses_that_are_symmetric_in_their_answers_keep_the_penalised_order():
    """Raw rewards would give REBEL the target 1.8 - 2.0 and SPPO .579 against .622: both push the 3,000 characters up again."""
    from torch import tensor

    from train.dpo import of_pair
    from train.preference_losses import PairBatch, rebel, sppo

    row = penalised_example(length_penalty=0.001)
    assert (row["chosen"]["sample"], row["rejected"]["sample"]) == (1, 0)
    assert (row["chosen"]["reward"], row["rejected"]["reward"]) == (1.8, 2.0)  # what statistics are of
    columns = of_pair(row, frozenset({"rewards", "win_rates"}))
    assert (columns["chosen_rewards"], columns["rejected_rewards"]) == pytest.approx((1.3, -1.0))
    scores = (-1.0, 1.3, 0.1)
    expected = [fmean(1 / (1 + math.exp(other - mine)) for other in scores) for mine in (1.3, -1.0)]
    assert (columns["chosen_win_rates"], columns["rejected_win_rates"]) == pytest.approx(expected)

    lengths = {f"{side}_tokens": tensor([4.0]) for side in ("chosen", "rejected")}
    for loss in (rebel, sppo):
        logps = {f"{who}{side}_logps": tensor([-9.0]) for who in ("", "ref_") for side in ("chosen", "rejected")}
        batch = PairBatch(**logps, **lengths, **{name: tensor([value]) for name, value in columns.items()})
        batch.chosen_logps.requires_grad_()
        loss(batch, beta=0.1).sum().backward()
        assert batch.chosen_logps.grad < 0, loss  # a step raises the short answer


def test_what_was_measured_gives_the_win_rates_where_no_penalty_chose():
    samples = [sample(text, reward, [k]) for k, (text, reward) in enumerate((("x", 3.0), ("yy", 2.0), ("zzz", 1.0)))]
    told = prompt("a", samples) | {"comparisons": RATIO}
    (row,), *_ = build_pairs([told], SETTINGS)
    assert (row["chosen"]["win_rate"], row["rejected"]["win_rate"]) == pytest.approx((1.6 / 3, 1.7 / 3))
    (row,), *_ = build_pairs([told], SETTINGS | {"length_penalty": 0.5})
    assert (row["chosen"]["score"], row["rejected"]["score"]) == (2.5, -0.5)
    assert row["chosen"]["win_rate"] == win_rates([2.5, 1.0, -0.5])[0]


def test_a_cut_off_answer_that_ranks_last_is_not_learned():
    samples = [sample("x", 1.0, [1]), sample("y", 9.0, [2], "length"), sample("z", 2.0, [3])]
    (row,), *_ = build_pairs([prompt("a", samples)], SETTINGS | {"truncated": "penalise"})
    assert (row["chosen"]["score"], row["rejected"]["score"], row["rejected"]["reward"]) == (2.0, 1.0, 9.0)
    assert row["chosen"]["win_rate"] > row["rejected"]["win_rate"]
