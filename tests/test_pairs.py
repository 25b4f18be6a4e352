"""Pair selection: the penalised order is kept, ties and faults are counted, nothing is lost."""

import json
import math
import random
from collections import Counter
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.artifacts import write_rows
from core.errors import HarnessError, RecipeError
from train.pairs import build_pairs, correlation, describe, length_penalty
from train.selection import RULES, Candidate, Pair, Rules, select_pairs, truncation_fault, win_rates, zero_gap_penalty

SETTINGS = {"rule": "max_min", "length_penalty": 0.0, "min_margin": 0.0, "truncated": "keep", "max_length": 512, "seed": 0}

candidates = st.lists(
    st.builds(
        Candidate,
        reward=st.floats(-10, 10).map(lambda x: round(x, 2)),
        length=st.integers(0, 4000),
        text=st.integers(0, 12).map(str),
        truncated=st.booleans(),
    ),
    max_size=10,
)
rules = st.builds(
    Rules,
    rule=st.sampled_from(sorted(RULES)),
    length_penalty=st.sampled_from([0.0, 0.001, 0.01]),
    min_margin=st.sampled_from([0.0, 0.5, 3.0]),
    truncated=st.sampled_from(["keep", "drop", "penalise"]),
    k=st.integers(1, 4),
)


def of(rewards, lengths=None, truncated=()) -> list[Candidate]:
    lengths = lengths or [10] * len(rewards)
    return [Candidate(r, n, f"text {i}", i in truncated) for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]


def first(selection):
    pairs, reason = selection
    assert reason is None
    return pairs[0].chosen, pairs[0].rejected


def test_the_penalised_order_is_kept():
    """Upstream labels the 3,000-character answer chosen here, although its penalised score is the lowest."""
    answers = of((2.0, 1.8, 0.5), (3000, 500, 400))
    assert first(select_pairs(answers, Rules(length_penalty=0.001))) == (1, 0)
    assert first(select_pairs(answers, Rules())) == (0, 2)


@given(candidates, rules, st.integers(0, 2**31 - 1))
def test_every_pair_is_in_penalised_order_and_nothing_is_lost(answers, how, seed):
    pairs, reason = select_pairs(answers, how, seed)
    assert bool(pairs) != (reason is not None)
    for pair in pairs:
        better, worse = answers[pair.chosen], answers[pair.rejected]
        assert better.text != worse.text
        if how.truncated == "drop":
            assert not better.truncated and not worse.truncated
        if how.truncated == "penalise" and better.truncated != worse.truncated:
            assert worse.truncated and pair.margin is None
        else:
            score = [c.reward - how.length_penalty * c.length for c in (better, worse)]
            assert score[0] - score[1] == pair.margin > 0 and pair.margin >= how.min_margin


@given(candidates, rules, st.integers(0, 2**31 - 1), st.floats(-5, 5).map(lambda x: round(x)))
def test_adding_a_constant_to_all_rewards_changes_no_pair(answers, how, seed, constant):
    def integral(c, shift):
        return Candidate(round(c.reward) + shift, c.length - c.length % 1000, c.text, c.truncated)

    # max_low_sigma compares with a rounded mean and sigma: a score exactly on the level may fall on either side.
    how = Rules("max_min" if how.rule == "max_low_sigma" else how.rule, 0.0, how.min_margin, how.truncated, how.k)
    before = select_pairs([integral(c, 0) for c in answers], how, seed)
    after = select_pairs([integral(c, constant) for c in answers], how, seed)
    assert [(p.chosen, p.rejected) for p in before[0]] == [(p.chosen, p.rejected) for p in after[0]] and before[1] == after[1]


@given(candidates, rules)
def test_every_rule_chooses_among_all_margins(answers, how):
    def chosen(rule: str) -> set[tuple[int, int]]:
        as_told = Rules(rule, how.length_penalty, how.min_margin, how.truncated, how.k)
        return {(p.chosen, p.rejected) for p in select_pairs(answers, as_told, seed=3)[0]}

    everything = chosen("all_margin")
    for rule in RULES:
        assert chosen(rule) <= everything
    for rule in ("max_min", "max_random", "top_k"):
        assert bool(chosen(rule)) == bool(everything)
    assert len(chosen("max_min")) <= 1 and len(chosen("max_random")) <= 1 and len(chosen("max_low_sigma")) <= 1


