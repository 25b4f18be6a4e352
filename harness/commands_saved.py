"""What rescore, import, export and compare do, behind the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from core.errors import RecipeError
from harness.console import emit_json


def print_rescored(benchmark: str, files: Sequence[Path], given: Mapping[str, str | None], as_json: bool) -> None:
    """`harness rescore`."""
    from harness import saved_work

    evaluations, notes = saved_work.rescore(benchmark, files, given)
    if as_json:
        emit_json(saved_work.as_json(benchmark, evaluations, notes))
        return
    from rich.console import Console
    from rich.text import Text

    from dashboard.format import plain

    console = Console()
    console.print(saved_work.as_table(benchmark, evaluations))
    for note in saved_work.all_notes(evaluations, notes):
        console.print(Text(plain(note), style="dim"))


def run_import(
    benchmark: str,
    files: Sequence[Path],
    source: str | None,
    outputs: bool,
    published: bool,
    given: Mapping[str, str | None],
    as_json: bool,
    db: str | None,
) -> None:
    """`harness import`."""
    from dashboard.format import plain
    from db import Registry
    from evals.formats.saved import get_format
    from harness import importing, saved_work

    if outputs and published:
        raise RecipeError("--outputs and --published exclude each other: answers to be judged, or a published leaderboard.")
    made = get_format(benchmark)
    paths = saved_work.expand(files)
    origin = importing.Source(source or ", ".join(sorted({path.name for path in paths})), paths, made.benchmark)
    # Everything is read before anything is written.
    if outputs:
        read = made.read_outputs(paths)
        lines = importing.import_outputs(Registry.open(db), made, read, origin)
    elif published:
        read = made.read_published(paths)
        lines = importing.import_published(Registry.open(db), made, read, origin)
    else:
        options = saved_work.chosen_options(made, given)
        located, notes = saved_work.asset_files(made)
        read = made.read(paths, options, located)
        lines = [*importing.import_evaluations(Registry.open(db), made, read, origin), *saved_work.all_notes(read, notes)]
    if as_json:
        emit_json({"benchmark": made.benchmark, "source": origin.provenance(), "imported": lines})
    else:
        for line in lines:
            typer.echo(plain(line))


def run_export_site(to: Path, as_json: bool, db: str | None) -> None:
    """`harness export site`."""
    from dashboard.site import site
    from db import Registry
    from evals.formats.saved import write_text

    with Registry.open(db, readonly=True).read() as session:
        path = write_text(to if to.suffix == ".html" else to / "index.html", site(session))
    if as_json:
        emit_json({"files": [str(path)]})
    else:
        typer.echo(f"{path}  ({path.stat().st_size / 1024:.0f} KiB; open it in a browser, or put it on any web server)")


def run_export(
    checkpoint: str, benchmark: str | None, form: str | None, judge: str | None, to: Path, as_json: bool, db: str | None
) -> None:
    """`harness export CHECKPOINT`."""
    from db import Registry
    from harness.exporting import export, form_of

    if benchmark is None:
        raise RecipeError("Say which evaluation: --benchmark alpaca_eval (or `harness export site` for the whole leaderboard).")
    written = export(Registry.open(db, readonly=True), form_of(benchmark, form), benchmark, checkpoint, judge, to)
    if as_json:
        emit_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            typer.echo(str(path))


def print_comparison(checkpoint: str, other: str | None, as_json: bool, db: str | None) -> None:
    """`harness compare`."""
    from db import Registry
    from evals.paired import compare_checkpoints
    from harness import comparing

    with Registry.open(db, readonly=True).read() as session:
        found = compare_checkpoints(session, checkpoint, other)
    if as_json:
        emit_json(comparing.as_json(found))
    else:
        from rich.console import Console

        Console().print(comparing.as_table(found))
