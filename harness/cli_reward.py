"""`harness reward-bench`. Thin, like `harness.cli`, of which it is a part."""

from pathlib import Path
from typing import Annotated

import typer

Database = Annotated[
    str | None, typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False)
]


def reward_bench(
    checkpoint: Annotated[str, typer.Argument(help="Directory, reward model of the registry (RUN/reward), or hub id.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="JSON Lines, plain or .gz: rows with prompt, chosen, rejected, subset (default: LLMBar from HARNESS_DATA).",
            show_default=False,
        ),
    ] = None,
    scorer: Annotated[str, typer.Option(help="bradley_terry, pairwise, or the name of an installed scorer.")] = "bradley_terry",
    max_length: Annotated[int, typer.Option(min=16, help="Tokens; longer conversations lose the head of their prompt.")] = 4096,
    dtype: Annotated[str, typer.Option(help="auto (float32), float32, bfloat16 or float16.")] = "auto",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a batch with padding.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First pairs of each subset only.", show_default=False)] = None,
    rows_to: Annotated[
        Path | None,
        typer.Option("--rows", help="File for each pair's probability; a killed run goes on from it.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    db: Database = None,
) -> None:
    """Score a reward model on RewardBench-like pairs: accuracy by subset and section, with intervals."""
    from harness.reward_bench import run_reward_bench

    run_reward_bench(checkpoint, files or [], scorer, max_length, dtype, batch_tokens, limit, rows_to, as_json, db)


def add_reward_command(app: typer.Typer) -> None:
    """Add the command to the harness's."""
    app.command(
        "reward-bench",
        epilog="Examples: harness reward-bench quickstart/reward   |   harness reward-bench ./my-reward-model rewardbench.jsonl "
        "--json   |   harness reward-bench ./pair-model rewardbench.jsonl --scorer pairwise",
    )(reward_bench)