@given(candidates, rules)
def test_top_k_uses_no_answer_twice_and_begins_with_max_min(answers, how):
    pairs, _ = select_pairs(answers, Rules("top_k", how.length_penalty, how.min_margin, how.truncated, how.k))
    used = [i for p in pairs for i in (p.chosen, p.rejected)]
    assert len(pairs) <= how.k and len(set(used)) == len(used)
    assert pairs[:1] == select_pairs(answers, Rules("max_min", how.length_penalty, how.min_margin, how.truncated))[0]


def test_top_k_by_hand():
    answers = of((5.0, 1.0, 4.0, 2.0, 3.0))
    pairs, _ = select_pairs(answers, Rules("top_k", k=9))
    assert [(p.chosen, p.rejected) for p in pairs] == [(0, 1), (2, 3)]  # 3.0 meets itself in the middle
    assert [p.margin for p in pairs] == [4.0, 2.0]
    assert len(select_pairs(answers, Rules("top_k", k=9, min_margin=2.5))[0]) == 1


def test_max_low_sigma_passes_over_the_outlier():
    """Mean 8.2, sigma 3.12: the level is 1.96. Below it lie 1.9 and -9; the nearer one is taken, max_min takes the other."""
    answers = of((10.0,) * 17 + (9.99, 1.9, -9.0))
    distinct = [Candidate(c.reward + i * 1e-6, c.length, c.text) for i, c in enumerate(answers)]
    scores = [c.reward for c in distinct]
    level = fmean(scores) - 2 * pstdev(scores)
    assert -9 < level < 1.9 < fmean(scores)  # only the outlier lies below
    assert first(select_pairs(distinct, Rules("max_low_sigma")))[1] == 19
    lower = [*distinct[:18], Candidate(-0.5, 10, "a"), distinct[19], Candidate(-4.0, 10, "b")]
    level = fmean(c.reward for c in lower) - 2 * pstdev([c.reward for c in lower])
    assert -4 < level < -0.5
    assert first(select_pairs(lower, Rules("max_low_sigma")))[1] == 20 and first(select_pairs(lower, Rules()))[1] == 19


def test_max_low_sigma_takes_the_worst_where_none_is_two_sigma_low():
    """Of five answers none can be: the lowest z-score of n is -(n - 1) / sqrt(n), -1.79 here."""
    assert first(select_pairs(of((1.0, 2.0, 3.0, 4.0, -90.0)), Rules("max_low_sigma"))) == (3, 4)
    assert first(select_pairs(of((1.0, 9.0, 2.0), truncated={1}), Rules("max_low_sigma", truncated="penalise"))) == (2, 1)


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(-100, 400)), min_size=1, max_size=30))
def test_the_tuned_penalty_is_where_a_falling_gap_crosses_zero(steps):
    """Gap = mean of steps that fall from above to 100 below their level, each at a penalty of its own."""

    def gap(penalty: float) -> float:
        return fmean(level if penalty < at else -100.0 for at, level in steps)

    found = zero_gap_penalty(gap)
    if gap(0.0) <= 0:
        assert found == 0.0
    elif gap(found) != 0:
        assert gap(found * (1 - 1e-6)) > 0 >= gap(found * (1 + 1e-6))  # the step is at the penalty found
        assert abs(gap(found)) <= min(abs(gap(found * (1 - 1e-6))), abs(gap(found * (1 + 1e-6))))


def test_a_gap_that_no_penalty_closes_is_a_sentence():
    with pytest.raises(RecipeError, match="give a number instead"):
        zero_gap_penalty(lambda penalty: 12.0)


def test_max_random_is_random():
    """Best against each of the others about equally often; upstream always took answer 0 or 1."""
    answers = of((0.1, 0.2, 0.9, 0.3, 0.4))
    seen = Counter(first(select_pairs(answers, Rules("max_random"), seed)) for seed in range(2000))
    assert set(seen) == {(2, i) for i in (0, 1, 3, 4)} and min(seen.values()) > 400
    assert select_pairs(answers, Rules("max_random"), 7) == select_pairs(answers, Rules("max_random"), 7)


