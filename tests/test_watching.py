"""`harness watch`: checkpoints that appear in a folder are taken once each, whole, in the order of their steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.errors import HarnessError, MissingInput, RunInUse
from core.fingerprint import checkpoint_fingerprint
from db.models import Checkpoint, Run
from db.registry import Registry
from harness import watching
from harness.cli import app as commands
from harness.plan import Ref
from harness.watching import Watch, looks
from tests.conftest import ROOT
from tests.test_dashboard import app, shown  # noqa: F401


def _emptied(folder: Path) -> None:
    """As a removal leaves it between its first file and its last."""
    (folder / "config.json").unlink()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))


def checkpoint(tiny_llama: Path, folder: Path, scale: float = 1.0) -> Path:
    """A copy of the tiny model whose weights are `scale` times as large: another content for each scale. Appears whole."""
    from safetensors.torch import load_file, save_file

    aside = folder.parent.parent / f"aside-{folder.name}"
    shutil.copytree(tiny_llama, aside)
    weights = {name: scale * tensor for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
    folder.parent.mkdir(exist_ok=True)
    return aside.rename(folder)


class Heard:
    """What a watch told, and the checkpoints that it had evaluated."""

    def __init__(self):
        self.events: list[tuple[str, dict]] = []
        self.evaluated: list[str] = []

    def tell(self, event: str, **fields) -> None:
        self.events.append((event, fields))

    def evaluate(self, policy: Ref, name: str) -> str:
        self.evaluated.append(name)
        return name

    def of(self, event: str) -> list[dict]:
        return [fields for name, fields in self.events if name == event]


def watch(registry: Registry, folder: Path, heard: Heard, **changes) -> Watch:
    return Watch(folder, registry, "run", **({"evaluate": heard.evaluate, "tell": heard.tell, "settle": 0.0} | changes))


def test_whole_checkpoints_are_taken_in_order_and_half_ones_when_they_are_whole(
    tiny_llama: Path, registry: Registry, tmp_path: Path
):
    out, heard = tmp_path / "out", Heard()
    for step in (1000, 200, 30):
        checkpoint(tiny_llama, out / f"checkpoint-{step}", step)
    late = out / "checkpoint-40"
    shutil.copytree(out / "checkpoint-30", late)
    whole = (late / "model.safetensors").read_bytes()
    (late / "model.safetensors").write_bytes(whole[:-7])
    (out / "logs").mkdir()
    checkpoint(tiny_llama, out / ".checkpoint-5.tmp", 5)

    watch(registry, out, heard).run(once=True, interval=0)
    assert heard.evaluated == ["run/step-30", "run/step-200", "run/step-1000"]
    (waiting,) = heard.of("waiting")
    assert waiting["checkpoint"] == str(late) and waiting["missing"] == ["model.safetensors (it is not whole)"]

    (late / "model.safetensors").write_bytes(whole)
    again = Heard()
    watch(registry, out, again).run(once=True, interval=0)
    assert again.evaluated == ["run/step-30", "run/step-40", "run/step-200", "run/step-1000"], "evaluations resume by themselves"
    with registry.read() as session:
        names = [row.name for row in session.query(Checkpoint).order_by(Checkpoint.id)]
    assert names == ["run/step-30", "run/step-200", "run/step-1000"], "step 40 has the weights of step 30"


def test_a_checkpoint_is_taken_once_until_it_is_rewritten(tiny_llama: Path, registry: Registry, tmp_path: Path):
    out, heard = tmp_path / "out", Heard()
    first = checkpoint(tiny_llama, out / "checkpoint-1", 1.5)
    watched = watch(registry, out, heard, base=tiny_llama)
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            watched.run(once=False, interval=0.02)
        except BaseException as error:
            ended.append(error)

    def wait(n: int) -> None:
        deadline = time.monotonic() + 20
        while len(heard.of("evaluated")) < n:
            assert time.monotonic() < deadline, heard.events
            time.sleep(0.01)

    def stop(policy: Ref, name: str) -> str:
        raise KeyboardInterrupt

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    wait(1)
    time.sleep(0.2)
    assert heard.evaluated == ["run/step-1"]
    shutil.rmtree(first)
    checkpoint(tiny_llama, first, 2.0)
    wait(2)
    checkpoint(tiny_llama, out / "checkpoint-2", 3.0)
    wait(3)
    with pytest.raises(RunInUse):
        watch(registry, out, Heard()).run(once=True, interval=0)
    watched.evaluate = stop
    checkpoint(tiny_llama, out / "checkpoint-3", 4.0)
    thread.join(20)
    assert not thread.is_alive() and [type(error) for error in ended] == [KeyboardInterrupt]
    fingerprints = {event["fingerprint"] for event in heard.of("registered")}
    assert len(fingerprints) == 4
    with registry.read() as session:
        assert session.query(Run).filter_by(name="run").one().status == "stopped"
        rows = session.query(Checkpoint).filter(Checkpoint.kind == "third_party").all()
        assert {row.parent.kind for row in rows} == {"base"} and len(rows) == 4


def test_a_fresh_or_unfinished_folder_waits(tiny_llama: Path, tmp_path: Path):
    out = tmp_path / "out"
    folder = checkpoint(tiny_llama, out / "step_7")
    changed = max(path.stat().st_mtime for path in folder.iterdir())
    assert looks(out, 10.0, changed + 9)[0].missing == ("10 s without a change",)
    assert looks(out, 10.0, changed + 11)[0].missing == ()
    assert looks(out, 10.0, changed - 3600)[0].missing == (), "another machine's clock does not stop it for ever"
    (folder / "model-2.safetensors.tmp").touch()
    assert looks(out, 0.0, changed + 11)[0].missing == ("the rest of model-2.safetensors.tmp",)
    (out / "global_step100" / "global_step100").mkdir(parents=True)
    assert [look.step for look in looks(out, 0.0, changed + 11)] == [7, 100]


def test_the_final_model_beside_its_checkpoints_comes_last(tiny_llama: Path, tmp_path: Path):
    out = checkpoint(tiny_llama, tmp_path / "out")
    checkpoint(tiny_llama, out / "checkpoint-3", 2.0)
    found = looks(out, 0.0, time.time() + 1)
    assert [(look.folder.name, look.step) for look in found] == [("checkpoint-3", 3), ("out", None)]


def test_what_is_wrong_with_one_checkpoint_does_not_end_the_watch(tiny_llama: Path, registry: Registry, tmp_path: Path):
    out, heard = tmp_path / "out", Heard()
    bad = checkpoint(tiny_llama, out / "checkpoint-1")
    (bad / "modeling.py").write_text("import os")
    checkpoint(tiny_llama, out / "checkpoint-2", 2.0)
    watched = watch(registry, out, heard)
    watched.run(once=True, interval=0)
    assert heard.evaluated == ["run/step-2"] and watched.failed == 1 and "Python files" in heard.of("failed")[0]["error"]
    with pytest.raises(MissingInput, match="There is no folder"):
        watch(registry, tmp_path / "nowhere", heard).run(once=True, interval=0)


@pytest.mark.parametrize("rotate", [shutil.rmtree, _emptied], ids=["whole", "half"])
def test_a_checkpoint_that_is_rotated_away_while_it_is_taken_does_not_end_the_watch(
    tiny_llama: Path, registry: Registry, tmp_path: Path, rotate: Callable[[Path], None]
):
    out, heard = tmp_path / "out", Heard()
    for step in (1, 2):
        checkpoint(tiny_llama, out / f"checkpoint-{step}", float(step))

    def evaluate(policy: Ref, name: str) -> str:
        if name == "run/step-1":
            rotate(Path(policy.path))
            (Path(policy.path) / "config.json").read_text()  # what the evaluation would read next
        return heard.evaluate(policy, name)

    watched = watch(registry, out, heard, evaluate=evaluate)
    watched.run(once=True, interval=0)
    assert heard.evaluated == ["run/step-2"] and watched.failed == 1
    assert "removed while it was read" in heard.of("failed")[0]["error"]


def test_an_input_that_is_not_there_is_told_of_each_checkpoint(tiny_llama: Path, registry: Registry, tmp_path: Path):
    """MissingInput is a FileNotFoundError too."""
    out, heard = tmp_path / "out", Heard()
    for step in (1, 2):
        checkpoint(tiny_llama, out / f"checkpoint-{step}", float(step))

    def evaluate(policy: Ref, name: str) -> str:
        raise MissingInput("The questions are not here; fetch them.")

    watch(registry, out, heard, evaluate=evaluate).run(once=True, interval=0)
    assert [fields["error"] for fields in heard.of("failed")] == ["The questions are not here; fetch them."] * 2


def test_a_missing_file_of_something_else_ends_the_watch(tiny_llama: Path, registry: Registry, tmp_path: Path):
    checkpoint(tiny_llama, tmp_path / "out" / "checkpoint-1")

    def evaluate(policy: Ref, name: str) -> str:
        return (tmp_path / "questions.jsonl").read_text()

    with pytest.raises(FileNotFoundError, match="questions"):
        watch(registry, tmp_path / "out", Heard(), evaluate=evaluate).run(once=True, interval=0)


def test_a_checkpoint_that_is_rewritten_while_it_is_hashed_is_taken_again(
    tiny_llama: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The trainer's write is put where the hashing has just read the weights."""
    folder, heard = checkpoint(tiny_llama, tmp_path / "out" / "latest"), Heard()

    def hashed(path: Path) -> str:
        fingerprint = checkpoint_fingerprint(path)
        if not heard.events:
            shutil.rmtree(folder)
            checkpoint(tiny_llama, folder, 2.0)
        return fingerprint

    monkeypatch.setattr(watching, "checkpoint_fingerprint", hashed)
    watch(registry, tmp_path / "out", heard).run(once=True, interval=0)
    assert [name for name, _ in heard.events] == ["failed", "registered", "evaluated"]
    assert "rewritten while it was read" in heard.of("failed")[0]["error"]
    assert heard.of("registered")[0]["fingerprint"] == checkpoint_fingerprint(folder)
    with registry.read() as session:
        assert session.query(Checkpoint).count() == 1, "what was overwritten leaves no row"


