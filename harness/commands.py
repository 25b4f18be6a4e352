"""What the commands do, behind the command line: run a recipe, evaluate a checkpoint, print what the registry holds."""

from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from core import paths
from core.artifacts import Store
from core.errors import JudgeError, MissingInput, RecipeError
from harness.console import JsonReporter, emit_json, make_reporter, say_notes


def run_recipe(
    name: str,
    run: str | None,
    baseline: str | None,
    overrides: list[str],
    max_usd: float | None,
    dry_run: bool,
    as_json: bool,
    db: str | None,
) -> None:
    """`harness train-and-eval`."""
    from db import Registry
    from harness.baselines import derive
    from harness.plan import build_plan
    from harness.preflight import check_judges_served, check_recipe
    from harness.recipe_file import load_recipe
    from harness.resolve import resolve
    from harness.workflow import train_and_eval
    from train.reporting import require_trackers

    recipe = load_recipe(name, overrides if max_usd is None else [*overrides, f"evaluate.judge.max_usd={max_usd}"])
    recipe = derive(recipe, baseline) if baseline else recipe
    inputs = resolve(recipe)
    check_recipe(recipe, inputs)
    require_trackers(recipe.report_to)
    if dry_run:
        print_plan(build_plan(recipe, inputs), as_json, db)
        return
    say_notes(check_judges_served(recipe.evaluate, recipe.annotate.judge))
    registry = Registry.open(db)
    reporter = make_reporter(as_json)
    run_name = run or recipe.name
    try:
        train_and_eval(recipe, inputs, run_name, registry, reporter)
    finally:
        reporter.close()
    _print_rows(registry, run_name, "event" if isinstance(reporter, JsonReporter) else "table")
    if not as_json:
        typer.echo("\nThe page: harness dashboard    every stage: harness status " + run_name)


def benchmark_entries(names: list[str], common: dict[str, Any], special: dict[str, Any]) -> list[dict[str, Any]]:
    """Recipe entries of `harness eval`'s benchmarks. An option in `special` goes to those that it means something to.

    Raises RecipeError for one that means nothing to any of them.
    """
    from evals.benchmark import BENCHMARKS

    kinds = {name: BENCHMARKS[name].kind if name in BENCHMARKS else "unknown" for name in names}
    fits = {
        "samples": {name for name, kind in kinds.items() if kind == "generation"},
        "temperature": {name for name, kind in kinds.items() if kind == "generation"},
        "shots": {name for name, kind in kinds.items() if kind == "lm_eval"},
        "chat_template": {name for name, kind in kinds.items() if kind == "lm_eval" or name.startswith("truthful_qa")},
    }
    given = {option: value for option, value in special.items() if value is not None}
    for option in given:
        if not fits[option]:
            raise RecipeError(f"--{option.replace('_', '-')} means nothing to {', '.join(names)}; leave it out.")
    return [{"name": name} | common | {o: v for o, v in given.items() if name in fits[o]} for name in names]


def run_evaluation(
    checkpoint: str,
    revision: str | None,
    evaluate: dict[str, Any],
    judging: tuple[str | None, str | None, list[str], float | None],
    seed: int,
    dry_run: bool,
    as_json: bool,
    db: str | None,
) -> None:
    """`harness eval`.

    `evaluate`: the recipe's section without its judge; `judging`: --judge, --base-url, --judge-option, --max-usd.
    """
    from db import Registry
    from harness.imported import imported_policy
    from harness.plan import Inputs, build_evaluation
    from harness.preflight import check_evaluation, check_judges_served
    from harness.resolve import resolve_benchmarks, resolve_checkpoint, resolve_judge
    from harness.workflow import evaluate_checkpoint

    registry = Registry(db) if dry_run else Registry.open(db)
    settings, rewards = evaluation_section(registry, evaluate, judging)
    benchmarks = resolve_benchmarks(settings)
    check_evaluation(settings)
    if checkpoint.startswith("imported:"):
        policy, benchmarks = imported_policy(registry, checkpoint.removeprefix("imported:"), benchmarks, seed)
    else:
        policy = resolve_checkpoint(checkpoint, revision)
    inputs = Inputs(base=None, sources=[], benchmarks=benchmarks, judge=resolve_judge(settings), **rewards)
    if dry_run:
        print_plan(build_evaluation(settings, seed, policy, inputs), as_json, db)
        return
    say_notes(check_judges_served(settings))
    reporter = make_reporter(as_json)
    try:
        name = evaluate_checkpoint(settings, seed, policy, inputs, registry, reporter)
    finally:
        reporter.close()
    _print_rows(registry, name, "event" if as_json else "table")