def test_all_margin_gives_every_pair_that_differs_enough():
    pairs, _ = select_pairs(of((0.0, 1.0, 3.0)), Rules("all_margin", min_margin=1.5))
    assert {(p.chosen, p.rejected) for p in pairs} == {(2, 0), (2, 1)}


@pytest.mark.parametrize(
    ("answers", "how", "reason"),
    [
        ([], Rules(), "too_few_samples"),
        (of((1.0,)), Rules(), "too_few_samples"),
        (of((1.0, 1.0, 1.0)), Rules(), "tie"),
        (of((1.0, 1.4)), Rules(min_margin=0.5), "below_min_margin"),
        (of((1.0, 2.0), truncated={1}), Rules(truncated="drop"), "truncated"),
        ([Candidate(1.0, 5, "same"), Candidate(2.0, 5, "same ")], Rules(), "duplicate_texts"),
        (of((2.0, 1.0), (2000, 1000)), Rules(length_penalty=0.001), "tie"),
    ],
)
def test_each_reason_for_no_pair(answers, how, reason):
    assert select_pairs(answers, how) == ([], reason)


def test_a_truncated_answer_can_be_rejected_but_never_chosen():
    """Penalised: reward 9 of a cut-off answer does not help it."""
    assert first(select_pairs(of((1.0, 9.0, 2.0), truncated={1}), Rules(truncated="penalise"))) == (2, 1)
    assert first(select_pairs(of((1.0, 9.0, 2.0), truncated={1}), Rules())) == (1, 0)


def test_mistakes_name_the_fix():
    for wrong in ({"rule": "max_max"}, {"truncated": "ignore"}, {"min_margin": -1}, {"k": 0}):
        with pytest.raises(RecipeError):
            Rules(**wrong)
    with pytest.raises(RecipeError, match="characters or tokens"):
        build_pairs([], SETTINGS | {"length_unit": "words"})


def test_faults_of_truncation():
    assert truncation_fault([1] * 4, [5, 6, 7], [5, 6, 8], 6) == "equal_after_truncation"
    assert truncation_fault([1] * 4, [5, 6, 7], [5, 6, 8], 7) is None
    assert truncation_fault([1] * 6, [5], [6], 6) == "prompt_fills_max_length"


def sample(text: str, reward: float, tokens: list[int], finish: str = "stop") -> dict:
    return {"text": text, "token_ids": tokens, "finish_reason": finish, "temperature": 1.0, "seed": 1, "reward": reward}


def prompt(name: str, samples: list[dict]) -> dict:
    return {"prompt_id": name, "messages": [{"role": "user", "content": name}], "prompt_token_ids": [1, 2, 3], "samples": samples}


PROMPTS = [
    prompt("a", [sample("x", 1.0, [4, 5]), sample("yy", 3.0, [6]), sample("zzz", 2.0, [7, 8, 9], "length")]),
    prompt("b", [sample("x", 1.0, [4]), sample("y", 1.0, [5])]),
    prompt("c", []),
    prompt("d", [sample("p", 0.0, [4, 5, 6]), sample("q", -1.0, [4, 5, 7, 8])]),
]


def test_rows_and_drops_account_for_every_prompt():
    rows, dropped, lost = build_pairs(PROMPTS, SETTINGS)
    assert [(r["prompt_id"], r["chosen"]["sample"], r["rejected"]["sample"]) for r in rows] == [("a", 1, 0), ("d", 0, 1)]
    answer = {"text": "yy", "token_ids": [6], "finish_reason": "stop", "sample": 1, "reward": 3.0, "score": 3.0}
    assert rows[0]["chosen"] == answer | {"win_rate": win_rates([1.0, 3.0, 2.0])[1]}
    assert dropped == {"tie": 1, "too_few_samples": 1} and not lost
    cut, dropped, lost = build_pairs(PROMPTS, SETTINGS | {"max_length": 5})
    assert [r["prompt_id"] for r in cut] == ["a"] and dropped["equal_after_truncation"] == lost["equal_after_truncation"] == 1


