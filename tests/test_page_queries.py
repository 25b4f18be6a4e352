"""Every query of the pages on SQLite and on PostgreSQL, which differ in JSON, grouping and text."""

from datetime import timedelta

import pytest
from sqlalchemy import event, select

from core.errors import RegistryError
from core.fingerprint import digest
from db import costs, samples, views
from db.card import card
from db.differences import evaluated_differently, made_differently
from db.health import SILENT, registry_findings
from db.judges import judge_names, judging_checkpoint
from db.lineage import baselines
from db.models import Answer, Calibration, Evaluation, Judge, JudgeResponse, Judgment, Run, RunCheckpoint, Score, StageRun, now
from db.registry import Registry
from evals.changes import store_changes
from tests.sample_registry import Sample, fill

pytest_plugins = ["tests.postgres"]


@pytest.fixture
def registry(database_url: str):
    """A finished run with answers, verdicts, a canary, a baseline, and a second run that judges through an endpoint."""
    made = Registry.open(database_url)
    sample = fill(made)
    canary = sample.checkpoint("canary: constant", "canary")
    sample.score(canary, "alpaca_eval", 3.0)
    baseline, live = sample.run("offline", "done"), sample.run("live", "running")
    sample.checkpoint("offline/final", "iteration", baseline, 1, parent_id=2)
    with made.write() as session:
        session.get_one(Run, baseline).recipe = {"name": "quickstart", "baseline": "offline_dpo"}
        session.add(RunCheckpoint(run_id=baseline, checkpoint_id=2, role="sft"))
        run = session.get_one(Run, live)
        run.recipe = {"evaluate": {"judge": {"model": "m", "tokens_per_minute": 600}}}
        run.heartbeat_at = now() - 2 * SILENT
        for name, status, seconds in (("judge[a]", "done", 30.0), ("judge[b]", "running", None), ("judge[c]", "waiting", None)):
            metrics = {"micro_dollars": 100} if seconds else {}
            row = {"name": name, "status": status, "seconds": seconds, "metrics": metrics, "key": name}
            session.add(StageRun(run_id=live, program="evals.judged", **row))
        reply = {"key": "r", "model": "m", "endpoint": "e", "response": {}, "tokens_in": 290, "tokens_out": 10}
        session.add(JudgeResponse(**reply, created_at=now() - timedelta(seconds=5)))
        row = {"judge_key": "k", "judge_name": "saved", "judge_kind": "saved", "dataset": "pandalm", "version": "v"}
        session.add(Calibration(**row, n=1, n_failed=0, statistics={}))
        for at in (13, 19):
            session.add(Score(evaluation_id=at, metric="category:maths", value=5.0, method="m", n=4, n_failed=0))
            for i in range(8):
                session.add(Answer(answer_set_id=at, question_id=f"q{i}", prompt="p", text="x" * (i + at)))
                session.add(Judgment(evaluation_id=at, question_id=f"q{i}", value=0.1 * i + (at == 19) * 0.2))
        session.scalars(select(Evaluation).where(Evaluation.id == 25)).one().flags = [{"flag": "canary", "reason": "constant"}]
    yield made
    made.close()


def test_every_page_s_queries_on_both_databases(registry: Registry) -> None:
    with registry.read() as session:
        keys = list(session.scalars(select(Evaluation.key)))
    assert store_changes(registry, keys) == 1
    first, second = digest("quickstart/iter-2"), digest("quickstart/iter-1")
    with registry.read() as session:
        rows = {row.name: row for row in views.leaderboard(session, metrics=["mt_bench/score"])}
        best = rows["quickstart/iter-2"]
        assert best.base == "quickstart/base" and best.cells["alpaca_eval"].change.verdict == "IMPROVED"
        assert best.cells["mt_bench/score"].value == best.cells["mt_bench"].value
        assert rows["canary: constant"].cells["alpaca_eval"].flags[0]["flag"] == "canary"

        assert [one.label for one in baselines(session, "quickstart")] == ["offline_dpo"]
        assert "offline/final" in [node.name for node in views.lineage(session, "quickstart")]
        assert views.iteration_curves(session, "quickstart")

        assert judge_names(session) == ["gold reward model", "saved"]
        assert judging_checkpoint(session, f"reward-model:{first[:8]}") == "quickstart/iter-2"
        assert [name for name, _ in views.canaries(session, "gold reward model")] == ["canary: constant"]
        assert views.judge_cards(session, "gold reward model")

        now_judging = views.run_status(session, "live").judging
        assert (now_judging.tokens_per_minute, now_judging.token_limit) == (300, 600)
        (left,) = costs.queued(session)
        assert (left.stages, left.seconds, left.micro_dollars) == (2, 60.0, 200)
        found = {one.check: one.state for one in registry_findings(session)}
        assert (found["running runs"], found["answers"], found["judges"]) == ("fail", "warn", "warn")

        assert samples.answer_lengths(session, 19)["q3"] == 22.0
        assert samples.breakdowns(session, 19) == {"categories": {"maths": {"score": 5.0, "n": 4}}}
        assert [line.question_id for line in samples.lines(session, 19, characters=(20, 21))] == ["q1", "q2"]
        assert len(samples.evaluation_states(session, first, second)) == 12
        assert [j.value for j in samples.judgments_of(session, 19, "q2")] == [pytest.approx(0.4)]
        assert samples.evaluated_checkpoints(session)[-1][1] == "canary: constant"
        assert made_differently(session, first, second) == []
        assert evaluated_differently(session, first, second, "alpaca_eval") == []
        assert card(session, first).pairs.n_pairs == 44


@pytest.mark.parametrize("typed", ["a\x00", "\ud800", "x" * 1000])
def test_what_a_reader_types_into_the_address_is_looked_for_whatever_it_is(registry: Registry, typed: str) -> None:
    with registry.read() as session:
        assert samples.lines(session, 19, search=typed) == [] == samples.lines(session, 19, category=typed)
        assert views.judge_cards(session, typed) == [] == views.canaries(session, typed)
        with pytest.raises(RegistryError, match="no checkpoint"):
            card(session, typed)
        with pytest.raises(RegistryError, match="no run named"):
            views.run_status(session, typed)


def test_a_leaderboard_is_of_one_moment_while_others_write(registry: Registry) -> None:
    """A judge that appears between two queries of one page has no cell there."""
    late = Sample.__new__(Sample)
    late.registry, late.judges = registry, {}

    def write(connection, cursor, statement: str, *_) -> None:
        if "FROM judge" in statement and not late.judges:
            with registry.write() as session:
                judge = Judge(key="late", name="late", kind="openai")
                session.add(judge)
            late.judges["late"] = judge.id
            late.score(late.checkpoint("late", "third_party"), "alpaca_eval", 50.0, judge="late")

    with registry.read() as session:
        names = {row.name for row in views.leaderboard(session)}
    event.listen(registry._reader, "after_cursor_execute", write)
    with registry.read() as session:
        assert {row.name for row in views.leaderboard(session)} == names and late.judges
    with registry.read() as session:
        assert {row.name for row in views.leaderboard(session)} == names | {"late"}