def test_the_command_only_registers_when_asked_to(tiny_llama: Path, registry: Registry, tmp_path: Path):
    checkpoint(tiny_llama, tmp_path / "my-dpo" / "checkpoint-9")
    given = ["watch", str(tmp_path / "my-dpo"), "--benchmarks", "none", "--once", "--settle", "0", "--db", registry.url]
    result = CliRunner().invoke(commands, [*given, "--json"])
    (event,) = [json.loads(line) for line in result.output.splitlines()]
    assert result.exit_code == 0 and (event["event"], event["name"], event["step"]) == ("registered", "my-dpo/step-9", 9)
    plain = CliRunner().invoke(commands, given)
    assert "checkpoint-9: registered as my-dpo/step-9" in plain.output


def test_a_recipe_that_judges_with_its_own_reward_model_needs_another_judge(registry: Registry, tmp_path: Path):
    given = ["watch", str(tmp_path), "--once", "--db", registry.url, "--recipe", "quickstart"]
    with pytest.raises(HarnessError, match="RUN/gold_reward"):
        CliRunner().invoke(commands, given, catch_exceptions=False)
    with pytest.raises(HarnessError, match="exclude each other"):
        CliRunner().invoke(commands, [*given, "--benchmarks", "human_eval"], catch_exceptions=False)


