"""`harness export`: what leaves this machine. Thin, like `harness.cli`, of which it is a part."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from harness.cli_saved import FORMAT_NAMES

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Database = Annotated[
    str | None, typer.Option("--db", help="Registry URL (default: HARNESS_DB, else SQLite in HARNESS_HOME).", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export in that folder.")]
Licence = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="Licence identifier for the card, e.g. apache-2.0 (default: none, said so).",
        show_default=False,
    ),
]


class _Group(TyperGroup):
    """`harness export NAME ...` is `harness export evaluation NAME ...`, as it always was."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and "--help" not in args[:1]:
            args = ["evaluation", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="export",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Write a model, preference pairs, an evaluation or the whole leaderboard for others to use.",
    epilog="Examples: harness export model quickstart/iter-2 --to out/model   |   harness export dataset quickstart --to "
    "out/pairs   |   harness export quickstart/iter-2 --benchmark alpaca_eval --to out/results   |   harness export site",
)


@app.command(epilog="Example: harness export model quickstart/iter-2 --to out/model --license apache-2.0")
def model(
    checkpoint: Annotated[str, typer.Argument(help="Name, or start of the fingerprint.")],
    to: Annotated[Path, typer.Option(help="Folder to make.")] = Path("export/model"),
    licence: Licence = None,
    force: Force = False,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Write weights, tokenizer, template and a model card with lineage, recipe and every score, ready for a hub."""
    from db import Registry
    from harness.publishing import export_model

    _print(export_model(Registry.open(db, readonly=True), checkpoint, to, licence, force), as_json)


@app.command(
    epilog="Examples: harness export dataset quickstart --iteration 2 --to out/pairs   |   harness export dataset quickstart "
    "--form parquet"
)
def dataset(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    iteration: Annotated[int | None, typer.Option(help="Which iteration's pairs (default: all).", show_default=False)] = None,
    to: Annotated[Path, typer.Option(help="Folder to make.")] = Path("export/dataset"),
    form: Annotated[str, typer.Option(help="jsonl or parquet.")] = "jsonl",
    licence: Licence = None,
    force: Force = False,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Write a run's preference pairs (chosen, rejected, rewards) with a data card, ready for a hub."""
    from db import Registry
    from harness.publishing import export_dataset

    _print(export_dataset(Registry.open(db, readonly=True), run, iteration, to, form, licence, force), as_json)


@app.command(epilog="Example: harness export quickstart/iter-2 --benchmark alpaca_eval --to results")
def evaluation(
    checkpoint: Annotated[str, typer.Argument(help="Name, or start of the fingerprint.")],
    benchmark: Annotated[str | None, typer.Option(help="Which of its evaluations.", show_default=False)] = None,
    to: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("export"),
    form: Annotated[
        str | None, typer.Option("--format", help=f"{FORMAT_NAMES} (default: the benchmark's own).", show_default=False)
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Whose verdicts, where several judged.", show_default=False)] = None,
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Write answers and judgments in the reference tools' file formats. `harness export NAME --benchmark ...` is the same."""
    from harness.commands_saved import run_export

    run_export(checkpoint, benchmark, form, judge, to, as_json, db)


@app.command(epilog="Example: harness export site --to public")
def site(
    to: Annotated[Path, typer.Option(help="Folder to write into, or a file that ends in .html.")] = Path("export"),
    as_json: AsJson = False,
    db: Database = None,
) -> None:
    """Write the whole leaderboard as one HTML file that needs no server."""
    from harness.commands_saved import run_export_site

    run_export_site(to, as_json, db)


def _print(files: list[Path], as_json: bool) -> None:
    from harness.console import emit_json

    if as_json:
        emit_json({"files": [str(path) for path in files]})
    else:
        for path in files:
            typer.echo(str(path))
