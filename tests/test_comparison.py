"""Paired comparison of two checkpoints: the arithmetic, and what the registry allows to be compared."""

import json

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from core.errors import MissingInput
from db.models import Answer, AnswerSet, Checkpoint, Evaluation, Judgment, RunCheckpoint
from db.registry import Registry
from db.values import question_values
from evals.changes import store_changes
from evals.closed_form import adjusted_effect, minimum_detectable_effect
from evals.comparison import compare, verdict
from evals.headline_values import headline_values
from evals.paired import compare_checkpoints
from evals.statistics import Difference
from harness.hooking import iteration_record
from tests.sample_registry import Sample, fill


def values(seed: int, n: int, shift: float = 0.0) -> dict[str, float]:
    return {f"q{i}": float(v) for i, v in enumerate(np.random.default_rng(seed).normal(shift, 1.0, n))}


def test_a_clear_difference_an_absent_one_and_one_that_could_not_be_seen():
    pairs = {
        "clear": (values(1, 400, 5.0), values(2, 400)),
        "worse": (values(1, 400, -5.0), values(2, 400)),
        "absent": (values(3, 4000), values(4, 4000)),
        "few": ({q: 50 * v for q, v in values(5, 20).items()}, {q: 50 * v for q, v in values(6, 20).items()}),
    }
    found = {one.benchmark: one for one in compare(pairs, dict.fromkeys(pairs, "percent"))}
    assert {name: one.verdict for name, one in found.items()} == {
        "clear": "IMPROVED",
        "worse": "REGRESSED",
        "absent": "NO EVIDENCE",
        "few": "UNDERPOWERED",
    }
    assert found["clear"].wins + found["clear"].ties + found["clear"].losses == 400
    assert all(one.adjusted_p >= one.difference.p for one in found.values())


def test_adjustment_for_many_benchmarks_takes_significance_away():
    """A p of .03 alone speaks; among five benchmarks it does not."""
    difference = Difference(1.0, 0.1, 1.9, 0.03, 1.3, 100)
    assert verdict(difference, 0.03, "percent") == "IMPROVED"
    assert verdict(difference, 0.15, "percent") == "NO EVIDENCE"


def test_only_shared_questions_count():
    a, b = values(1, 50), values(2, 50)
    alone = compare({"x": (a, b)}, {"x": "percent"})[0]
    assert compare({"x": (a | {"other": 99.0}, b | {"third": -99.0})}, {"x": "percent"})[0] == alone
    with pytest.raises(ValueError, match="no question of x"):
        compare({"x": ({"a": 1.0}, {"b": 1.0})}, {"x": "percent"})


def compared(registry: Registry, a: str, b: str | None = None):
    with registry.read() as session:
        return compare_checkpoints(session, a, b)


def judge_all(registry: Registry, shift: dict[int, float]) -> None:
    """Verdicts of 60 questions for every AlpacaEval evaluation, `shift` by checkpoint."""
    with registry.write() as session:
        for evaluation, checkpoint in session.query(Evaluation, AnswerSet.checkpoint_id).join(AnswerSet).all():
            if evaluation.answer_set.benchmark == "alpaca_eval":
                drawn = np.random.default_rng(checkpoint).uniform(0, 0.3, 60) + shift[checkpoint]
                session.add_all(Judgment(evaluation_id=evaluation.id, question_id=str(i), value=v) for i, v in enumerate(drawn))


def test_a_checkpoint_is_compared_with_its_parent_in_percent(registry: Registry, monkeypatch):
    fill(registry)
    judge_all(registry, {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.5})
    found = compared(registry, "quickstart/iter-2")
    assert (found.a, found.b) == ("quickstart/iter-2", "quickstart/iter-1")
    one = next(c for c in found.comparisons if c.benchmark == "alpaca_eval")
    assert one.verdict == "IMPROVED" and one.difference.value == pytest.approx(50, abs=5)
    assert found.apart["mt_bench"] == "no verdicts per question are stored"
    from harness.cli import app

    printed = CliRunner().invoke(app, ["compare", "quickstart/iter-2", "--json", "--db", registry.url])
    assert json.loads(printed.output)["comparisons"][0]["verdict"] == "IMPROVED"
    with pytest.raises(MissingInput, match="has no parent"):
        compared(registry, "quickstart/base")
    with pytest.raises(MissingInput, match="no checkpoint 'nobody'.*quickstart/sft"):
        compared(registry, "nobody")