def test_ctrl_c_ends_a_watch_cleanly(tiny_llama: Path, registry: Registry, tmp_path: Path):
    checkpoint(tiny_llama, tmp_path / "out" / "checkpoint-1")
    command = [sys.executable, "-m", "harness", "watch", str(tmp_path / "out"), "--benchmarks", "none", "--json", "--settle", "0"]
    process = subprocess.Popen(
        [*command, "--db", registry.url, "--interval", "0.1"],
        cwd=ROOT,
        env=os.environ | {"HARNESS_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and children inherit it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert json.loads(process.stdout.readline())["event"] == "registered"
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and json.loads(rest)["event"] == "stopped"
    with registry.read() as session:
        assert session.query(Run).one().status == "stopped"


@pytest.mark.slow
def test_a_watched_checkpoint_is_measured_by_the_real_stages(tiny_llama: Path, registry: Registry, tmp_path: Path):
    checkpoint(tiny_llama, tmp_path / "out" / "checkpoint-1")
    given = ["watch", str(tmp_path / "out"), "--benchmarks", "truthful_qa", "--variant", "starter", "--once", "--settle", "0"]
    given += ["--engine", "transformers", "--max-model-len", "1024", "--db", registry.url, "--json"]
    events = [json.loads(line) for line in CliRunner().invoke(commands, given).output.splitlines()]
    (evaluated,) = [event for event in events if event["event"] == "evaluated"]
    score = evaluated["scores"]["truthful_qa"]
    assert score["metric"] == "mc2" and score["low"] <= score["value"] <= score["high"] and score["n"] == 10
    again = [json.loads(line) for line in CliRunner().invoke(commands, given).output.splitlines()]
    assert all(event["reused"] for event in again if event["event"] == "done")


@pytest.mark.slow
def test_every_page_shows_a_training_that_no_recipe_made(app, tiny_llama: Path, registry: Registry, tmp_path: Path):  # noqa: F811
    for step in (1, 2):
        checkpoint(tiny_llama, tmp_path / "out" / f"checkpoint-{step}", 1.0 + step)
    checkpoint(tiny_llama, tmp_path / "out" / "final", 9.0)
    watch(registry, tmp_path / "out", Heard(), base=tiny_llama, evaluate=None).run(once=True, interval=0)
    for page in ("leaderboard", "runs", "iterations", "costs", "health", "checkpoint", "compare"):
        app(page, registry)
    assert "run/step-2" in shown(app("leaderboard", registry))