def test_lost_pairs_and_repeated_texts_are_counted():
    """Six answers: the worst starts like the best, and is no longer different once cut; one text comes twice."""
    samples = [sample(name, r, ids) for name, r, ids in (("a", 3.0, [4, 5, 6]), ("b", 2.0, [7]), ("c", 1.0, [8]))]
    samples += [sample("d", 0.0, [4, 5, 9]), sample("b ", 1.5, [7, 7]), sample("c", None, [8])]
    for rule, pairs in (("top_k", 1), ("all_margin", 5)):
        rows, dropped, lost = build_pairs([prompt("a", samples)], SETTINGS | {"rule": rule, "k": 2, "max_length": 5})
        assert (len(rows), dropped, lost) == (pairs, {}, {"equal_after_truncation": 1})
        told = describe([prompt("a", samples)], rows, dropped, lost)["statistics"]
        assert told["lost_pairs"] == {"equal_after_truncation": 1} and told["duplicate_texts"] == 1


def test_length_unit_changes_what_is_penalised():
    answers = [prompt("a", [sample("word " * 100, 1.0, [1] * 10), sample("w", 0.5, [2] * 200)])]
    for unit, chosen in (("characters", 1), ("tokens", 0)):
        rows, *_ = build_pairs(answers, SETTINGS | {"length_penalty": 0.002, "length_unit": unit})
        assert rows[0]["chosen"]["sample"] == chosen


