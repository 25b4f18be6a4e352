"""Costs: what was reused is counted once, where it was made; sums by iteration and judge; what is left to do."""

import pytest

from core.fingerprint import digest
from db import costs
from db.models import Cost, Evaluation, Run, StageRun
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)


def spend(registry: Registry, scope: str, key: str, kind: str, amount: float, micro_dollars: int = 0) -> None:
    with registry.write() as session:
        session.add(Cost(scope=scope, scope_key=key, kind=kind, amount=amount, micro_dollars=micro_dollars))


@pytest.fixture
def spent(registry: Registry) -> Registry:
    """Two runs; the second reuses the first one's SFT stage. 100 s of SFT, 50 s of DPO, one priced evaluation of iteration 2."""
    sample = fill(registry)
    spend(registry, "stage", digest([1, "sft"]), "gpu_seconds", 100.0)
    spend(registry, "stage", digest([1, "dpo[2]"]), "gpu_seconds", 50.0)
    second = sample.run("second", "running")
    with registry.write() as session:
        common = {"run_id": second, "attempts": 1}
        session.add(StageRun(name="sft", program="train.sft", key=digest([1, "sft"]), status="reused", **common))
        session.add(StageRun(name="dpo[1]", program="train.dpo", key="k1", status="done", seconds=40.0, **common))
        session.add(StageRun(name="dpo[2]", program="train.dpo", key="k2", status="running", done=5, total=20, **common))
        session.add(StageRun(name="dpo[3]", program="train.dpo", key="k3", status="waiting", **common))
        key = session.get_one(Evaluation, 19).key
    spend(registry, "stage", "k1", "cpu_seconds", 40.0)
    spend(registry, "evaluation", key, "judge_tokens", 12_000.0, 2_500_000)
    return registry


def test_a_reused_stage_is_counted_once_where_it_was_made(spent: Registry):
    with spent.read() as session:
        second, first = costs.by_run(session)
    assert (first.run, first.total.gpu_seconds, first.checkpoints) == ("quickstart", 150.0, 4)
    assert (second.total.gpu_seconds, second.total.cpu_seconds) == (0.0, 40.0)
    assert {t: s.gpu_seconds for t, s in first.iterations.items()} == {0: 100.0, 2: 50.0}
    assert (first.iterations[2].judge_tokens, first.iterations[2].micro_dollars) == (12_000.0, 2_500_000)


def test_what_is_left_follows_the_last_stage_of_the_kind(spent: Registry):
    """15 of 20 steps of the running stage and all of the waiting one, at 40 s each."""
    with spent.read() as session:
        (left,) = costs.queued(session)
    assert (left.run, left.program, left.stages, left.micro_dollars) == ("second", "train.dpo", 2, 0)
    assert left.seconds == pytest.approx(0.75 * 40 + 40)


def test_a_kind_that_has_not_ended_yet_costs_what_it_did_in_the_last_run_of_the_recipe(spent: Registry):
    with spent.write() as session:
        first, second = (row.id for row in session.query(Run).order_by(Run.id))
        done = {"program": "evals.judged", "status": "done", "seconds": 60.0, "metrics": {"micro_dollars": 1_500_000}}
        session.add(StageRun(run_id=first, name="judge[iter-2]", key="j", **done))
        for name, program in (("judge[iter-1]", "evals.judged"), ("judge[iter-2]", "evals.judged"), ("new", "train.new")):
            session.add(StageRun(run_id=second, name=name, program=program, key=name, status="waiting"))
    with spent.read() as session:
        found = {one.program: one for one in costs.queued(session)}
    assert (found["evals.judged"].seconds, found["evals.judged"].micro_dollars) == (120.0, 3_000_000)
    assert (found["train.new"].seconds, found["train.new"].micro_dollars) == (None, None)


def test_judges_are_listed_with_what_they_cost_and_those_that_cost_nothing(spent: Registry):
    with spent.read() as session:
        rows = costs.by_judge(session)
    assert (rows[0].benchmark, rows[0].evaluations, rows[0].tokens, rows[0].micro_dollars) == (
        "alpaca_eval",
        4,
        12_000.0,
        2_500_000,
    )
    assert len(rows) == 6 and all(row.micro_dollars == 0 for row in rows[1:])


def test_the_page_shows_time_and_money(app, spent: Registry):  # noqa: F811
    seen = words(shown(app("costs", spent)))
    assert "$2.50" in seen and "12\u2009000" in seen and "about 70 s" in seen


def test_a_run_is_billed_for_what_it_paid_and_not_for_what_others_paid_for_its_checkpoints(app, spent: Registry):  # noqa: F811
    """Run `eval-abc` judges iteration 1 of `quickstart` for 9 dollars; a calibration outside of any run costs 1."""
    sample = Sample.__new__(Sample)
    sample.registry = spent
    sample.run("eval-abc", recipe="evaluation")
    spend(spent, "run", digest({"run": "eval-abc"}), "judge_tokens", 90_000.0, 9_000_000)
    spend(spent, "run", digest({"run": "quickstart"}), "judge_tokens", 12_000.0, 2_500_000)
    with spent.read() as session:
        ours, calibration = session.get_one(Evaluation, 13).key, session.get_one(Evaluation, 14).key
    spend(spent, "evaluation", ours, "judge_tokens", 90_000.0, 9_000_000)
    spend(spent, "evaluation", calibration, "judge_tokens", 10_000.0, 1_000_000)
    with spent.read() as session:
        found = {run.run: run for run in costs.by_run(session)}
    assert (found["eval-abc"].total.micro_dollars, found["eval-abc"].total.judge_tokens) == (9_000_000, 90_000.0)
    assert found["quickstart"].total.micro_dollars == 2_500_000
    assert found["quickstart"].iterations[1].micro_dollars == 10_000_000, "what judging it cost, whoever paid"
    seen = " ".join(words(shown(app("costs", spent))).split())
    assert "Money $12.50" in seen and "outside of these runs" in seen and "Money per checkpoint" in seen
