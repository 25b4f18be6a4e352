"""The iterations page: lineage, offline baselines as reference lines, one colour per checkpoint, curves that stay small."""

from html import unescape

import pytest
from sqlalchemy import select

from core.fingerprint import digest
from dashboard import charts
from dashboard.lineage_graph import lineage_graph
from db import views
from db.models import Checkpoint, Run, RunCheckpoint
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, drawn_rows, shown, words  # noqa: F401  (app is a fixture)


@pytest.fixture
def with_baseline(registry: Registry) -> Registry:
    """A finished run, and an offline baseline from its SFT policy with a score of its own."""
    sample = fill(registry)
    run = sample.run("quickstart-offline")
    policy = sample.checkpoint("quickstart-offline/final", "iteration", run, 1, parent_id=2, reference_id=2)
    sample.score(policy, "alpaca_eval", 33.3)
    with registry.write() as session:
        session.get_one(Run, run).recipe = {"name": "quickstart", "baseline": "offline_dpo"}
        session.add(RunCheckpoint(run_id=run, checkpoint_id=2, role="sft"))
        for row in session.scalars(select(Checkpoint).where(Checkpoint.kind == "iteration")):
            row.reference_id = 2
    return registry


def series(registry: Registry, run: str = "quickstart") -> dict[str, views.Series]:
    with registry.read() as session:
        return {one.benchmark: one for one in views.iteration_curves(session, run)}


def test_an_offline_baseline_of_the_same_first_policy_is_a_labelled_line(app, with_baseline: Registry) -> None:  # noqa: F811
    found = series(with_baseline)
    assert [point.cell.value for point in found["alpaca_eval"].baselines] == [33.3]
    assert found["mt_bench"].baselines == [], "not evaluated there"
    assert charts.iterations_in_words(found["alpaca_eval"]).endswith("baseline offline dpo 33.3 [12.3, 54.3].")
    layers = charts.iterations(found["alpaca_eval"])["layer"][0]["layer"]
    assert {"value": "offline dpo"} in [layer["encoding"].get("text") for layer in layers]
    test = app("iterations", with_baseline)
    said = words(shown(test.selectbox(key="run").set_value("quickstart").run()))
    assert "baseline offline dpo" in said and "33.3" in said and "offline baseline" in said


def test_a_baseline_from_another_policy_is_none_of_ours(with_baseline: Registry) -> None:
    with with_baseline.write() as session:
        other = session.scalar(select(RunCheckpoint).where(RunCheckpoint.role == "sft", RunCheckpoint.run_id == 2))
        other.checkpoint_id = 1
    assert series(with_baseline)["alpaca_eval"].baselines == []


def test_the_lineage_says_what_each_started_from_and_was_held_to(with_baseline: Registry) -> None:
    with with_baseline.read() as session:
        nodes = views.lineage(session, "quickstart")
    assert [(node.depth, node.name.split("/")[1]) for node in nodes] == [
        (0, "base"),
        (1, "sft"),
        (2, "iter-1"),
        (2, "final"),
        (3, "iter-2"),
    ]
    assert [node.name for node in nodes if node.best] == ["quickstart/iter-2"]
    html = unescape(lineage_graph(nodes))
    assert "from iteration 1; held to SFT" in html and html.count("best</span>") == 1
    assert f"checkpoint?fingerprint={digest('quickstart/iter-2')}" in html


def test_lineage_ends_where_checkpoints_name_each_other(registry: Registry) -> None:
    sample = Sample(registry)
    run = sample.run()
    a = sample.checkpoint("a", "base", run)
    b = sample.checkpoint("b", "sft", run, parent_id=a)
    with registry.write() as session:
        session.get_one(Checkpoint, a).parent_id = b
    with registry.read() as session:
        assert {node.name for node in views.lineage(session, "quickstart")} == {"a", "b"}


def test_every_checkpoint_has_the_colour_that_the_leaderboard_gives_it(app, with_baseline: Registry) -> None:  # noqa: F811
    rows = drawn_rows(charts.iterations(series(with_baseline)["alpaca_eval"]), "policy")
    html = shown(app("leaderboard", with_baseline))
    for row in rows:
        line = next(part for part in html.split("<tr>") if f">{row['checkpoint']}</a>" in part)
        assert f'class="dot c{row["colour"]}"' in line


def test_a_long_curve_keeps_its_spikes_and_gaps_in_few_points() -> None:
    points = [(step, 1.0 + 0.001 * step) for step in range(10_000)]
    points[5_003], points[7_777] = (5_003, 99.0), (7_777, None)
    kept = charts.thinned(points, 240)
    assert len(kept) <= 2 * 240 and kept == sorted(kept, key=lambda point: point[0])
    assert {(0, 1.0), (5_003, 99.0), (7_777, None), (9_999, points[-1][1])} <= set(kept)
    assert charts.thinned(points[:200], 240) == points[:200]
