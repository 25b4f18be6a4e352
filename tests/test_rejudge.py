"""A judge that stops answering: the run goes on or stops as it was told, and `harness rejudge` finishes what is open."""

import json
import os
import subprocess
import sys

import pytest
from sqlalchemy import select

from core.errors import JudgeError, MissingInput, StageFailed
from db.models import AnswerSet, Evaluation, Judgment, Run, Score, StageRun
from db.registry import Registry
from evals import records
from evals.benchmark import BENCHMARKS
from harness import workflow
from harness.commands import find_judge
from harness.judging import judge_specs
from harness.plan import Inputs, Ref, build_evaluation, build_plan
from harness.recipe import Evaluate
from harness.recipe_file import load_recipe
from harness.resolve import resolve_benchmarks, resolve_checkpoint
from tests.conftest import ROOT
from tests.judge_stage import CERTAIN
from tests.sample_registry import Sample
from tests.scripted_judge import ScriptedJudgeServer, fails, says


class Command:
    """`harness` with a HARNESS_HOME of its own, and a checkpoint whose answers are stored: nothing is generated."""

    def __init__(self, home, checkpoint, monkeypatch):
        monkeypatch.setenv("HARNESS_HOME", str(home))
        monkeypatch.delenv("HARNESS_DB", raising=False)
        self.checkpoint = checkpoint
        self.registry = Registry.open(f"sqlite:///{home / 'registry.db'}")
        self._answer()

    def _answer(self):
        settings = Evaluate.model_validate(
            {
                "benchmarks": [{"name": "alpaca_eval", "variant": "starter"}],
                "engine": "transformers",
                "held_out_reward": False,
                "judge": {"kind": "openai", "model": "scripted"},
            }
        )
        policy = resolve_checkpoint(str(self.checkpoint))
        plan = build_evaluation(settings, 42, policy, Inputs(None, [], resolve_benchmarks(settings)))
        node = plan.nodes["answer[policy]"]
        chosen, benchmark = node.settings["benchmarks"][0], BENCHMARKS["alpaca_eval"]
        questions = benchmark.load({"questions": node.inputs["data/alpaca_eval/questions"].path})
        common = {"turn": 1, "sample": 0, "prompt": "p", "output_tokens": 7, "finish_reason": "stop"}
        rows = [common | {"question_id": q.id, "text": f"Answer to {q.id}."} for q in questions]
        with self.registry.write() as session:
            row = records.get_checkpoint(session, policy.fingerprint, policy.path)
            found = records.get_answer_set(session, row, benchmark, chosen, node.settings, len(questions))
            records.store_answers(session, found.id, rows)

    def __call__(self, *arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, "-m", "harness", *arguments], env=environment, capture_output=True, text=True)

    def evaluate(self, server, *more):
        options = ["--benchmarks", "alpaca_eval", "--variant", "starter", "--engine", "transformers"]
        judge = ["--judge", "openai:scripted", "--base-url", server.url, "--judge-option", "api_key_env=''"]
        patience = ["--judge-option", "concurrency=4", "--judge-option", "price={input: 10, output: 30}"]
        return self("eval", str(self.checkpoint), *options, *judge, *patience, *more)

    def state(self):
        """(status of the run, of the evaluation, failed judgments, value of the headline, states of the stages)."""
        with self.registry.read() as session:
            return (
                session.scalars(select(Run.status)).one(),
                session.scalars(select(Evaluation.status)).one(),
                len(session.scalars(select(Judgment).where(Judgment.value.is_(None))).all()),
                session.scalars(select(Score.value).where(Score.headline)).one(),
                {row.name: row.status for row in session.scalars(select(StageRun))},
            )


@pytest.fixture
def harness(tmp_path, tiny_llama, monkeypatch):
    return Command(tmp_path / "home", tiny_llama, monkeypatch)