def test_another_judge_or_a_sample_is_not_compared_and_the_reason_said(registry: Registry):
    sample = Sample(registry)
    a, b = sample.checkpoint("a", "third_party"), sample.checkpoint("b", "third_party")
    sample.score(a, "alpaca_eval", 40.0, judge="gpt")
    sample.score(b, "alpaca_eval", 40.0, judge="gold")
    sample.score(a, "mt_bench", 4.0, limit=8)
    sample.score(b, "mt_bench", 4.0)
    judge_all(registry, {a: 0.0, b: 0.1})
    found = compared(registry, "a", "b")
    assert found.comparisons == []
    assert found.apart["alpaca_eval"] == "judge gpt-4.1 against gold reward model"
    assert found.apart["mt_bench"].startswith("settings ")


def test_a_verdict_that_counts_three_times_does_so_per_question(registry: Registry):
    sample = Sample(registry)
    sample.score(sample.checkpoint("a", "third_party"), "arena_hard", 40.0)
    with registry.write() as session:
        session.add_all(
            [
                Judgment(evaluation_id=1, question_id="q", game=1, value=1.0, raw={"weight": 3}),
                Judgment(evaluation_id=1, question_id="q", game=2, value=0.0, raw={"weight": 1}),
                Judgment(evaluation_id=1, question_id="r", game=1, value=None, error="no reply"),
            ]
        )
    with registry.read() as session:
        assert question_values(session, 1) == {"q": 0.75}


Verdicts = dict[tuple[str, int, int], float | None]


def _judged(sample: Sample, name: str, verdicts: Verdicts, category: dict[str, str]) -> int:
    """A checkpoint with these verdicts {(question, turn, game): value}; returns its evaluation's id."""
    sample.score(sample.checkpoint(name, "third_party"), "arena_hard", 50.0)
    with sample.registry.write() as session:
        evaluation = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first()
        for question, its in category.items():
            row = {"answer_set_id": evaluation.answer_set_id, "question_id": question, "category": its}
            session.add(Answer(**row, prompt="", text=""))
        for (question, turn, game), value in verdicts.items():
            row = {"evaluation_id": evaluation.id, "question_id": question, "turn": turn, "game": game}
            session.add(Judgment(**row, value=value, raw={}))
        return evaluation.id


def test_what_is_tested_is_what_the_headline_counts(registry: Registry):
    """Arena-Hard v2's headline is of hard prompts with both games; MT-Bench pairs count a turn on which both orders agree."""
    category = {"h1": "hard_prompt", "h2": "hard_prompt", "c1": "creative_writing"}
    verdicts: Verdicts = {
        ("h1", 1, 1): 1.0,
        ("h1", 1, 2): 0.5,
        ("h2", 1, 1): 1.0,
        ("h2", 1, 2): None,
        ("c1", 1, 1): 1.0,
        ("c1", 1, 2): 1.0,
    }
    sample = Sample(registry)
    arena = _judged(sample, "a", verdicts, category)
    both: Verdicts = {("q", 1, 1): 1.0, ("q", 1, 2): 0.5, ("q", 2, 1): 1.0, ("q", 2, 2): 1.0}
    pairs = _judged(sample, "b", both, {})
    with registry.read() as session:
        assert headline_values(session, arena, "arena_hard_v2") == {"h1": 0.75}
        assert headline_values(session, arena, "arena_hard_v2", all_categories=True) == {"h1": 0.75, "c1": 1.0}
        assert headline_values(session, pairs, "mt_bench_pairwise") == {"q": 0.75}
        assert question_values(session, pairs) == {"q": 0.875}
        assert headline_values(session, arena, "somebody_s_own") == question_values(session, arena)


