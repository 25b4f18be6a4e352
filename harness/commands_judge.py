"""What `harness judge` does, behind the command line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from core.errors import MissingInput, RecipeError
from dashboard.judge_tables import METRICS
from harness.console import JsonReporter, emit_json, make_reporter


def run_calibration(
    judge: str,
    base_url: str | None,
    judge_options: list[str],
    limit: int | None,
    board: int,
    max_usd: float | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
    db: str | None,
) -> None:
    """`harness judge calibrate`."""
    from core.fingerprint import digest
    from db import Registry
    from harness import calibration

    registry = Registry.open(db)
    if judge.startswith(calibration.SAVED):
        found = calibration.calibrate_saved(registry, judge, limit, seed)
        if as_json:
            emit_json(found)
        else:
            _print_calibrations(found)
        return
    chosen = calibration.agreement_sets(limit, board)
    evaluate, given = _evaluate(registry, judge, base_url, judge_options, max_usd, chosen, "transformers")
    policy, benchmarks = calibration.prepare_calibration(registry, evaluate, seed)
    inputs = given(benchmarks)
    if dry_run:
        _print_dry_run(evaluate, seed, policy, inputs, as_json, db)
        return
    reporter = make_reporter(as_json)
    name = f"calibrate-{digest([judge, base_url])[:12]}"
    try:
        found = calibration.calibrate(registry, name, evaluate, seed, policy, inputs, reporter)
    finally:
        reporter.close()
    if as_json:
        JsonReporter().emit("calibrations", rows=found)
    else:
        _print_calibrations(found)


def run_canaries(
    judge: str,
    base_url: str | None,
    judge_options: list[str],
    chosen: Sequence[Mapping[str, Any]],
    engine: str,
    max_usd: float | None,
    seed: int,
    dry_run: bool,
    as_json: bool,
    db: str | None,
) -> None:
    """`harness judge canaries`."""
    from sqlalchemy import select

    from core.fingerprint import digest
    from db import Registry
    from db.models import Score
    from evals.benchmark import get_benchmark
    from harness.calibration import judged_in, prepare_canaries
    from harness.workflow import evaluate_checkpoint

    wrong = [one["name"] for one in chosen if get_benchmark(one["name"]).verdict != "judge"]
    if wrong or not chosen:
        raise RecipeError(f"{', '.join(wrong) or 'No benchmark'} has no judge to be fooled; name judged ones, e.g. alpaca_eval.")
    registry = Registry.open(db)
    evaluate, given = _evaluate(registry, judge, base_url, judge_options, max_usd, chosen, engine)
    prepared = prepare_canaries(registry, evaluate, seed)
    if dry_run:
        for policy, benchmarks in prepared.values():
            _print_dry_run(evaluate, seed, policy, given(benchmarks), as_json, db)
        return
    runs, reporter = [], make_reporter(as_json)
    try:
        for canary, (policy, benchmarks) in prepared.items():
            name = f"canary-{canary}-{digest([judge, base_url])[:12]}"
            evaluate_checkpoint(evaluate, seed, policy, given(benchmarks), registry, reporter, name)
            runs.append((canary, name))
    finally:
        reporter.close()
    rows = []
    with registry.read() as session:
        for canary, run in runs:
            for evaluation in judged_in(session, run):
                score = session.scalars(select(Score).where(Score.evaluation_id == evaluation.id, Score.headline)).one()
                values = {"canary": canary, "benchmark": evaluation.answer_set.benchmark, "judge": evaluation.judge.name}
                values |= {name: getattr(score, name) for name in ("metric", "value", "low", "high", "n", "n_failed")}
                rows.append(values | {"flags": evaluation.flags})
    if as_json:
        JsonReporter().emit("canaries", rows=rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("canary", "benchmark", "metric", "score", "signs found"):
        table.add_column(column, overflow="fold")
    for row in rows:
        shown = _interval(row, 1.0)
        table.add_row(row["canary"], row["benchmark"], row["metric"], shown, ", ".join(f["flag"] for f in row["flags"]))
    Console().print(table)
    typer.echo("A judge that rewards these rewards answers that no model wrote; they stand flagged in `harness leaderboard`.")


def print_judges(name: str | None, as_json: bool, db: str | None) -> None:
    """`harness judge show`."""
    from db import Registry
    from db.judges import card_json, judge_cards

    with Registry.open(db, readonly=True).read() as session:
        cards = judge_cards(session, name)
        known = sorted({card.name for card in judge_cards(session)}) if name and not cards else []
    if name and not cards:
        raise MissingInput(f"The registry knows no judge {name!r}; it knows {', '.join(known) or 'none yet'}.")
    if as_json:
        emit_json([card_json(card) for card in cards])
        return
    if not cards:
        typer.echo("The registry knows no judge yet: run `harness judge calibrate openai:MODEL`, or an evaluation with one.")
    from dashboard.format import plain

    shown: set[str] = set()
    for card in cards:
        if card.key not in shown:
            shown.add(card.key)
            typer.echo(f"\n{plain(card.name)} ({card.kind})")
            if card.calibrations:
                _print_calibrations(card.calibrations)
            else:
                typer.echo("  not calibrated: `harness judge calibrate` says how far it agrees with people")
        if card.bias:
            typer.echo(f"  {card.benchmark}, {card.evaluations} evaluation{'' if card.evaluations == 1 else 's'}")
            Console().print(_statistics(card.bias))


def _evaluate(
    registry: Any,
    judge: str,
    base_url: str | None,
    judge_options: list[str],
    max_usd: float | None,
    chosen: Sequence[Mapping[str, Any]],
    engine: str,
) -> tuple[Any, Callable[[list[Any]], Any]]:
    """(settings, benchmarks -> inputs of the plan) of a --judge value and its options, as `harness eval` has them."""
    from pydantic import ValidationError

    from harness.commands import find_judge, judge_keys
    from harness.plan import Inputs
    from harness.preflight import check_evaluation
    from harness.recipe import Evaluate
    from harness.resolve import resolve_judge

    rewards, settings = find_judge(registry, judge, base_url)
    settings |= judge_keys(judge_options) | ({} if max_usd is None else {"max_usd": max_usd})
    values = {"benchmarks": [dict(one) for one in chosen], "judge": settings, "engine": engine, "held_out_reward": False}
    try:
        evaluate = Evaluate.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"These options do not fit: {faults}.") from error
    # Nothing is generated: the engine only names the rows that a canary stands beside.
    check_evaluation(evaluate.model_copy(update={"engine": "transformers"}))
    served = resolve_judge(evaluate)
    return evaluate, lambda benchmarks: Inputs(base=None, sources=[], benchmarks=benchmarks, judge=served, **rewards)


def _print_dry_run(evaluate: Any, seed: int, policy: Any, inputs: Any, as_json: bool, db: str | None) -> None:
    from harness.commands import print_plan
    from harness.plan import build_evaluation

    print_plan(build_evaluation(evaluate, seed, policy, inputs), as_json, db)


def _print_calibrations(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        who = f"{row['judge']}, " if "judge" in row else ""
        failed = f", {row['n_failed']} failed" if row["n_failed"] else ""
        typer.echo(f"  {who}{row['dataset']} ({row['version']}): n {row['n']}{failed}")
        if row.get("kept") is False:
            typer.echo("  an earlier calibration on more items stays")
        Console().print(_statistics(row["statistics"]))


def _statistics(statistics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("n", justify="right")
    for metric, (label, percent) in METRICS.items():
        if metric in statistics:
            said = _interval(statistics[metric], 100.0 if percent else 1.0)
            table.add_row(f"{label}, %" if percent else label, said, str(statistics[metric]["n"]))
    for metric, value in statistics.items():
        category, _, name = metric.rpartition(":")
        if category and name == "agreement":
            table.add_row(f"agrees, {category}, %", _interval(value, 100.0), str(value["n"]))
    return table


def _interval(row: Mapping[str, Any], scale: float) -> str:
    decimals = 1 if scale == 100.0 else 2
    if row["value"] is None:
        return "withheld"
    text = f"{scale * row['value']:.{decimals}f}"
    return text if row["low"] is None else rf"{text} \[{scale * row['low']:.{decimals}f}, {scale * row['high']:.{decimals}f}]"
