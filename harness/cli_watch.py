"""`harness watch`. Thin, like `harness.cli`, of which it is a part."""

from pathlib import Path
from typing import Annotated, Any

import typer

Benchmarks = Annotated[
    str | None,
    typer.Option(help="Comma-separated names (default: human_eval,truthful_qa; none: only register).", show_default=False),
]


def watch(
    folder: Annotated[Path, typer.Argument(help="Where a training saves its checkpoints.")],
    benchmarks: Benchmarks = None,
    recipe: Annotated[
        str | None, typer.Option(help="Evaluate as this recipe does (name or YAML file) instead.", show_default=False)
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run (default: the folder's).", show_default=False)] = None,
    base: Annotated[
        Path | None, typer.Option(help="Checkpoint that the training started from: the parent.", show_default=False)
    ] = None,
    variant: Annotated[str, typer.Option(help="official, or starter (the small set shipped with the harness).")] = "official",
    limit: Annotated[int | None, typer.Option(help="Seeded sample of so many questions; never ranked with full runs.")] = None,
    judge: Annotated[str | None, typer.Option(help="As for `harness eval`.", show_default=False)] = None,
    base_url: Annotated[str | None, typer.Option(help="Endpoint of an OpenAI-compatible judge.", show_default=False)] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", help="Dollars that the judge of one checkpoint may cost.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "vllm",
    max_tokens: Annotated[int | None, typer.Option(help="Overrides the official answer length; recorded.")] = None,
    max_model_len: Annotated[int, typer.Option(help="Context of the engine, in tokens.")] = 8192,
    unsafe_exec: Annotated[bool, typer.Option("--unsafe-exec", help="Run code without the sandbox; recorded.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of samples and sampling.")] = 42,
    once: Annotated[
        bool, typer.Option("--once", help="Take what is whole now and end; exit code 1 if something failed.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 30.0,
    settle: Annotated[
        float, typer.Option(min=0.0, help="Seconds without a change before a checkpoint counts as written.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    db: Annotated[
        str | None,
        typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False),
    ] = None,
) -> None:
    """Register and evaluate the checkpoints that another program writes into a folder, each once, as soon as it is whole.

    Ctrl-C ends it; the same command goes on.
    """
    from harness.commands_watch import run_watch

    evaluate: dict[str, Any] = {"engine": engine, "max_model_len": max_model_len, "unsafe_exec": unsafe_exec}
    common = {"variant": variant, "limit": limit, "max_tokens": max_tokens}
    given = (judge, base_url, [], max_usd)
    run_watch(folder, benchmarks, recipe, run, base, (evaluate, common, given, seed), (once, interval, settle), as_json, db)


def add_watch_command(app: typer.Typer) -> None:
    """Add `watch` to the harness's commands."""
    app.command(
        epilog="Examples: harness watch outputs/my-dpo --base ./sft   |   harness watch outputs/my-dpo --benchmarks "
        "human_eval,truthful_qa --limit 100 --json   |   harness watch outputs/my-dpo --recipe my.yaml --once"
    )(watch)
