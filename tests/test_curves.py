"""Training curves: what a training seals is what the registry shows, whatever was killed, reused or changed on the way."""

import math
from pathlib import Path

import pytest
from sqlalchemy import select

from core.artifacts import Artifact
from db import Registry, models
from harness import record
from harness.plan import Node
from train.curves import values_of, write_curves

HISTORY = [
    {"loss": 0.7, "grad_norm": 2.0, "epoch": 0.5, "step": 1},
    {"loss": 0.5, "grad_norm": 1.0, "epoch": 1.0, "step": 2},
    {"eval_loss": 0.6, "eval_rewards/accuracies": 0.75, "eval_rewards/margins": math.nan, "epoch": 1.0, "step": 2},
    {"train_runtime": 9.0, "train_loss": 0.6, "epoch": 1.0, "step": 2},
]
SEALED = {
    ("loss", 1, 0.7),
    ("grad_norm", 1, 2.0),
    ("loss", 2, 0.5),
    ("grad_norm", 2, 1.0),
    ("held_out/accuracy", 2, 0.75),
    ("held_out/margin", 2, None),
}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    write_curves(tmp_path, HISTORY)
    return Artifact(tmp_path, {"seconds": 1.0, "peak_rss_bytes": 1, "metrics": {}, "fingerprint": "a"})


def _stored(registry: Registry, run_id: int) -> set[tuple[str, int, float | None]]:
    with registry.read() as session:
        query = select(models.Curve.metric, models.Curve.step, models.Curve.value).join(models.StageRun)
        return set(session.execute(query.where(models.StageRun.run_id == run_id)).tuples())


def _node(key: str) -> Node:
    return Node("dpo[1]", "train.dpo", {}, {}, key, iteration=1)


def test_a_point_is_what_was_logged_without_its_place() -> None:
    assert [values_of(entry) for entry in HISTORY[:2]] == [{"loss": 0.7, "grad_norm": 2.0}, {"loss": 0.5, "grad_norm": 1.0}]
    assert set(values_of(HISTORY[2])) == {"held_out/accuracy", "held_out/margin"} and values_of(HISTORY[3]) == {}


def test_points_that_no_runner_heard_are_there_once_the_stage_is_done(registry: Registry, artifact: Artifact) -> None:
    run_id = record.start_run(registry, "r", "x", {})
    record.stage_row(registry, run_id, _node("k"), status="waiting")
    stage_id = record.stage_started(registry, run_id, _node("k"), 1, "log")
    record.curve_points(registry, stage_id, [(1, {"loss": 0.9, "grad_norm": math.inf})])  # of the attempt before
    assert _stored(registry, run_id) == {("loss", 1, 0.9), ("grad_norm", 1, None)}
    for reused in (False, True):  # the second time nothing changes
        record.stage_done(registry, run_id, _node("k"), artifact, reused)
        assert _stored(registry, run_id) == SEALED


def test_a_run_that_reuses_a_training_shows_its_curves(registry: Registry, artifact: Artifact) -> None:
    first, second = (record.start_run(registry, name, "x", {}) for name in ("first", "second"))
    record.stage_done(registry, first, _node("k"), artifact, reused=False)
    record.stage_done(registry, second, _node("k"), artifact, reused=True)
    assert _stored(registry, first) == _stored(registry, second) == SEALED


def test_curves_of_other_settings_do_not_stay(registry: Registry, artifact: Artifact) -> None:
    run_id = record.start_run(registry, "r", "x", {})
    record.stage_done(registry, run_id, _node("k"), artifact, reused=False)
    record.stage_row(registry, run_id, _node("another"), status="waiting")
    assert _stored(registry, run_id) == set()
