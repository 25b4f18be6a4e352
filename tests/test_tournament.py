"""Tournaments against closed forms and against players whose strengths are known."""

import math
import random

import pytest

from core.errors import RecipeError
from train.tournament import TOURNAMENTS, Outcome, Ranking, fit_bradley_terry, knockout, knockout_comparisons, play, round_robin


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def run(tournament, strengths: list[float], calls: list | None = None) -> Ranking:
    """Play one tournament between players of known Bradley-Terry strengths."""

    def judge(matches):
        if calls is not None:
            calls.append(matches)
        return [Outcome(sigmoid(strengths[i] - strengths[j]), abs(strengths[i] - strengths[j]) > 0.5) for _, i, j in matches]

    return play([tournament], judge)[0]


def test_two_answers_get_the_log_odds():
    a, b = fit_bradley_terry(2, [(0, 1, 0.8)], prior=1e-9)
    assert a - b == pytest.approx(math.log(4), abs=1e-6) and a == -b
    assert fit_bradley_terry(2, [(0, 1, 0.5)]) == pytest.approx([0, 0])
    shrunk = fit_bradley_terry(2, [(0, 1, 0.8)])
    # Where the derivative is 0: 0.8 - sigmoid(2 s) = 0.001 s.
    assert 0.8 - sigmoid(2 * shrunk[0]) == pytest.approx(1e-3 * shrunk[0], abs=1e-9)


def test_the_fit_recovers_strengths_from_all_or_from_just_enough_comparisons():
    generator = random.Random(0)
    strengths = [generator.gauss(0, 1.5) for _ in range(7)]
    centred = [s - sum(strengths) / 7 for s in strengths]
    everyone = [(i, j, sigmoid(strengths[i] - strengths[j])) for i in range(7) for j in range(i + 1, 7)]
    chain = [(i, i + 1, sigmoid(strengths[i] - strengths[i + 1])) for i in range(6)]
    for comparisons in (everyone, chain):
        assert fit_bradley_terry(7, comparisons, prior=1e-9) == pytest.approx(centred, abs=1e-5)
    # Whole wins and losses in the same shares say the same as the probabilities.
    repeated = [(0, 1, 1.0)] * 3 + [(0, 1, 0.0)]
    assert fit_bradley_terry(2, repeated, 1e-9)[0] == pytest.approx(math.log(3) / 2, abs=1e-6)


def test_certain_outcomes_stay_finite_and_ordered_and_the_uncompared_score_nothing():
    scores = fit_bradley_terry(4, [(0, 1, 1.0), (1, 2, 1.0)])
    assert scores[0] > scores[1] > scores[2] and all(map(math.isfinite, scores)) and abs(scores[0]) < 20
    assert scores[3] == pytest.approx(0) and sum(scores) == pytest.approx(0)
    with pytest.raises(RecipeError, match="prior"):
        fit_bradley_terry(2, [(0, 1, 1.0)], prior=0)


def test_the_fit_maximises_the_likelihood_as_a_general_optimiser_does():
    from scipy.optimize import minimize

    comparisons = [(0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.3), (2, 3, 1.0), (3, 0, 0.5)]

    def loss(s):
        terms = (p * math.log(sigmoid(s[i] - s[j])) + (1 - p) * math.log(sigmoid(s[j] - s[i])) for i, j, p in comparisons)
        return -sum(terms) + 0.05 * sum(x * x for x in s)

    found = minimize(loss, [0.0] * 4, tol=1e-12)
    assert fit_bradley_terry(4, comparisons, prior=0.1) == pytest.approx(found.x, abs=1e-4)


def test_round_robin_asks_every_two_once_and_recovers_the_order():
    strengths, calls = [0.3, -1.0, 2.0, 0.9, -0.2], []
    ranking = run(round_robin(5), strengths, calls)
    assert len(calls) == 1 and len(ranking.comparisons) == len({(i, j) for i, j, _ in ranking.comparisons}) == 10
    assert sorted(range(5), key=lambda i: ranking.scores[i]) == [1, 4, 0, 3, 2] and ranking.pair is None
    gaps = [abs(strengths[i] - strengths[j]) > 0.5 for i, j, _ in ranking.comparisons]
    assert ranking.consistency == sum(gaps) / 10 and 0 < ranking.consistency < 1


@pytest.mark.parametrize("k", range(2, 18))
def test_a_knockout_of_transitive_answers_finds_the_best_and_the_worst(k):
    for seed in range(5):
        strengths = [float(x) for x in random.Random(seed).sample(range(k), k)]
        ranking = run(knockout(k, seed), strengths)
        assert ranking.pair == (strengths.index(k - 1), strengths.index(0))
        assert len(ranking.comparisons) <= knockout_comparisons(k)
        assert max(range(k), key=lambda i: ranking.scores[i]) == ranking.pair[0]


def test_eight_answers_take_the_papers_eleven_comparisons():
    calls: list = []
    ranking = run(knockout(8), [float(x) for x in (3, 1, 4, 0, 5, 9, 2, 6)], calls)
    assert knockout_comparisons(8) == len(ranking.comparisons) == 11
    assert [len(round_) for round_ in calls] == [4, 4, 2, 1]
    assert [(i, j) for _, i, j in calls[0]] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert {(i, j) for _, i, j in calls[1]} == {(0, 2), (5, 7), (1, 3), (4, 6)}  # winners, then losers
    assert ranking.pair == (5, 3)
    assert [knockout_comparisons(k) for k in (2, 4, 16)] == [2, 5, 23]
    assert len(run(knockout(2), [1.0, 0.0]).comparisons) == 1  # its final has been played


def test_a_tie_goes_to_the_first_and_a_winner_that_does_not_beat_the_loser_makes_no_pair():
    assert run(knockout(4), [0.0] * 4).pair is None
    # 0 beats 1, 2 beats 3, 0 beats 2, 1 beats 3, yet the survivor of the losers beats the winner.
    wins = {(0, 1): 0.9, (2, 3): 0.9, (0, 2): 0.9, (1, 3): 0.1, (0, 1, "again"): 0.9, (0, 3): 0.9}
    beaten = wins | {(1, 3): 0.9, (0, 3): 0.2}

    def judge(table):
        return lambda matches: [Outcome(table[i, j], True) for _, i, j in matches]

    assert play([knockout(4)], judge(wins))[0].pair == (0, 1)  # 1 lost to 3 as well; 0 has beaten it: not asked again
    assert play([knockout(4)], judge(beaten))[0].pair is None


def test_the_shuffle_depends_on_the_seed_alone():
    def first_round(seed):
        calls: list = []
        run(knockout(8, seed), [0.0] * 8, calls)
        return calls[0]

    assert first_round(1) == first_round(1) != first_round(2)


def test_tournaments_of_many_prompts_share_their_rounds():
    calls: list = []

    def judge(matches):
        calls.append(matches)
        return [Outcome(0.9, True) for _ in matches]

    made = [TOURNAMENTS["knockout"](8, 0), TOURNAMENTS["round_robin"](3, 0), knockout(1), round_robin(0)]
    rankings = play(made, judge)
    assert [len(r.scores) for r in rankings] == [8, 3, 1, 0] and len(calls) == 4
    assert {t for t, _, _ in calls[0]} == {0, 1}
    assert rankings[2] == Ranking([0.0], [], 1.0, None)
