"""What a run is given must stay what it was given."""

import shutil
from pathlib import Path

import pytest

from core.errors import HashMismatch
from core.fingerprint import checkpoint_fingerprint
from harness import record
from harness.console import Reporter
from harness.plan import Plan, Ref
from harness.runner import Runner
from tests.test_plan import _inputs


def test_a_checkpoint_that_changes_under_a_run_stops_it(registry, tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    policy = Path(shutil.copytree(tiny_llama, tmp_path / "policy"))
    ref = Ref(path=str(policy), fingerprint=checkpoint_fingerprint(policy))
    plan = Plan("x", None, 0, _inputs())
    runner = Runner("x", record.start_run(registry, "x", "x", {}), registry, Reporter(), 0, "h")
    assert runner._resolve(plan, ref)["fingerprint"] == ref.fingerprint == runner._resolve(plan, ref)["fingerprint"]
    assert runner._resolve(plan, Ref(path="", fingerprint="canary"))["fingerprint"] == "canary"
    (policy / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(HashMismatch, match="was changed while this run was using it"):
        runner._resolve(plan, ref)
