"""The change against the parent: tested once when an evaluation ends, stored, and noticed when its parent is judged anew."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from dashboard import export
from dashboard import format as f
from dashboard.ranking import board
from db import views
from db.models import AnswerSet, Evaluation, Judgment, now
from db.registry import Registry
from evals.changes import store_changes
from evals.paired import compare_checkpoints
from tests.sample_registry import fill
from tests.test_comparison import judge_all


def keys(registry: Registry, *, checkpoint: int | None = None) -> list[str]:
    with registry.read() as session:
        return [e.key for e in session.scalars(select(Evaluation)) if checkpoint in (None, e.answer_set.checkpoint_id)]


def changes(registry: Registry) -> dict[str, dict]:
    """checkpoint -> the change stored with its AlpacaEval."""
    with registry.read() as session:
        rows = views.leaderboard(session)
    return {row.name: row.cells["alpaca_eval"].change for row in rows}


@pytest.fixture
def judged(registry: Registry) -> Registry:
    fill(registry)
    judge_all(registry, {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.5})
    return registry


def test_it_is_what_compare_says_and_the_leaderboard_shows_it(judged: Registry):
    assert store_changes(judged, keys(judged)) == 3
    found = changes(judged)
    assert found["quickstart/base"] is None, "a base has no parent"
    with judged.read() as session:
        compared = next(c for c in compare_checkpoints(session, "quickstart/iter-2").comparisons if c.benchmark == "alpaca_eval")
        rows = views.leaderboard(session)
    best = found["quickstart/iter-2"]
    assert (best.value, best.low, best.high, best.verdict) == (
        compared.difference.value,
        compared.difference.low,
        compared.difference.high,
        compared.verdict,
    )
    assert best.significant and best.against == "quickstart/iter-1"
    assert f.change(rows[3].cells["alpaca_eval"]).startswith("▲ +")
    assert not found["quickstart/sft"].significant and f.change(rows[1].cells["alpaca_eval"])[0] not in "▲▼"
    assert export.to_json(board(rows))[3]["scores"]["alpaca_eval"]["change"] == best.value
    assert r"$\blacktriangle$ +" in export.to_latex(board(rows))


def test_nothing_is_tested_twice_and_a_rejudged_parent_is_noticed(judged: Registry):
    store_changes(judged, keys(judged))
    assert store_changes(judged, keys(judged)) == 0
    before = changes(judged)
    with judged.write() as session:
        parent = next(e for e in session.scalars(select(Evaluation)) if e.answer_set.checkpoint_id == 3 and e.id == 13)
        parent.finished_at = now()
        for judgment in session.scalars(select(Judgment).where(Judgment.evaluation_id == parent.id)):
            judgment.value += 0.5
    # only the parent's evaluation is named: its own change and its child's are tested anew
    assert store_changes(judged, keys(judged, checkpoint=3)) == 2
    after = changes(judged)
    assert after["quickstart/iter-1"].verdict == "IMPROVED" and after["quickstart/iter-2"].verdict != "IMPROVED"
    assert after["quickstart/sft"] == before["quickstart/sft"]


def test_evaluations_that_differ_or_are_not_complete_have_no_change(judged: Registry):
    with judged.write() as session:
        for evaluation in session.scalars(select(Evaluation)):
            if evaluation.answer_set.checkpoint_id == 3:
                evaluation.status = "partial"
            if evaluation.answer_set.checkpoint_id == 2:
                evaluation.answer_set.settings_hash = "0" * 64
    assert store_changes(judged, keys(judged)) == 0
    assert set(changes(judged).values()) == {None}


def test_of_several_evaluations_of_the_parent_the_newest_counts(judged: Registry):
    """Answers of another seed stand in the same group: which of them is the parent's must not depend on the order of rows."""
    with judged.write() as session:
        old = next(e for e in session.scalars(select(Evaluation)) if e.answer_set.checkpoint_id == 3 and e.id == 13)
        of, values = old.answer_set, session.scalars(select(Judgment).where(Judgment.evaluation_id == old.id)).all()
        same = {name: getattr(of, name) for name in ("checkpoint_id", "benchmark", "version", "settings", "settings_hash")}
        again = AnswerSet(key="seed 7", n_questions=of.n_questions, status="complete", **same)
        session.add(again)
        session.flush()
        earlier = old.finished_at - timedelta(days=1)
        other = Evaluation(
            key="seed 7", answer_set_id=again.id, judge_id=old.judge_id, status="complete", finished_at=earlier, statistics={}
        )
        session.add(other)
        session.flush()
        for one in values:
            session.add(Judgment(evaluation_id=other.id, question_id=one.question_id, value=one.value + 0.5, raw={}))
    store_changes(judged, keys(judged))
    assert changes(judged)["quickstart/iter-2"].verdict == "IMPROVED", "against the newer, which is worse"
    assert store_changes(judged, keys(judged)) == 0, "nothing is tested twice"


def test_what_an_older_rule_stored_is_tested_anew(judged: Registry):
    store_changes(judged, keys(judged))
    with judged.write() as session:
        for row in session.scalars(select(Evaluation)):
            if change := (row.statistics or {}).get("change"):
                row.statistics = row.statistics | {
                    "change": change | {"made_from": change["made_from"][:2], "verdict": "REGRESSED"}
                }
    assert store_changes(judged, keys(judged)) == 3
    assert changes(judged)["quickstart/iter-2"].verdict == "IMPROVED"


def test_a_change_says_what_it_is_of_where_the_headline_has_no_value_per_question():
    tested = SimpleNamespace(verdict="IMPROVED", value=2.24, against="parent", n=805, p=0.01)
    cell = SimpleNamespace(benchmark="alpaca_eval", metric="length_controlled_winrate", value=45.0, change=tested)
    assert f.change(cell) == "▲ +2.2 raw"
    cell.metric = "win_rate"
    assert f.change(cell) == "▲ +2.2"
    whole = {
        "n": 805,
        "n_failed": 0,
        "complete": True,
        "method": "m",
        "flags": [],
        "trust": None,
        "judge": "j",
        "judge_kind": "openai",
    }
    cell = SimpleNamespace(**vars(cell) | whole | {"metric": "length_controlled_winrate", "low": 42.0, "high": 48.0})
    assert "against parent: +2.2 raw win rate, paired over 805 questions" in f.describe(cell)
