"""The two things a run can be: a recipe from base model to leaderboard, or the evaluation of one checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core import paths
from core.errors import HarnessError, StageFailed
from db import Registry
from harness import record
from harness.console import Reporter
from harness.hooking import Hooks
from harness.judging import PROGRAM as JUDGE_PROGRAM
from harness.judging import unjudged_error
from harness.lock import run_lock
from harness.plan import Inputs, Plan, Ref, build_evaluation, build_plan
from harness.recipe import Evaluate, Recipe
from harness.runner import Runner


def train_and_eval(recipe: Recipe, inputs: Inputs, name: str, registry: Registry, reporter: Reporter) -> None:
    """Run a recipe to its end: prepare, evaluate the first policies, then iterate; hooks decide after each iteration.

    Raises HarnessError; whatever was finished stays and the same call goes on from there. With
    `evaluate.judge.on_failure: continue` a judge that stops answering ends the run only once everything else is done.
    """
    unjudged: dict[str, str] = {}
    with _run(name, recipe.name, recipe.model_dump(mode="json"), recipe.seed, registry, reporter) as runner:
        runner.report_to = recipe.report_to
        plan = build_plan(recipe, inputs)
        reporter.plan(plan)
        runner.register_given(plan)
        _make(runner, plan, None, unjudged)
        _make(runner, plan, 0, unjudged)
        hooks = Hooks(registry, runner.run_id, recipe)
        decision = hooks.after(0)
        reporter.decision(0, decision)
        starts: dict[int, int] = {}
        # A budget may be spent before the loop begins.
        iterations = 0 if decision.action == "stop" else recipe.iterations
        for t in range(1, iterations + 1):
            plan = build_plan(recipe, inputs, starts)
            _make(runner, plan, t, unjudged)
            decision = hooks.after(t)
            reporter.decision(t, decision)
            if decision.action == "stop":
                break
            if decision.action == "roll_back":
                starts[t + 1] = hooks.iteration_of(decision.checkpoint)
        if unjudged:
            raise unjudged_error(name, unjudged)


def evaluate_checkpoint(
    evaluate: Evaluate,
    seed: int,
    policy: Ref,
    inputs: Inputs,
    registry: Registry,
    reporter: Reporter,
    name: str | None = None,
) -> str:
    """Evaluate one checkpoint; weights never seen before are registered as third-party. Returns the run's name."""
    name = name or f"eval-{policy.fingerprint[:12]}"
    unjudged: dict[str, str] = {}
    with _run(name, "evaluation", evaluate.model_dump(mode="json") | {"seed": seed}, seed, registry, reporter) as runner:
        plan = build_evaluation(evaluate, seed, policy, inputs)
        reporter.plan(plan)
        runner.register_given(plan)
        _make(runner, plan, 0, unjudged)
        if unjudged:
            raise unjudged_error(name, unjudged)
    return name


def _make(runner: Runner, plan: Plan, iteration: int | None, unjudged: dict[str, str]) -> None:
    """Make the stages of one iteration real; judge stages that failed and may are added to `unjudged` with their errors."""
    for node in plan.nodes.values():
        if node.iteration != iteration:
            continue
        try:
            runner.ensure(plan, node)
        except StageFailed as error:
            if node.program != JUDGE_PROGRAM or plan.evaluate.judge.on_failure != "continue":
                raise
            unjudged[node.name] = str(error)


@contextmanager
def _run(
    name: str, recipe_name: str, recipe: dict[str, Any], seed: int, registry: Registry, reporter: Reporter
) -> Iterator[Runner]:
    """A locked run whose row says how it ended."""
    with run_lock(paths.runs() / name, name):
        run_id = record.start_run(registry, name, recipe_name, recipe)
        runner = Runner(name, run_id, registry, reporter, seed, record.digest(recipe))
        try:
            yield runner
        except HarnessError as error:
            record.finish_run(registry, run_id, "failed", str(error))
            raise
        except KeyboardInterrupt:
            record.finish_run(registry, run_id, "stopped", "interrupted")
            raise
        record.finish_run(registry, run_id, "done")