def test_the_smallest_visible_effect_is_that_of_the_adjusted_test():
    assert adjusted_effect(None, 9) is None and adjusted_effect(1.96, 1) == pytest.approx(1.96)
    # A standard error of 0.7: 1.96 points alone, 2.53 among nine, which could not have shown the 2 points worth acting on.
    assert adjusted_effect(minimum_detectable_effect(0.7), 9) == pytest.approx(minimum_detectable_effect(0.7, alpha=0.05 / 9))
    one = {"a": ({f"q{i}": 14.5 * (-1) ** i for i in range(500)}, {f"q{i}": 0.0 for i in range(500)})}  # standard error 0.65
    many = {f"b{i}": one["a"] for i in range(9)}
    (alone,), several = compare(one, {"a": "percent"}), compare(many, dict.fromkeys(many, "percent"))
    assert alone.verdict == "NO EVIDENCE" and {found.verdict for found in several} == {"UNDERPOWERED"}
    assert several[0].difference.mde > 2.0 > alone.difference.mde


def test_every_paired_test_keeps_to_the_headline(registry: Registry):
    """A child that writes better stories and solves no more hard prompts has not improved in Arena-Hard v2."""
    sample = Sample(registry)
    run = sample.run()
    category = {f"h{i}": "hard_prompt" for i in range(20)} | {f"c{i}": "creative_writing" for i in range(20)}
    evaluations = []
    for t, stories in enumerate((0.0, 1.0)):
        verdicts = {(name, 1, game): 0.5 if name[0] == "h" else stories for name in category for game in (1, 2)}
        evaluations.append(_judged(sample, f"iter-{t}", verdicts, category))
    with registry.write() as session:
        parent, child = session.scalars(select(Checkpoint).order_by(Checkpoint.id))
        child.parent_id = parent.id
        session.add(RunCheckpoint(run_id=run, checkpoint_id=child.id, role="iteration", iteration=1))
        for answers in session.scalars(select(AnswerSet)):
            answers.benchmark = "arena_hard_v2"
        keys = [session.get_one(Evaluation, evaluation).key for evaluation in evaluations]
    store_changes(registry, keys)
    with registry.read() as session:
        (found,) = compare_checkpoints(session, "iter-1").comparisons
        stored = session.get_one(Evaluation, evaluations[1]).statistics["change"]
        hook = iteration_record(session, run, 1).per_question["arena_hard_v2"]
    assert (found.difference.value, found.difference.n, stored["value"], stored["n"]) == (0.0, 20, 0.0, 20)
    assert set(hook) == {f"h{i}" for i in range(20)}


def test_the_change_that_is_kept_is_adjusted_for_all_of_the_checkpoint(registry: Registry):
    """Nine tests of 500 questions, each able to show 1.8 points alone and 2.3 among nine."""
    sample = Sample(registry)
    parent = sample.checkpoint("parent", "sft")
    child = sample.checkpoint("child", "iteration", parent_id=parent)
    with registry.write() as session:
        for number in range(9):
            for checkpoint in (parent, child):
                of = {"key": f"{number}/{checkpoint}", "status": "complete"}
                data = {"benchmark": "alpaca_eval", "version": f"v{number}", "settings": {}, "settings_hash": "s"}
                answers = AnswerSet(checkpoint_id=checkpoint, n_questions=500, **of, **data)
                session.add(answers)
                session.flush()
                evaluation = Evaluation(answer_set_id=answers.id, judge_id=1, statistics={}, **of)
                session.add(evaluation)
                session.flush()
                for i in range(500):
                    value = 0.145 * (-1) ** i if checkpoint == child else 0.0
                    session.add(Judgment(evaluation_id=evaluation.id, question_id=f"q{i}", value=value, raw={}))

    def words(tested: range) -> set[str]:
        store_changes(registry, [f"{number}/{child}" for number in tested])
        with registry.read() as session:
            found = [row.statistics.get("change") for row in session.scalars(select(Evaluation))]
        return {change["verdict"] for change in found if change}

    assert words(range(1)) == {"NO EVIDENCE"} and words(range(9)) == {"UNDERPOWERED"}
