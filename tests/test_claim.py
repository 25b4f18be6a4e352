"""Work in progress belongs to one run at a time, and to the inputs that it was begun from."""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import pytest

from core.artifacts import Store
from core.claim import claimed, clear_if_begun_otherwise
from core.errors import StageFailed
from core.fingerprint import digest
from core.stage import Spec
from harness.executor import run_process

SHARDS = """
import time
from pathlib import Path
from core.stage import Stage, main

def run(stage: Stage) -> dict:
    text = Path(stage.input("answers")).read_text()
    for shard in range(3):
        path = stage.work / f"shard-{shard}"
        if not path.exists():  # what is there is done
            path.write_text(text)
        if shard == 0 and text == "first":
            raise RuntimeError("killed here")
        time.sleep(stage.settings["pause"])
    with open(stage.settings["log"], "a") as log:
        log.write("made\\n")
    return {}

if __name__ == "__main__":
    main(run)
"""


def _spec(tmp_path: Path, store: Path, answers: str, pause: float = 0.0, run: str = "a") -> tuple[Spec, list[str]]:
    (tmp_path / answers).write_text(answers)
    (tmp_path / "program.py").write_text(SHARDS)
    settings = {"pause": pause, "log": str(tmp_path / "made")}
    inputs = {"answers": {"path": str(tmp_path / answers), "fingerprint": digest(answers)}}
    spec = Spec("toy", 1, digest(settings), settings, inputs, str(store), events=str(tmp_path / f"{run}.ndjson"), run=run)
    spec.save(tmp_path / f"{run}.json")
    return spec, [sys.executable, str(tmp_path / "program.py"), str(tmp_path / f"{run}.json")]


def _run(tmp_path: Path, store: Path, answers: str, pause: float = 0.0, run: str = "a") -> tuple[bool, list[str]]:
    spec, command = _spec(tmp_path, store, answers, pause, run)
    said: list[str] = []
    made = run_process(spec, "toy", command, {}, tmp_path / f"{run}.log", lambda e: said.append(e.get("text", "")))
    return made, [text for text in said if text]


def test_what_was_begun_from_other_answers_is_not_gone_on_with(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StageFailed, match="killed here"):
        _run(tmp_path, store, "first")
    assert (Store(store).partial("toy", digest({"pause": 0.0, "log": str(tmp_path / "made")})) / "shard-0").exists()
    made, said = _run(tmp_path, store, "second")
    (sealed,) = store.glob("toy-*")
    assert made and said == ["What was begun from other inputs is discarded; starting anew."]
    assert [file.read_text() for file in sorted(sealed.glob("shard-*"))] == ["second"] * 3


def test_what_was_begun_from_the_same_inputs_stays(tmp_path: Path, store: Path) -> None:
    kept = Store(store)
    assert not clear_if_begun_otherwise(kept, "toy", "k", {"answers": "1"})
    kept.partial("toy", "k").mkdir(parents=True)
    assert not clear_if_begun_otherwise(kept, "toy", "k", {"answers": "1"})
    assert kept.partial("toy", "k").exists()
    assert clear_if_begun_otherwise(kept, "toy", "k", {"answers": "2"})
    assert not kept.partial("toy", "k").exists()
    assert not clear_if_begun_otherwise(kept, "toy", "k", {"answers": "2"})


def _in_a_process(results: multiprocessing.Queue, *arguments: object) -> None:
    results.put(_run(*arguments))


def test_two_runs_that_share_a_stage_make_it_once(tmp_path: Path, store: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    runs = []
    for name in ("a", "b"):
        runs.append(context.Process(target=_in_a_process, args=(results, tmp_path, store, "other", 0.5, name)))
        runs[-1].start()
        time.sleep(0.3)
    found = sorted(results.get(timeout=60) for _ in runs)
    for run in runs:
        run.join(10)
    (waited, said), (made, _) = found
    assert (waited, made) == (False, True)
    assert len(said) == 1 and said[0].startswith("Waiting for a (process ") and "its result will be taken" in said[0]
    assert (tmp_path / "made").read_text() == "made\n"
    (sealed,) = store.glob("toy-*")
    assert json.loads((sealed / "manifest.json").read_text())["files"].keys() == {"shard-0", "shard-1", "shard-2"}


def test_a_claim_ends_with_its_owner(tmp_path: Path, store: Path) -> None:
    def hold(ready: object) -> None:
        with claimed(Store(store), "toy", "k", "a", lambda text: None):
            ready.set()
            time.sleep(600)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=hold, args=(ready,))
    owner.start()
    assert ready.wait(10)
    said: list[str | None] = []

    def waiting(text: str | None) -> None:
        said.append(text)
        owner.kill()

    with claimed(Store(store), "toy", "k", "b", waiting) as waited:
        assert waited and said[0].startswith("Waiting for a (process ")
    owner.join(10)
