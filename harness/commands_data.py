"""What `harness data build` and `harness data mixtures` print."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from core import paths
from core.artifacts import Store
from harness.console import JsonReporter, emit_json, make_reporter


def print_mixtures(as_json: bool) -> None:
    """`harness data mixtures`."""
    from harness.mixture_file import load_mixture, shipped_mixtures

    loaded = {name: load_mixture(name) for name in shipped_mixtures()}
    rows = [
        {"name": name, "description": mixture.description, "sources": [f"{s.name} ({s.use})" for s in mixture.sources]}
        for name, mixture in loaded.items()
    ]
    if as_json:
        emit_json(rows)
        return
    table = _table("name", "sources", "description")
    for name, mixture in loaded.items():
        uses = Counter(source.use for source in mixture.sources)
        table.add_row(name, ", ".join(f"{count} {use}" for use, count in uses.items()), mixture.description)
    Console().print(table)


def run_build(name: str, overrides: list[str], to: Path | None, dry_run: bool, as_json: bool) -> None:
    """`harness data build`."""
    from harness.data_build import build_data, export, plan_data

    planned = plan_data(name, overrides)
    if dry_run:
        node = planned.node
        state = "done" if Store(paths.artifacts()).path(node.stage, node.key).exists() else "to do"
        row = {"name": planned.name, "key": node.key, "state": state, "settings": node.settings, "inputs": sorted(node.inputs)}
        emit_json(row) if as_json else typer.echo(f"{planned.name}: data {node.key} {state}, inputs {', '.join(row['inputs'])}")
        return
    reporter = make_reporter(as_json)
    try:
        artifact, reused = build_data(planned, reporter)
    finally:
        reporter.close()
    card = json.loads(artifact.file("card.json").read_text())
    if to is not None:
        export(planned, artifact, card, to.expanduser())
    if isinstance(reporter, JsonReporter):
        place = {"artifact": str(artifact.path), "to": str(to) if to else None}
        reporter.emit("built", name=planned.name, key=planned.node.key, reused=reused, **place, card=card)
        return
    _print_card(card)
    typer.echo(f"\nRows and card: {artifact.path}")
    typer.echo(f"Copied to: {to}" if to else "A copy with licences for `datasets`: the same command with --to FOLDER")


def _print_card(card: dict[str, Any]) -> None:
    console = Console()
    table = _table("source", "use", "read", "kept", "dropped because of", right=("read", "kept"))
    for name, source in card["sources"].items():
        why = sorted(source["dropped"].items(), key=lambda one: -one[1])
        rules = ", ".join(f"{rule} {count}" for rule, count in why)
        table.add_row(name, source["use"], str(source["read"]), str(source["kept"]), rules)
    console.print(table)
    told = card["contamination"]
    hits = _table("benchmark", "source", "rows", "questions", "share", right=("rows", "questions", "share"))
    for benchmark, found in told["benchmarks"].items():
        for name, counts in found["by_source"].items():
            if counts["rows"]:
                share = f"{100 * counts['share']:.1f} %" + (" flagged" if counts["flagged"] else "")
                hits.add_row(benchmark, name, str(counts["rows"]), f"{counts['questions']} of {found['questions']}", share)
    what = {"removed": "removed", "reported": "reported and kept", "off": "not looked for"}[told["action"]]
    console.print(f"\nRows that hold questions of {len(told['benchmarks'])} benchmarks ({what}): {hits.row_count or 'none'}")
    if hits.row_count:
        console.print(hits)
    alike = card["near_duplicates"]
    console.print(
        f"\n{alike['prompts']} prompts in {alike['groups']} groups of like ones; {alike['like_held_out']} training rows dropped "
        "for being like a held-out one"
    )
    files = _table("file", "rows", "prompts", right=("rows", "prompts"))
    for name, about in card["files"].items():
        files.add_row(name, str(about["rows"]), str(about["prompts"]))
    console.print(files)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        last = column == columns[-1]
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=not last)
    return table
