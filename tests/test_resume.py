"""What is printed to be typed again is what was typed."""

import pytest

from db.models import Run
from db.registry import Registry
from db.resume import resume_command
from harness import record


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            ["/bin/harness", "train-and-eval", "my recipe.yaml", "--set", "dpo.beta=0.05"],
            "harness train-and-eval 'my recipe.yaml' --set dpo.beta=0.05",
        ),
        (
            ["/src/harness/__main__.py", "eval", "x", "--db", "postgresql://u:secret@h/d", "--limit", "3"],
            "harness eval x --limit 3",
        ),
        (["harness", "eval", "x", "--db=postgresql://u:secret@h/d"], "harness eval x"),
    ],
)
def test_the_command_line_is_kept_without_the_registrys_url(argv, command):
    assert record.typed(argv) == {"command": command}


def test_another_program_has_no_command(registry: Registry):
    assert record.typed(["/bin/pytest", "tests"]) == {} == record.typed(["/src/other/__main__.py"])
    identity = record.start_run(registry, "r", "quickstart", {})
    with registry.read() as session:
        assert "command" not in session.get_one(Run, identity).environment


def test_a_run_is_resumed_by_its_own_command(registry: Registry, monkeypatch):
    monkeypatch.setattr(record.sys, "argv", ["/bin/harness", "eval", "ckpt", "--benchmarks", "human_eval"])
    identity = record.start_run(registry, "eval-1", "evaluation", {})
    with registry.read() as session:
        run = session.get_one(Run, identity)
        assert (
            resume_command(run.name, run.recipe_name, run.recipe, run.environment) == "harness eval ckpt --benchmarks human_eval"
        )


def test_runs_of_before_commands_were_kept():
    assert resume_command("my run", "quickstart", {}, {}) == "harness train-and-eval quickstart --run 'my run'"
    baseline = {"baseline": "raft"}
    assert resume_command("r", "quickstart-raft", baseline, None) == "harness train-and-eval quickstart --run r --baseline raft"
    assert resume_command("eval-1", "evaluation", {}, {}) == "" == resume_command("sft", "registered", None, None)
