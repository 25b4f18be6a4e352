"""Scores from work that other tools saved: found, read, printed. No model, no network, no registry.

The files' meaning is the formats' affair (`evals.formats`); here files are found, options checked, and the scores put into
the form that is printed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import MissingInput, RecipeError
from evals.benchmark import ScoreRow
from evals.formats.saved import FORMATS, SavedEvaluation, SavedFormat, get_format
from harness.data import benchmark_files

if TYPE_CHECKING:
    from rich.table import Table

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv")


def rescore(name: str, paths: Sequence[Path], given: Mapping[str, str | None]) -> tuple[list[SavedEvaluation], list[str]]:
    """(evaluations, notes on the data used) of saved judgments or samples.

    `given` holds the options of all formats, None where the user said nothing. Raises RecipeError for an option that
    this format does not have, MissingInput for what cannot be read.
    """
    made = get_format(name)
    options = chosen_options(made, given)
    files, notes = asset_files(made)
    return made.read(expand(paths), options, files), notes


def chosen_options(made: SavedFormat, given: Mapping[str, str | None]) -> dict[str, str]:
    """Every option of the format: as given, else its default. Raises RecipeError for what it does not have or allow."""
    for option, value in given.items():
        if value is None:
            continue
        if option not in made.options:
            able = [name for name in FORMATS if option in get_format(name).options]
            raise RecipeError(f"--{option} does not apply to {made.benchmark}; it is an option of {', '.join(able)}.")
        if value not in made.options[option]:
            raise RecipeError(f"--{option} {value} is not known; use {' | '.join(made.options[option])}.")
    return {option: given.get(option) or allowed[0] for option, allowed in made.options.items()}


def asset_files(made: SavedFormat) -> tuple[dict[str, Path], list[str]]:
    """({asset: path}, notes) of the benchmark's files that the scores need, where this machine has them.

    A file that is not here is left out: only the format knows whether these options need it.
    """
    if not made.assets:
        return {}, []
    try:
        located = benchmark_files(made.benchmark, "official")
    except MissingInput as error:
        return {}, [f"Data of {made.benchmark} are not here: {error}"]
    notes = [
        f"{asset}: a reconstruction stands in for the file itself; scores that use it are not exactly the official ones."
        for asset, file in located.items()
        if file.stand_in and asset in made.assets
    ]
    return {asset: file.path for asset, file in located.items() if asset in made.assets}, notes


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, folders replaced by the saved work in them. Raises MissingInput for what is not there."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and not p.name.startswith("."))
            if not inside:
                raise MissingInput(
                    f"The folder {path} holds no .json, .jsonl or .csv file (plain or .gz); give the files themselves."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MissingInput(f"There is no file {path}; correct the path.")
    return found


def as_json(name: str, evaluations: Sequence[SavedEvaluation], notes: Sequence[str]) -> dict[str, Any]:
    """What `harness rescore NAME --json` prints."""
    return {
        "benchmark": name,
        "results": [
            {
                "model": evaluation.model,
                "benchmark": evaluation.benchmark or name,
                "judge": evaluation.judge,
                "metrics": {row.metric: metric_fields(row) for row in evaluation.scores},
                "statistics": dict(evaluation.statistics),
                "notes": [*notes, *evaluation.notes],
            }
            for evaluation in evaluations
        ],
    }


def metric_fields(row: ScoreRow) -> dict[str, Any]:
    """A score as `--json` prints it; the value is the reference's own even where many items failed, beside its bounds."""
    return {
        "value": row.value,
        "ci_low": row.low,
        "ci_high": row.high,
        "stderr": row.stderr,
        "n": row.n,
        "n_failed": row.n_failed,
        "worst": row.worst,
        "best": row.best,
        "method": row.method,
    }


def as_table(name: str, evaluations: Sequence[SavedEvaluation]) -> "Table":
    """One line per model and metric."""
    from rich.table import Table  # slow to import, and --json needs none of it
    from rich.text import Text

    from dashboard.format import plain

    table = Table(box=None, pad_edge=False, header_style="bold", title=name, title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for column in ("value", "95 % interval", "stderr", "n", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    for evaluation in evaluations:
        for place, row in enumerate(evaluation.scores):
            interval = "" if row.low is None or row.high is None else f"[{_number(row.low)}, {_number(row.high)}]"
            style = "bold" if row.headline else ""
            cells = (plain(row.metric), _number(row.value), interval, _number(row.stderr), str(row.n), str(row.n_failed or ""))
            table.add_row(Text("" if place else plain(evaluation.model)), *(Text(cell, style=style) for cell in cells))
    return table


def all_notes(evaluations: Sequence[SavedEvaluation], notes: Sequence[str]) -> list[str]:
    """Every note once, those of single models under their names."""
    return [*notes, *(f"{evaluation.model}: {note}" for evaluation in evaluations for note in evaluation.notes)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
