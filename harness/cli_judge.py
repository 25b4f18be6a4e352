"""`harness judge`: show, calibrate, canaries. Thin: each command checks its input and calls one function."""

from typing import Annotated

import typer

app = typer.Typer(
    help="Can a judge be trusted: calibrations, canaries, biases.",
    epilog="Examples: harness judge calibrate openai:gpt-4.1   |   harness judge show",
    no_args_is_help=True,
)

Database = Annotated[
    str | None, typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
BaseUrl = Annotated[str | None, typer.Option(help="Endpoint of an OpenAI-compatible judge.", show_default=False)]
JudgeOptions = Annotated[
    list[str] | None,
    typer.Option("--judge-option", help="A key of evaluate.judge: concurrency=4 (repeatable).", show_default=False),
]
MaxUsd = Annotated[float | None, typer.Option(help="Dollars that this may cost; needs a price.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the stages and what the judge will cost; ask nothing.")]
Seed = Annotated[int, typer.Option(help="Seed of the samples.")]


@app.command(epilog="Examples: harness judge show   |   harness judge show gpt-4.1 --json")
def show(
    name: Annotated[str | None, typer.Argument(help="A judge's name (default: all).", show_default=False)] = None,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Show what is known of the judges: agreement with people, position and length preference, failures."""
    from harness.commands_judge import print_judges

    print_judges(name, as_json, db)


@app.command(
    epilog="Examples: harness judge calibrate openai:gpt-4.1 --limit 200 --board 50   |   harness judge calibrate "
    "quickstart/gold_reward   |   harness judge calibrate saved:gpt-4"
)
def calibrate(
    judge: Annotated[
        str, typer.Argument(help="openai:MODEL, serve:PATH, a reward model of the registry (RUN/gold_reward), or saved:NAME.")
    ],
    base_url: BaseUrl = None,
    judge_options: JudgeOptions = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Seeded sample of so many pairs of each set (default: all).", show_default=False)
    ] = None,
    board: Annotated[
        int, typer.Option(min=0, help="AlpacaEval instructions on which it ranks 12 models of the board; 0 for none.")
    ] = 50,
    max_usd: MaxUsd = None,
    dry_run: DryRun = False,
    seed: Seed = 42,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Ask a judge about pairs that people compared, in both orders, and keep how far it agrees. Resumes when run again."""
    from harness.commands_judge import run_calibration

    run_calibration(judge, base_url, judge_options or [], limit, board, max_usd, seed, dry_run, as_json, db)


@app.command(epilog="Example: harness judge canaries --benchmark alpaca_eval --judge openai:gpt-4.1 --limit 100")
def canaries(
    judge: Annotated[str, typer.Option(help="openai:MODEL, serve:PATH or a reward model of the registry.")],
    benchmark: Annotated[str, typer.Option(help="Comma-separated names of judged benchmarks.")] = "alpaca_eval",
    variant: Annotated[str, typer.Option(help="official, or starter (the small set shipped with the harness).")] = "official",
    limit: Annotated[int | None, typer.Option(min=1, help="Seeded sample of so many questions.", show_default=False)] = None,
    base_url: BaseUrl = None,
    judge_options: JudgeOptions = None,
    engine: Annotated[str, typer.Option(help="Engine of the rows that canaries stand beside: vllm or transformers.")] = "vllm",
    max_tokens: Annotated[
        int | None, typer.Option(help="Answer length of the rows that the canaries stand beside.", show_default=False)
    ] = None,
    max_usd: MaxUsd = None,
    dry_run: DryRun = False,
    seed: Seed = 42,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Have a judge judge answers that no sound judge rewards: a constant, an imitation of its prompt, a padded baseline."""
    from harness.commands_judge import run_canaries

    names = [name.strip() for name in benchmark.split(",") if name.strip()]
    chosen = [{"name": name, "variant": variant, "limit": limit, "max_tokens": max_tokens} for name in names]
    run_canaries(judge, base_url, judge_options or [], chosen, engine, max_usd, seed, dry_run, as_json, db)