def scored(rewards_and_lengths: list[list[tuple[float, int]]]) -> list[dict]:
    return [
        prompt(
            f"p{i}", [sample("x" * length + str(k), reward, [k] * (length // 4 + 1)) for k, (reward, length) in enumerate(row)]
        )
        for i, row in enumerate(rewards_and_lengths)
    ]


def test_auto_brings_the_length_gap_of_biased_rewards_to_zero():
    """Rewards are noise plus 0.01 per character. Without a penalty the chosen answer is far longer; auto finds about that
    0.01, at which length tells nothing."""
    generator = random.Random(0)
    lengths = [[generator.randint(50, 800) for _ in range(6)] for _ in range(400)]
    prompts = scored([[(generator.gauss(0, 1) + 0.01 * n, n) for n in row] for row in lengths])

    def gap(penalty: float) -> float:
        rows, dropped, lost = build_pairs(prompts, SETTINGS | {"length_penalty": penalty, "max_length": 4096})
        return describe(prompts, rows, dropped, lost, penalty)["statistics"]["length_gap_characters"]

    found = length_penalty(prompts, SETTINGS | {"length_penalty": "auto", "max_length": 4096})
    assert gap(0.0) > 400 and abs(gap(found)) < 4
    assert found == pytest.approx(0.01, rel=0.1)
    assert length_penalty(prompts, SETTINGS | {"length_penalty": 0.003}) == 0.003


def test_a_short_winner_needs_no_penalty():
    assert length_penalty(scored([[(2.0, 10), (1.0, 90)]]), SETTINGS | {"length_penalty": "auto"}) == 0.0


def test_statistics_by_hand():
    rows, dropped, lost = build_pairs(PROMPTS, SETTINGS)
    told = describe(PROMPTS, rows, dropped, lost)
    assert (told["n_prompts"], told["n_pairs"]) == (4, 2)
    assert told["reward_mean"] == pytest.approx((1 + 3 + 2 + 1 + 1 + 0 - 1) / 7)
    assert (told["reward_chosen"], told["reward_rejected"], told["margin_mean"]) == (1.5, 0.0, 1.5)
    assert (told["tokens_chosen"], told["tokens_rejected"]) == (2.0, 3.0)
    assert told["statistics"]["truncated"] == pytest.approx(1 / 7)
    assert told["statistics"]["chosen_longer"] == 0.0
    # Pairs: yy (3) over x (1), p (0) over q (-1); tokens 1 against 2 and 3 against 4.
    assert told["statistics"]["length_gap_tokens"] == -1.0 and told["statistics"]["length_gap_characters"] == 0.5
    assert told["statistics"]["margin_std"] == pytest.approx(0.5) and told["statistics"]["length_penalty"] == 0.0
    assert told["statistics"]["reward_std_within_prompt"] == pytest.approx((math.sqrt(2 / 3) + 0 + 0.5) / 3)
    json.dumps(told, allow_nan=False)


def test_correlation_is_none_where_one_side_is_constant():
    assert correlation([1, 1, 1], [1, 2, 3]) is None
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)


def stage_inputs(folder, prompts):
    for name in ("generations", "annotations"):
        (folder / name).mkdir()
    bare = [p | {"samples": [{k: v for k, v in s.items() if k != "reward"} for s in p["samples"]]} for p in prompts]
    write_rows(folder / "generations" / "shard-00000.jsonl", bare)
    rewards = [{"prompt_id": p["prompt_id"], "rewards": [s["reward"] for s in p["samples"]]} for p in prompts]
    write_rows(folder / "annotations" / "shard-00000.jsonl", rewards)
    return {name: folder / name for name in ("generations", "annotations")}


def test_the_stage_writes_pairs_and_statistics(run_stage, tmp_path):
    artifact = run_stage("train.pairs", "pairs", SETTINGS, stage_inputs(tmp_path, PROMPTS))
    assert [json.loads(line)["prompt_id"] for line in artifact.file("pairs.jsonl").read_text().splitlines()] == ["a", "d"]
    assert json.loads(artifact.file("statistics.json").read_text()) == artifact.metrics
    sides = [json.loads(line) for line in artifact.file("pairs.jsonl").read_text().splitlines()]
    assert sides[1]["chosen"]["win_rate"] == pytest.approx((0.5 + 1 / (1 + math.exp(-1))) / 2)
    assert artifact.metrics["n_pairs"] + sum(artifact.metrics["dropped"].values()) == artifact.metrics["n_prompts"]


def test_earlier_pairs_come_first_and_stay_out_of_the_statistics(run_stage, tmp_path):
    inputs = stage_inputs(tmp_path, PROMPTS)
    first = run_stage("train.pairs", "pairs", SETTINGS, inputs)
    second = run_stage("train.pairs", "pairs", SETTINGS, inputs | {"earlier": first.path})
    assert second.file("pairs.jsonl").read_text() == 2 * first.file("pairs.jsonl").read_text()
    assert second.metrics == first.metrics


def test_annotations_of_other_samples_are_refused(make_spec, tmp_path):
    from core.errors import HashMismatch
    from core.stage import Spec, Stage
    from train.pairs import run

    inputs = stage_inputs(tmp_path, PROMPTS)
    rows = [json.loads(line) for line in (inputs["annotations"] / "shard-00000.jsonl").read_text().splitlines()]
    write_rows(inputs["annotations"] / "shard-00000.jsonl", rows[1:])
    with pytest.raises(HashMismatch, match="annotate"):
        run(Stage(Spec.load(make_spec("pairs", SETTINGS, inputs))))


def test_no_pair_at_all_says_what_removed_them(make_spec, tmp_path):
    from core.stage import Spec, Stage
    from train.pairs import run

    with pytest.raises(HarnessError, match="below_min_margin 2"):
        run(Stage(Spec.load(make_spec("pairs", SETTINGS | {"min_margin": 50}, stage_inputs(tmp_path, PROMPTS)))))


def test_an_answer_without_a_reward_is_never_paired():
    assert select_pairs(of((1.0, None, 3.0)), Rules())[0][0] == select_pairs(of((1.0, 2.0, 3.0)), Rules())[0][0]
    assert select_pairs(of((None, 1.0, None)), Rules()) == ([], "unscored")
    assert win_rates([0.0, None, math.log(3)]) == [pytest.approx(0.375), None, pytest.approx(0.625)]
    for rule in RULES:
        pairs, _ = select_pairs(of((1.0, None, 3.0, None, 2.0)), Rules(rule, k=3))
        assert {i for pair in pairs for i in (pair.chosen, pair.rejected)} <= {0, 2, 4} and pairs


def test_a_knockouts_pair_is_taken_as_it_is():
    """Its winner beat its loser face to face, though the scores fitted to few comparisons put them the other way round."""
    how = Rules("tournament")
    assert select_pairs(of((0.5, 0.9, 0.1)), how, knockout=(0, 1)) == ([Pair(0, 1, pytest.approx(-0.4))], None)
    assert select_pairs(of((0.5, 0.9, 0.1)), how) == ([], "no_final")
    assert select_pairs(of((0.5, None, 0.1)), how, knockout=(0, 1)) == ([], "unscored")
    cut = of((0.5, 0.9), truncated={0})
    assert select_pairs(cut, Rules("tournament", truncated="drop"), knockout=(0, 1)) == ([], "truncated")
    assert select_pairs(cut, Rules("tournament", truncated="penalise"), knockout=(0, 1)) == ([], "truncated")
    assert select_pairs(cut, Rules("tournament", truncated="penalise"), knockout=(1, 0)) == ([Pair(1, 0, None)], None)
    assert select_pairs(of((2.0, 1.0)), Rules("tournament", min_margin=3.0), knockout=(0, 1)) == ([], "below_min_margin")
    same = [Candidate(1.0, 3, "one "), Candidate(0.0, 3, "one")]
    assert select_pairs(same, how, knockout=(0, 1)) == ([], "duplicate_texts")


def members(*rewards: dict[str, float]) -> list[dict]:
    """One prompt whose samples have these raw rewards, by member, and their mean as the reward."""
    samples = [
        {
            "text": f"t{i}",
            "token_ids": [i, 9],
            "finish_reason": "stop",
            "reward": fmean(r.values()),
            "win_rate": 0.5,
            "members": r,
        }
        for i, r in enumerate(rewards)
    ]
    return [{"prompt_id": "a", "messages": [], "prompt_token_ids": [1], "samples": samples}]


def test_pairs_whose_members_disagree_are_dropped():
    split = members({"x": 3.0, "y": 0.0, "z": 1.0}, {"x": 0.0, "y": 0.5, "z": 1.0})  # y disputes, z has no view
    for limit, kept in ((0.0, 0), (0.3, 0), (0.34, 1), (1.0, 1)):
        rows, dropped, lost = build_pairs(split, SETTINGS | {"max_disagreement": limit})
        assert len(rows) == kept and dropped == Counter({} if kept else {"disagreement": 1})
    rows, dropped, lost = build_pairs(split, SETTINGS)
    told = describe(split, rows, dropped, lost)["statistics"]
    assert told["disagreement"] == pytest.approx(1 / 3) and rows[0]["chosen"]["members"] == {"x": 3.0, "y": 0.0, "z": 1.0}


def test_the_stage_reads_members_knockouts_and_nulls(run_stage, make_spec, tmp_path):
    from core.stage import Spec, Stage
    from train.pairs import read_scored

    inputs = stage_inputs(tmp_path, PROMPTS)
    file = inputs["annotations"] / "shard-00000.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0] |= {"rewards": [None, *rows[0]["rewards"][1:]], "pair": [1, 2], "comparisons": [[0, 1, 0.5]]}
    for row in rows:
        row["members"] = {"one": row["rewards"], "two": [2.0] * len(row["rewards"])}
    write_rows(file, rows)
    stage = Stage(Spec.load(make_spec("pairs", SETTINGS, inputs)))
    read = read_scored(stage)
    assert read[0]["knockout"] == (1, 2) and "knockout" not in read[1]
    assert read[0]["comparisons"] == [[0, 1, 0.5]] and "comparisons" not in read[1]
    assert read[0]["samples"][0]["reward"] is None
    assert read[0]["samples"][1]["members"] == {"one": read[0]["samples"][1]["reward"], "two": 2.0}
    pairs, dropped, lost = build_pairs(read, SETTINGS)
    told = describe(read, pairs, dropped, lost)
    n = sum(len(prompt["samples"]) for prompt in PROMPTS)
    assert told["statistics"]["unscored"] == pytest.approx(1 / n)
    json.dumps(told, allow_nan=False)


def test_whose_answers_are_chosen():
    prompt = {"prompt_id": "a", "messages": [], "prompt_token_ids": [1]}
    samples = [
        {"text": t, "token_ids": [i], "finish_reason": "stop", "reward": r, "win_rate": 0.5} | ({"policy": who} if who else {})
        for i, (t, r, who) in enumerate((("a", 1.0, None), ("b", 2.0, "initial"), ("c", 0.0, "previous")))
    ]
    prompts = [prompt | {"samples": samples}]
    rows, dropped, lost = build_pairs(prompts, SETTINGS)
    told = describe(prompts, rows, dropped, lost)["statistics"]
    assert (told["chosen_from_initial"], told["chosen_from_current"], told["chosen_from_previous"]) == (1.0, 0.0, 0.0)
