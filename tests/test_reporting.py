"""Training curves in trackers: what they get, where they fail, and what is refused before a run starts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import HarnessError, MissingInput, RecipeError
from core.stage import Spec, Stage
from harness.plan import build_plan
from harness.recipe_file import load_recipe
from tests.test_plan import _inputs
from tests.training import RESOURCES, read_events, training_settings, write_jsonl
from train.reporting import TRACKERS, Trackers, require_trackers

# A tracker as another package would bring it: a module, and the metadata that declares it.
PLUGIN = """
import json
import subprocess
import sys

class Lines:
    def __init__(self, place):
        self.place, self.file = place, open(place.folder / "lines.jsonl", "a")

    def log(self, step, values):
        if step == 3 and self.place.settings["learning_rate"] == 0.002:
            raise OSError("the tracker's server is gone")
        self.file.write(json.dumps({"run": self.place.run, "stage": self.place.stage, "step": step} | values) + chr(10))
        self.file.flush()

    def close(self):
        self.file.write('"closed"')
        self.file.close()
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that declares the tracker `lines`."""
    site = tmp_path / "site"
    declared = site / "lines_tracker-1.0.dist-info"
    declared.mkdir(parents=True)
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: lines-tracker\nVersion: 1.0\n")
    (declared / "entry_points.txt").write_text("[harness.trackers]\nlines = lines_tracker:Lines\n")
    (site / "lines_tracker.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))


def train(make_spec, tiny_llama: Path, tmp_path: Path, names: list[str], **changes) -> tuple[dict, Path]:
    """An SFT stage in this process; returns its metrics and its events."""
    from train.sft import run

    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    rows = [
        {"id": str(k), "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]} for k in range(16)
    ]
    write_jsonl(data / "sft.jsonl", rows)
    events = tmp_path / "sft.ndjson"
    fields = {"run": "my-run", "events": str(events), "resources": RESOURCES | {"report_to": names}}
    settings = training_settings(loss_on="assistant", packing=False, **changes)
    stage = Stage(Spec.load(make_spec("sft", settings, {"policy": tiny_llama, "data": data}, **fields)))
    stage.work.mkdir(parents=True)
    return run(stage), events


def test_a_tracker_gets_the_curves_of_the_registry(make_spec, tiny_llama: Path, tmp_path: Path):
    _, events = train(make_spec, tiny_llama, tmp_path, ["lines"])
    lines = [json.loads(line) for line in (tmp_path / "home/runs/my-run/reports/lines.jsonl").read_text().splitlines()]
    points = read_events(events, "metric")
    assert lines.pop() == "closed" and len(lines) == len(points) == 4
    for line, point in zip(lines, points, strict=True):
        assert line == {"run": "my-run", "stage": "sft", "step": point["step"]} | point["values"]
    assert lines[0]["loss"] > 0


def test_a_tracker_that_fails_costs_no_training(make_spec, tiny_llama: Path, tmp_path: Path):
    metrics, events = train(make_spec, tiny_llama, tmp_path, ["lines"], learning_rate=0.002)
    assert metrics["examples"] == 16
    (told,) = [event["text"] for event in read_events(events, "message")]
    assert told == "No more is reported to lines: OSError: the tracker's server is gone"
    assert len((tmp_path / "home/runs/my-run/reports/lines.jsonl").read_text().splitlines()) == 2


def test_only_the_first_rank_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    spec = Spec("sft", 1, "k", {}, {}, str(tmp_path / "store"), resources={"report_to": ["no-such-tracker"]})
    assert Trackers(Stage(spec)).open == {} and not (tmp_path / "home").exists()


def test_what_is_not_installed_is_refused_with_the_fix():
    with pytest.raises(RecipeError, match="tensorboard, wandb, trackio"):
        require_trackers(["mlflow"])
    for name in TRACKERS:
        if importlib.util.find_spec(name) is None:
            with pytest.raises(MissingInput, match=f"pip install {name}"):
                require_trackers([name])
        else:
            require_trackers([name])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_the_folder_that_wandb_leaves_behind_is_not_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingInput, match="pip install wandb"):
        require_trackers(["wandb"])


def test_a_run_is_refused_before_it_starts(tmp_path: Path):
    from harness.commands import run_recipe

    with pytest.raises(HarnessError, match="not known to harness.trackers"):
        run_recipe("quickstart", None, None, ["report_to=[abacus]"], None, False, True, None)
    assert not (tmp_path / "home" / "registry.db").exists()


def test_who_is_told_changes_no_key():
    plans = [build_plan(load_recipe("quickstart", given), _inputs()) for given in ([], ["report_to=[tensorboard]"])]
    assert [node.key for node in plans[0].nodes.values()] == [node.key for node in plans[1].nodes.values()]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_back_what_was_reported(make_spec, tiny_llama: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, events = train(make_spec, tiny_llama, tmp_path, ["tensorboard"])
    read = EventAccumulator(str(tmp_path / "home/runs/my-run/reports/tensorboard/sft")).Reload()
    losses = [point["values"]["loss"] for point in read_events(events, "metric")]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx(losses)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_stays_on_disk_without_a_key(make_spec, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    _, events = train(make_spec, tiny_llama, tmp_path, ["wandb"])
    assert list((tmp_path / "home/runs/my-run/reports/wandb").glob("offline-run-*")) and read_events(events, "message") == []


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_reads_back_what_was_reported(make_spec, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    _, events = train(make_spec, tiny_llama, tmp_path, ["trackio"])
    program = (
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print([row['loss'] for row in S.get_logs('rlhf-harness', 'my-run/sft') if 'loss' in row])"
    )
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(read.stdout) == pytest.approx([p["values"]["loss"] for p in read_events(events, "metric")])
