"""The health page: each fault of a registry is found with the command that mends it; a doctor that hangs hurts nobody."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from core.errors import HarnessError
from core.fingerprint import digest
from dashboard.machine import doctor
from db.health import SILENT, registry_findings
from db.models import Evaluation, Judge, Run, now
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)


def findings(registry: Registry) -> dict[str, tuple[str, str, str]]:
    with registry.read() as session:
        return {one.check: (one.state, one.found, one.fix) for one in registry_findings(session)}


def test_a_finished_run_wants_nothing_but_a_calibrated_judge(registry: Registry) -> None:
    fill(registry)
    found = findings(registry)
    assert found.pop("judges") == ("warn", "never set beside people: gold reward model", "harness judge calibrate JUDGE")
    with registry.write() as session:
        judge = session.scalars(select(Judge).where(Judge.name == "gold reward model")).one()
        judge.name = f"reward-model:{digest('quickstart/iter-1')[:8]}"
    assert findings(registry)["judges"][2] == "harness judge calibrate quickstart/iter-1"
    with registry.write() as session:
        judge = session.get_one(Judge, judge.id)
        judge.kind, judge.name = "openai", "gpt-5"
    assert findings(registry)["judges"][2] == "harness judge calibrate openai:gpt-5"
    assert {state for state, *_ in found.values()} == {"ok"}


def test_every_fault_is_found_with_what_mends_it(registry: Registry) -> None:
    sample = fill(registry)
    silent = sample.run("my run", "running", recipe="quickstart")
    sample.stage(sample.run("broken", "failed"), "dpo[1]", "failed", error="CUDA out of memory")
    sample.score(sample.checkpoint("a", "third_party"), "mt_bench", None, n_failed=3, complete=False)
    with registry.write() as session:
        session.get_one(Run, silent).heartbeat_at = now() - 2 * SILENT
        session.scalars(select(Evaluation)).first().flags = [{"flag": "alike", "reason": "half begin alike"}]
    found = findings(registry)
    assert found["running runs"][:2] == ("fail", "silent for over five minutes: my run")
    assert found["running runs"][2] == "harness train-and-eval quickstart --run 'my run'"
    assert found["stages"][:2] == ("warn", "failed in broken: dpo[1]")
    assert found["evaluations"][1] == "1 not complete"
    assert found["failed items"] == ("warn", "1 headline withheld: over 1 % of the items failed", "harness rejudge --failed")
    assert found["answers"][0] == "warn"


def test_a_run_that_spoke_a_moment_ago_is_not_silent(registry: Registry) -> None:
    run = Sample(registry).run("live", "running")
    with registry.write() as session:
        session.get_one(Run, run).heartbeat_at = now() - SILENT + timedelta(seconds=30)
    assert findings(registry)["running runs"][0] == "ok"


def test_the_page_shows_the_machine_and_the_registry_what_fails_first(app, registry: Registry) -> None:  # noqa: F811
    run = fill(registry).run("my run", "running")
    with registry.write() as session:
        session.get_one(Run, run).heartbeat_at = now() - 2 * SILENT
    test = app("health", registry)
    html = shown(test)
    assert "python" in words(html) and "sandbox" in words(html), "the doctor of this very machine"
    assert html.index("my run") < html.index("none failed")
    assert "harness train-and-eval quickstart --run 'my run'" in [code.value for code in test.code]


def test_a_doctor_that_hangs_or_breaks_is_one_sentence() -> None:
    with pytest.raises(HarnessError, match="did not end within 0 s; run `harness doctor`"):
        doctor(timeout=0.2, program=("-c", "import time; time.sleep(60)"))
    with pytest.raises(HarnessError, match="did not run .*no such thing"):
        doctor(program=("-c", "raise SystemExit('no such thing')"))
    told = doctor(program=("-c", 'print(\'[{"found": "postgresql+psycopg://me:s3cret@db:5432/x"}]\')'))
    assert told == [{"found": "postgresql+psycopg://me:***@db:5432/x"}], "no password on a page"
    assert doctor(program=("-c", "print('[]'); raise SystemExit(1)")) == [], "exit 1 is a finding, not a fault"