def test_a_judge_that_goes_away_leaves_the_run_to_be_finished(harness):
    down = [True]

    def script(request, number):
        # A 403 is known for what it is at once, so that the test does not wait for retries.
        return fails(403, "account suspended") if down[0] and number >= 6 else CERTAIN

    with ScriptedJudgeServer(script) as server:
        dry = harness.evaluate(server, "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        forecast = json.loads(dry.stdout)[-1]["forecast"][0]
        assert (forecast["calls"], forecast["cached"], forecast["assumed_answers"]) == (16, 0, 0)
        assert forecast["micro_dollars"] > 0 and server.requests == []

        ended = harness.evaluate(server, "--judge-option", "on_failure=continue")
        assert ended.returncode == 2, ended.stdout + ended.stderr
        with harness.registry.read() as session:
            name = session.scalars(select(Run.name)).one()
        assert "not everything is judged: judge[policy]" in ended.stderr
        assert f"harness rejudge {name} --failed" in ended.stderr and "account suspended" in ended.stderr
        status, evaluation, _, headline, stages = harness.state()
        assert (status, evaluation, headline, stages["judge[policy]"]) == ("failed", "partial", None, "failed")
        asked = len(server.requests)

        still = harness("rejudge", name, "--failed", "--json")
        assert still.returncode == 2 and "account suspended" in still.stderr
        down[0] = False
        mended = harness("rejudge", name, "--failed")
        assert mended.returncode == 0, mended.stderr
        assert "0 now" in mended.stdout
        status, evaluation, failed, headline, stages = harness.state()
        assert (status, evaluation, failed, stages["judge[policy]"]) == ("done", "complete", 0, "done") and headline is not None
        assert len(server.requests) - asked <= 16
        asked = len(server.requests)
        assert "nothing was asked" in harness("rejudge", "--failed").stdout
        # What is judged is free the next time, and the forecast knows it.
        assert json.loads(harness.evaluate(server, "--dry-run", "--json").stdout)[-1]["forecast"][0]["calls"] == 0
        assert harness.evaluate(server).returncode == 0 and len(server.requests) == asked


def test_a_sealed_stage_with_a_failed_judgment_is_asked_again(harness):
    unreadable = [True]

    def script(request, number):
        return says("m") if number == 8 and unreadable[0] else CERTAIN

    with ScriptedJudgeServer(script) as server:
        ended = harness.evaluate(server)
        assert ended.returncode == 0, ended.stderr
        assert harness.state()[2] == 1 and harness.state()[3] is None  # sealed, its headline withheld
        unreadable[0] = False
        asked = len(server.requests)
        told = harness("rejudge", str(harness.checkpoint.name), "--failed")
        assert told.returncode == 2 and "neither a run nor a checkpoint" in told.stderr
        with harness.registry.read() as session:
            fingerprint = session.scalars(select(AnswerSet)).one().checkpoint.fingerprint
        told = harness("rejudge", fingerprint[:10], "--failed", "--json")
        assert told.returncode == 0, told.stderr
        report = json.loads(told.stdout.splitlines()[-1])
        assert [(row["failed_before"], row["failed"]) for row in report["stages"]] == [(1, 0)]
        assert len(server.requests) == asked + 1
    assert harness.state()[1:3] == ("complete", 0) and harness.state()[3] is not None


class _Ensured:
    """A mock runner: every stage succeeds but the judge's. A real one would train for minutes to reach this."""

    def __init__(self):
        self.made = []

    def ensure(self, plan, node):
        if node.program == "evals.judged":
            raise StageFailed("the judge is away.")
        self.made.append(node.name)


def _quickstart(on_failure):
    recipe = load_recipe("quickstart", [f"evaluate.judge.on_failure={on_failure}"])
    source = {"name": "pairs", "reader": "jsonl", "use": "preferences", "limit": None}
    benchmarks = resolve_benchmarks(recipe.evaluate)
    return build_plan(
        recipe, Inputs(Ref(path="/base", fingerprint="b"), [(source, [Ref(path="/p", fingerprint="a")])], benchmarks)
    )


def test_training_goes_on_without_its_judge_if_told_to():
    plan, runner, unjudged = _quickstart("continue"), _Ensured(), {}
    for iteration in (None, 0, 1, 2):
        workflow._make(runner, plan, iteration, unjudged)
    assert {"dpo[1]", "dpo[2]", "answer[iter-2]"} <= set(runner.made)
    assert list(unjudged) == ["judge[base]", "judge[sft]", "judge[iter-1]", "judge[iter-2]"]


def test_training_stops_with_its_judge_otherwise():
    plan, runner = _quickstart("stop"), _Ensured()
    with pytest.raises(StageFailed, match="the judge is away"):
        workflow._make(runner, plan, 0, {})


@pytest.mark.parametrize("wildcard", ["%", "_"])
def test_a_wildcard_is_no_start_of_a_fingerprint(registry, wildcard):
    Sample(registry).checkpoint("gold", "gold_reward")
    with pytest.raises(MissingInput, match="neither a run nor a checkpoint"):
        list(judge_specs(registry, wildcard))
    with pytest.raises(JudgeError, match="names 0 reward models"):
        find_judge(registry, wildcard, None)
