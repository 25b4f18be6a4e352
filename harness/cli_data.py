"""`harness data build` and `harness data mixtures`. Thin, like `harness.cli`, of which they are a part."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def build(
    name: Annotated[str, typer.Argument(help="A mixture (`harness data mixtures`) or recipe by name, or the path of its file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of a recipe: --set data.heldout_pairs=100 (repeatable).")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy of rows and card, as `datasets` reads it.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the sources and print the stage's key; build nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a data set: filter, decontaminate, deduplicate, weigh, split. Prints what was dropped and why.

    The same sources and settings are built once; a run whose recipe asks for them finds them. No GPU, no model.
    """
    from harness.commands_data import run_build

    run_build(name, overrides or [], to, dry_run, as_json)


def mixtures(as_json: AsJson = False) -> None:
    """List the mixtures: those shipped with the harness, then those of HARNESS_HOME/mixtures."""
    from harness.commands_data import print_mixtures

    print_mixtures(as_json)


def add_data_commands(app: typer.Typer) -> None:
    """Add the commands to `harness data`."""
    app.command(
        "build",
        epilog="Examples: harness data build starter   |   harness data build public --to ./public-data   |   "
        "harness data build smollm2-135m --dry-run   |   harness data build ./my-mixture.yaml --json",
    )(build)
    app.command("mixtures", epilog="Example: harness data mixtures")(mixtures)