def evaluation_section(
    registry: Any, evaluate: dict[str, Any], judging: tuple[str | None, str | None, list[str], float | None]
) -> tuple[Any, dict[str, Any]]:
    """(the recipe's `evaluate` section, reward models for the plan) of the options of `harness eval`, as `run_evaluation`.

    Raises JudgeError where a benchmark needs a judge and none is named, RecipeError for options that do not fit.
    """
    from pydantic import ValidationError

    from evals.benchmark import BENCHMARKS
    from harness.recipe import Evaluate

    judge, base_url, judge_options, max_usd = judging
    names = [benchmark["name"] for benchmark in evaluate["benchmarks"]]
    judged = {name for name in names if name in BENCHMARKS and BENCHMARKS[name].verdict == "judge"}
    if judged and not judge:
        raise JudgeError(
            f"{', '.join(sorted(judged))} need a judge: --judge openai:MODEL, --judge serve:PATH for a checkpoint served here, "
            "or --judge RUN/gold_reward for a reward model of the registry; or leave them out with "
            "--benchmarks human_eval,truthful_qa."
        )
    rewards, judge_settings = find_judge(registry, judge, base_url)
    judge_settings |= judge_keys(judge_options) | ({} if max_usd is None else {"max_usd": max_usd})
    try:
        return Evaluate.model_validate(evaluate | {"judge": judge_settings}), rewards
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"These options do not fit: {faults}.") from error


def find_judge(registry: Any, judge: str | None, base_url: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(reward models for the plan, judge settings) of a --judge value."""
    from sqlalchemy import select

    from db import models
    from harness.plan import Ref

    if judge is None:
        return {}, {"kind": "reward_model", "role": "reward"}
    if judge.startswith("openai:"):
        return {}, {"kind": "openai", "model": judge.removeprefix("openai:"), "base_url": base_url}
    if judge.startswith("serve:"):
        return {}, {"serve": judge.removeprefix("serve:")}
    with registry.read() as session:
        found = session.scalars(
            select(models.Checkpoint).where(
                (models.Checkpoint.name == judge) | models.Checkpoint.fingerprint.startswith(judge, autoescape=True),
                models.Checkpoint.kind.in_(("reward", "gold_reward")),
            )
        ).all()
        known = session.scalars(select(models.Checkpoint.name).where(models.Checkpoint.kind.in_(("reward", "gold_reward")))).all()
    if len(found) != 1:
        listed = ", ".join(known) or "none yet"
        raise JudgeError(
            f"{judge!r} names {len(found)} reward models of the registry; give one of: {listed}; or openai:MODEL, serve:PATH."
        )
    ref = Ref(path=found[0].path, fingerprint=found[0].fingerprint)
    return {"gold_reward": ref}, {"kind": "reward_model", "role": "gold_reward"}


def judge_keys(given: list[str]) -> dict[str, Any]:
    """--judge-option NAME=VALUE -> keys of the recipe's `evaluate.judge`; values are read as YAML."""
    import yaml

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--judge-option {text!r} is not NAME=VALUE; docs/recipes.md lists the names under evaluate.judge.")
        options[name] = yaml.safe_load(value)
    return options


def print_leaderboard(db: str | None, run: str | None, form: str, published: bool) -> None:
    """`harness leaderboard`."""
    from db import Registry

    _print_rows(Registry.open(db, readonly=True), run, form, published)


def _print_rows(registry: Any, run: str | None, form: str, published: bool = False) -> None:
    from dashboard.ranking import board
    from db import views
    from harness import report

    with registry.read() as session:
        if run is not None and run not in {r.name for r in views.runs(session)}:
            raise MissingInput(f"There is no run {run!r} in the registry; see `harness leaderboard` for all that are there.")
        found = views.leaderboard(session, run=run)
    rows = [row for row in found if published or row.kind != "published"]
    hidden, table = len(found) - len(rows), board(rows)
    if form == "event":
        JsonReporter().emit("leaderboard", rows=report.to_json(table))
    elif form == "json":
        emit_json(report.to_json(table))
    elif form == "csv":
        typer.echo(report.to_csv(table), nl=False)
    elif form == "markdown":
        typer.echo(report.to_markdown(table), nl=False)
    elif not rows:
        typer.echo("The registry holds no evaluated checkpoint yet: run `harness train-and-eval quickstart`.")
    else:
        Console().print(report.Leaderboard(table))
        if hidden:
            typer.echo(f"{hidden} rows of published leaderboards are not shown; --published shows them.")


def print_status(db: str | None, run: str, as_json: bool) -> None:
    """`harness status`."""
    from dataclasses import asdict

    from db import Registry, views

    with Registry.open(db, readonly=True).read() as session:
        if run not in {r.name for r in views.runs(session)}:
            raise MissingInput(
                f"There is no run {run!r} in the registry; runs: {', '.join(r.name for r in views.runs(session))}."
            )
        state = views.run_status(session, run)
    if as_json:
        emit_json(asdict(state))
        return
    from harness.report import status_table

    Console().print(status_table(state))


def print_doctor(db: str | None, as_json: bool) -> None:
    """`harness doctor`."""
    from harness.doctor import as_rows, diagnose

    findings = diagnose(db or paths.default_registry_url())
    if as_json:
        emit_json(as_rows(findings))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "check", "found", "what to do"):
            table.add_column(column, overflow="fold")
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        for f in findings:
            table.add_row(marks[f.state], f.check, f.found, f.fix)
        Console().print(table)
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)


