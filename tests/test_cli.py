"""The command line as a user meets it: fast help, one-sentence errors with the fix, exit codes."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import app

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def harness(tmp_path: Path):
    """`harness(*arguments, **environment)`: the command in a process with a HARNESS_HOME of its own."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        settings = os.environ | {"HARNESS_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)} | environment
        return subprocess.run(
            [sys.executable, "-m", "harness", *arguments], env=settings, cwd=tmp_path, capture_output=True, text=True
        )

    return call


def _refused(result: subprocess.CompletedProcess, *fragments: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr


def test_help_imports_nothing_heavy(harness) -> None:
    """The time is a claim of benchmarks/help.py; what makes it so is checked here."""
    code = (
        "import sys, harness.cli, harness.__main__\n"
        "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'trl', 'streamlit', 'sqlalchemy', 'numpy', 'pydantic'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_has_help() -> None:
    """Every command and subcommand prints its help, with an example where it does something."""
    found = {" ".join(path) for path, _ in _commands(typer.main.get_command(app))}
    assert {
        "train-and-eval",
        "eval",
        "compare",
        "rescore",
        "import",
        "export",
        "judge calibrate",
        "rejudge",
        "judge",
        "data",
        "db",
    } <= found
    for path in found:
        result = CliRunner().invoke(app, [*path.split(), "--help"])
        assert result.exit_code == 0 and "Usage:" in result.stdout, path
        assert f"harness {path}" in " ".join(result.stdout.split()), f"{path} has no example"


def _commands(group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))


def test_a_command_s_help_is_printed_by_the_program(harness) -> None:
    result = harness("rescore", "--help")
    assert result.returncode == 0 and "Usage:" in result.stdout


def test_unknown_key_is_refused(harness) -> None:
    _refused(harness("train-and-eval", "quickstart", "--set", "dpo.bta=1"), "unknown key 'dpo.bta'; did you mean 'beta'?")


def test_missing_model_is_refused(harness) -> None:
    _refused(harness("train-and-eval", "quickstart", "--set", "base.source=/no/such/model"), "/no/such/model")


def test_judge_without_key_is_refused(harness) -> None:
    overrides = ("--set", "evaluate.judge={kind: openai, model: gpt-4.1, api_key_env: NO_SUCH_KEY}")
    _refused(harness("train-and-eval", "quickstart", *overrides), "export NO_SUCH_KEY")


def test_zero_in_bf16_on_a_cpu_is_refused(harness) -> None:
    result = harness("train-and-eval", "quickstart", "--set", "dpo.zero_stage=2", PATH="/nonexistent")
    _refused(result, "precision=fp32")


def test_a_refusal_writes_nothing(harness, tmp_path: Path) -> None:
    harness("train-and-eval", "quickstart", "--set", "base.source=/no/such/model")
    harness("train-and-eval", "quickstart", "--set", "iterations=0")
    assert not (tmp_path / "home").exists()


def test_too_little_disk_is_refused_before_the_first_stage(harness) -> None:
    """200 billion bytes of checkpoints: more iterations than any disk here holds."""
    _refused(harness("train-and-eval", "quickstart", "--set", "iterations=100000"), "GiB free", "HARNESS_HOME")


def test_dry_run_prints_the_plan_and_runs_nothing(harness, tmp_path: Path) -> None:
    result = harness("train-and-eval", "quickstart", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    stages = json.loads(result.stdout)
    assert [s["stage"] for s in stages][:3] == ["convert", "data", "sft"] and all(s["state"] == "to do" for s in stages)
    assert not (tmp_path / "home" / "artifacts").exists()


def test_eval_of_a_judged_benchmark_needs_a_judge(harness, tiny_llama: Path) -> None:
    _refused(harness("eval", str(tiny_llama), "--benchmarks", "alpaca_eval", "--variant", "starter"), "--judge openai:MODEL")


def test_leaderboard_of_nothing_names_the_command_that_fills_it(harness) -> None:
    result = harness("leaderboard")
    assert "harness train-and-eval" in result.stdout + result.stderr


def test_status_of_an_unknown_run(harness) -> None:
    assert harness("status", "nothing").returncode == 2


def test_doctor_reports_every_check(harness) -> None:
    result = harness("doctor", "--json")
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    assert rows["torch"]["state"] == "ok" and rows["disk"]["found"]
    assert {"python", "accelerator", "sandbox", "registry", "data"} <= rows.keys()
    assert all(row["fix"] for row in rows.values() if row["state"] != "ok")


def test_data_with_a_wrong_hash_is_refused(harness, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror" / "preferences"
    mirror.mkdir(parents=True)
    (mirror / "hh_rlhf_harmless_test.jsonl.gz").write_bytes(gzip.compress(b"not what was published"))
    result = harness("train-and-eval", "smollm2-135m", "--dry-run", HARNESS_DATA=str(tmp_path / "mirror"))
    _refused(result, "hh_rlhf_harmless_test", "sha256")
    assert not (tmp_path / "home").exists()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """HARNESS_HOME on a real, small file system, mounted in a user namespace of its own."""
    home = tmp_path / "small"
    home.mkdir()
    run = f"{sys.executable} -m harness train-and-eval quickstart; code=$?; ls -A {home}; exit $code"
    script = f"mount -t tmpfs -o size=4m tmpfs {home} && {run}"
    settings = os.environ | {"HARNESS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["unshare", "-Urm", "sh", "-c", script], env=settings, cwd=tmp_path, capture_output=True, text=True)
    _refused(result, "GiB free", "set HARNESS_HOME to another disk")
    assert result.stdout == ""


def test_a_disk_that_fills_up_inside_a_stage_seals_nothing(tmp_path: Path, make_spec, starter: Path) -> None:
    store = tmp_path / "artifacts"
    sources = [
        {"name": "p", "reader": "starter_preferences", "use": "preferences", "files": ["source/p/0"], "limit": None},
        {"name": "q", "reader": "starter_prompts", "use": "prompts", "files": ["source/q/0"], "limit": None},
    ]
    splits = {"gold_fraction": 0.5, "heldout_pairs": 10, "heldout_prompts": 10, "sft_from": "chosen"}
    inputs = {"source/p/0": starter / "preferences.jsonl", "source/q/0": starter / "prompts.jsonl"}
    spec = make_spec("data", {"sources": sources, "splits": splits, "seed": 1}, inputs)
    run = f"{sys.executable} -m train.data {spec}; code=$?; ls {store} >&2; exit $code"
    script = f"mount -t tmpfs -o size=48k tmpfs {store} && {run}"
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(["unshare", "-Urm", "sh", "-c", script], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "DiskFull: " in result.stderr and "free space there" in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].endswith(".partial"), "only the resumable partial directory is left"


def test_the_schema_s_upgrade_can_be_read_by_a_program(harness, tmp_path: Path) -> None:
    said = [json.loads(harness("db", "upgrade", "--json", "--db", f"sqlite:///{tmp_path / 'r.db'}").stdout) for _ in range(2)]
    assert said[0]["before"] is None and said[0]["after"] == said[1]["before"] == said[1]["after"]


def test_a_fetch_says_what_is_here_now(harness) -> None:
    result = harness("data", "fetch", "starter_prompts", "--json")
    rows = json.loads(result.stdout)
    assert result.returncode == 0 and {(row["name"], row["state"]) for row in rows} == {("starter_prompts", "ok")}, rows
