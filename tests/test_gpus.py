"""Machines with several GPUs, where there are none: what a plan may ask for, what a process sees, what is billed."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from core import gpus
from core.artifacts import Artifact
from core.errors import RecipeError
from db import Registry, models
from harness import preflight, record, runner
from harness.plan import Node
from harness.recipe_file import load_recipe
from train import optimisation


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a node of four GPUs."""
    for module in (gpus, preflight, runner, optimisation):
        monkeypatch.setattr(module, "visible_gpus", lambda: ["0", "1", "2", "3"])


def test_a_recipe_that_wants_more_gpus_than_there_are_is_refused_with_the_keys(four: None) -> None:
    recipe = load_recipe(
        "quickstart", ["dpo.num_processes=8", "dpo.batch_size=8", "dpo.micro_batch_size=1", "annotate.processes=5"]
    )
    with pytest.raises(RecipeError, match="4 GPUs are visible.*--set dpo.num_processes=4 --set annotate.processes=4"):
        preflight.check_gpus(recipe)
    engines = ["generate.engine=vllm", "generate.processes=3", "generate.tensor_parallel=2"]
    with pytest.raises(RecipeError, match="use --set generate.processes=2 "):
        preflight.check_gpus(load_recipe("quickstart", engines))
    with pytest.raises(RecipeError, match="generate.tensor_parallel=4"):
        preflight.check_gpus(load_recipe("quickstart", ["generate.engine=vllm", "generate.tensor_parallel=8"]))
    preflight.check_gpus(load_recipe("quickstart", [*engines, "generate.processes=2"]))


def test_without_gpus_the_same_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: [])
    preflight.check_gpus(load_recipe("quickstart", ["annotate.processes=8"]))


def test_a_training_of_one_process_sees_one_gpu(four: None) -> None:
    """The trainer multiplies its batch by the GPUs that it sees, and trl refuses to train so."""
    settings: dict[str, Any] = {"zero_stage": None}
    _, environment = optimisation.launch_command("train.dpo", Path("spec"), settings, {"num_processes": 1})
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    _, several = optimisation.launch_command("train.dpo", Path("spec"), settings, {"num_processes": 2})
    assert "CUDA_VISIBLE_DEVICES" not in several


def test_worker_processes_hold_their_gpus_though_their_parent_holds_none(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gpus.sys.modules, "torch", raising=False)
    assert gpus.gpus_used({}) == 0
    assert gpus.gpus_used({"processes": 4}) == 4
    assert gpus.gpus_used({"processes": 2, "tensor_parallel": 2}) == 4
    assert gpus.gpus_used({"processes": 8}) == 4
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    assert gpus.gpus_used({"processes": 4}) == 0


def _billed(registry: Registry) -> dict[str, float]:
    with registry.read() as session:
        return {cost.kind: cost.amount for cost in session.scalars(select(models.Cost))}


def _last(registry: Registry, seconds: float) -> None:
    """Let the running stage's last heartbeat be so long after its start."""
    from datetime import timedelta

    with registry.write() as session:
        row = session.scalars(select(models.StageRun)).one()
        row.heartbeat_at = row.started_at + timedelta(seconds=seconds)


def test_attempts_that_were_lost_are_billed_once_and_with_their_gpus(registry: Registry, tmp_path: Path, four: None) -> None:
    node = Node("generate[1]", "train.generate", {}, {}, "k", iteration=1, resources={"processes": 2, "tensor_parallel": 2})
    held = runner.gpus_planned(node.program, node.resources)
    artifact = Artifact(tmp_path, {"seconds": 10.0, "gpus": 4, "peak_rss_bytes": 1, "metrics": {}, "fingerprint": "a"})
    run_id = record.start_run(registry, "r", "x", {})
    record.stage_row(registry, run_id, node, status="waiting")
    record.lost_attempt(registry, run_id, node, held)
    assert held == 4 and _billed(registry) == {}
    record.stage_started(registry, run_id, node, 1, "log")
    _last(registry, 30)
    for _ in range(2):  # the runner was killed beside it, and comes back
        record.lost_attempt(registry, run_id, node, held)
        record.stage_row(registry, run_id, node, status="waiting")
    assert _billed(registry) == {"gpu_seconds": 120.0}
    record.stage_started(registry, run_id, node, 1, "log")
    record.stage_done(registry, run_id, node, artifact, reused=False)
    record.stage_done(registry, run_id, node, artifact, reused=True)
    assert _billed(registry) == {"gpu_seconds": 160.0}


def test_a_stage_is_billed_by_the_run_that_made_it(registry: Registry, tmp_path: Path) -> None:
    node = Node("sft", "train.sft", {}, {}, "k")
    artifact = Artifact(tmp_path, {"seconds": 10.0, "peak_rss_bytes": 1, "metrics": {}, "fingerprint": "a"})
    first, second, third = (record.start_run(registry, name, "x", {}) for name in "abc")
    record.stage_done(registry, second, node, artifact, reused=False, made_elsewhere=True)  # it waited for the first
    assert _billed(registry) == {}
    record.stage_row(registry, first, node, status="waiting")
    record.stage_started(registry, first, node, 1, "log")
    record.stage_done(registry, first, node, artifact, reused=True)  # killed after the seal, before this record
    record.stage_done(registry, third, node, artifact, reused=True)
    assert _billed(registry) == {"cpu_seconds": 10.0}