def print_data(as_json: bool) -> None:
    """`harness data list`."""
    from harness.data import status

    rows = status()
    if as_json:
        emit_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "found", "size", "licence"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for row in rows:
        size = f"{row['size'] / 2**20:.1f} MiB" if row["size"] else ""
        table.add_row(row["name"], row["kind"], row["found"], size, row["licence"])
    Console().print(table)


def fetch_data(names: list[str], as_json: bool = False) -> None:
    """`harness data fetch`. As JSON: the files that are here now, as `harness data verify` finds them."""
    from harness.data import fetch, verify

    fetch(names, lambda text: typer.echo(text, err=as_json))
    if as_json:
        emit_json(verify(names))


def verify_data(names: list[str], as_json: bool) -> None:
    """`harness data verify`."""
    from harness.data import verify

    rows = verify(names)
    if as_json:
        emit_json(rows)
    else:
        for row in rows:
            typer.echo(f"{row['state']:<8} {row['name']}  {row['file']}")
    if any(row["state"] == "differs" for row in rows):
        raise typer.Exit(1)


def print_plan(plan: Any, as_json: bool, db: str | None) -> None:
    """The plan as --dry-run prints it, with what its judge will cost."""
    from harness.forecasting import forecasts, print_forecasts

    costs = forecasts(plan, db)
    store = Store(paths.artifacts())
    rows = [
        {
            "stage": node.name,
            "program": node.program,
            "key": node.key,
            "state": "done" if store.path(node.stage, node.key).exists() else "to do",
            "settings": node.settings,
            "inputs": sorted(node.inputs),
            "forecast": [row for row in costs if row["stage"] == node.name],
        }
        for node in plan.nodes.values()
    ]
    if as_json:
        emit_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "program", "key", "state"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["stage"].replace("[", r"\["), row["program"], row["key"][:12], row["state"])
    Console().print(table)
    done = sum(row["state"] == "done" for row in rows)
    print_forecasts(costs, plan.evaluate.judge.max_usd)
    typer.echo(f"{len(rows)} stages, {done} done before, {len(rows) - done} to do. Nothing was run.")
