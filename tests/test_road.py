"""The whole road on a tiny model: each program a process, killed in four places, resumed, hooks asked, rows recorded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sqlalchemy import func, select

from db import Registry, models, views
from harness.recipe_file import shipped

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def recipe(tiny_llama: Path, tmp_path: Path) -> Path:
    """The quickstart's shape at the smallest size: a tiny random policy, the transformers engine, one iteration."""
    content = yaml.safe_load(shipped()["quickstart"].read_text())
    content |= {"name": "tiny", "iterations": 1, "base": {"source": str(tiny_llama)}}
    content["data"] |= {"heldout_pairs": 16, "heldout_prompts": 6}
    for part in ("sft", "reward", "gold_reward", "dpo"):
        content[part] |= {"max_steps": 3, "batch_size": 4, "micro_batch_size": 4, "save_steps": 1, "precision": "fp32"}
    content["generate"] |= {"engine": "transformers", "prompts_per_iteration": 12, "max_tokens": 12, "shard_size": 3}
    content["evaluate"] |= {"engine": "transformers", "held_out_max_tokens": 8}
    for benchmark in content["evaluate"]["benchmarks"]:
        benchmark |= {"limit": 3} | ({"max_tokens": 8} if benchmark["name"] != "truthful_qa" else {})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"HARNESS_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


def _start(recipe: Path, tmp_path: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness", "train-and-eval", str(recipe), "--json"]
    return subprocess.Popen(
        command, env=_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _kill_in(stage: str, recipe: Path, tmp_path: Path) -> list[dict]:
    """Run until `stage` reports progress, then kill -9 the whole process group; returns the events seen."""
    process = _start(recipe, tmp_path)
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "progress" and events[-1]["stage"] == stage and events[-1]["done"] < events[-1]["total"]:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()[-3000:]
    time.sleep(0.5)
    return events


def test_killed_in_four_places_and_resumed(recipe: Path, tmp_path: Path) -> None:
    finished: set[str] = set()
    for stage in ("generate[1]", "dpo[1]", "answer[iter-1]", "judge[iter-1]"):
        events = _kill_in(stage, recipe, tmp_path)
        made = {e["stage"] for e in events if e["event"] == "done" and not e["reused"]}
        assert not made & finished, f"made twice: {made & finished}"
        finished |= made

    process = _start(recipe, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    events = [json.loads(line) for line in output.splitlines()]
    assert {e["stage"] for e in events if e["event"] == "done" and e["reused"]} >= finished

    # What the last line says is what the registry holds: three policies, five benchmarks and the held-out reward each.
    board = events[-1]
    assert board["event"] == "leaderboard" and len(board["rows"]) == 3
    registry = Registry.open(f"sqlite:///{tmp_path / 'home' / 'registry.db'}", readonly=True)
    with registry.read() as session:
        rows = views.leaderboard(session)
        assert {row.kind for row in rows} == {"base", "sft", "iteration"}
        for row in rows:
            assert set(row.cells) == {"alpaca_eval", "arena_hard", "mt_bench", "human_eval", "truthful_qa", "held_out_reward"}
            for cell in row.cells.values():
                assert cell.n > 0 and cell.low <= cell.value <= cell.high
        assert session.scalar(select(models.Run)).status == "done"
        assert session.scalar(select(models.Run.best_checkpoint_id)) is not None
        assert session.scalar(select(func.count()).select_from(models.StageRun).where(models.StageRun.status == "failed")) == 0
        attempts = dict(session.execute(select(models.StageRun.name, models.StageRun.attempts)).tuples().all())
        assert attempts["generate[1]"] == 2 and attempts["annotate[1]"] == 1
        of_dpo = select(models.Curve.step).join(models.StageRun).where(models.StageRun.name == "dpo[1]")
        steps = session.scalars(of_dpo.where(models.Curve.metric == "loss")).all()
        assert sorted(steps) == [1, 2, 3]  # each once, those before the kill too
        # Every question answered once, every judgment made once, whatever was killed.
        for model in (models.Answer, models.Judgment):
            assert session.scalar(select(func.count()).select_from(model)) > 0
        trained = session.scalars(select(models.Checkpoint).where(models.Checkpoint.kind == "iteration")).one()
        assert trained.parent_id and trained.reference_id and len(trained.fingerprint) == 64
    registry.close()

    again = _start(recipe, tmp_path)
    output, errors = again.communicate()
    events = [json.loads(line) for line in output.splitlines()]
    assert again.returncode == 0, errors[-3000:]
    assert all(e["reused"] for e in events if e["event"] == "done")

    _third_party(tmp_path)


def _third_party(tmp_path: Path) -> None:
    """Weights that no run made, evaluated with the run's gold reward model as judge; the second time nothing is redone."""
    from safetensors.torch import load_file, save_file

    base = Path(yaml.safe_load((tmp_path / "tiny.yaml").read_text())["base"]["source"])
    theirs = tmp_path / "their-model"
    shutil.copytree(base, theirs)
    weights = {name: tensor * 1.01 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, theirs / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-m", "harness", "eval", str(theirs), "--benchmarks", "alpaca_eval,human_eval,truthful_qa"]
    command += [
        "--variant",
        "starter",
        "--limit",
        "3",
        "--max-tokens",
        "8",
        "--engine",
        "transformers",
        "--max-model-len",
        "1024",
    ]
    command += ["--judge", "tiny/gold_reward", "--json"]
    for again in (False, True):
        result = subprocess.run(command, env=_environment(tmp_path), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        events = [json.loads(line) for line in result.stdout.splitlines()]
        assert {e["reused"] for e in events if e["event"] == "done"} == {again}
        assert [row["checkpoint"] for row in events[-1]["rows"]] == ["their-model"]
    registry = Registry.open(f"sqlite:///{tmp_path / 'home' / 'registry.db'}", readonly=True)
    with registry.read() as session:
        row = session.scalars(select(models.Checkpoint).where(models.Checkpoint.name == "their-model")).one()
        assert (row.kind, row.source, row.parent_id) == ("third_party", "imported", None)
        assert {r.name for r in views.leaderboard(session)} >= {"their-model", "tiny/sft", "tiny/iter-1"}
    registry.close()


def test_second_run_of_the_same_name_is_refused(recipe: Path, tmp_path: Path) -> None:
    first = _start(recipe, tmp_path)
    for line in first.stdout:
        if json.loads(line)["event"] == "started":
            break
    second = _start(recipe, tmp_path)
    _, errors = second.communicate()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.returncode == 2 and f"process {first.pid}" in errors
