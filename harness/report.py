"""What the command line prints of the registry: the leaderboard and the stages of a run as tables; CSV, Markdown, JSON."""

from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from dashboard import format as f
from dashboard.export import footnotes, to_csv, to_json, to_markdown
from dashboard.ranking import Board, Ranked
from db.views import RunStatus, StageStatus

__all__ = ["Leaderboard", "status_table", "to_csv", "to_json", "to_markdown"]

NAME_WIDTH = 32
"""Columns of a terminal that a checkpoint's name may take before it is folded."""

_STATES = {"done": "green", "reused": "green", "running": "cyan", "failed": "bold red", "stopped": "yellow"}


class Leaderboard:
    """One row per checkpoint, oldest first; each score over its 95 % interval, and below the table who judged on what.

    A terminal too narrow for a column per benchmark gets a row per score: no number is ever broken over two lines.
    """

    def __init__(self, table: Board):
        self.board = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [_cells(self.board, line) for line in self.board.lines]
        wide = _wide(self.board, cells)
        yield wide if _needed(wide) <= options.max_width else _long(self.board, cells)
        notes = ["95 % intervals in brackets; tokens: mean length of the answers; time: training of that checkpoint."]
        yield from (Text(note, style="dim") for note in [*notes, *footnotes(self.board)])


def _table(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", title="Leaderboard", title_justify="left", **options)


def _wide(shown: Board, cells: list[list[Text]]) -> Table:
    table = _table(padding=(0, 1, 1, 0))
    table.add_column("checkpoint", overflow="fold", max_width=NAME_WIDTH)
    for name in shown.benchmarks:
        table.add_column(Text(f.benchmark_label(name)), justify="right")
    table.add_column("tokens\ntime", justify="right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def _needed(table: Table) -> int:
    """Columns of a terminal in which no word of the table is broken."""
    needed = 0
    for column in table.columns:
        lines = [line for cell in (column.header, *column.cells) for line in str(cell).splitlines()]
        longest = max(len(word) for line in lines for word in _unbroken(line))
        needed += 1 + min(longest, column.max_width or longest)
    return needed


def _unbroken(line: str) -> list[str]:
    """Parts of a cell's line that stay together: an interval is one of them."""
    return [line] if line.startswith("[") else line.split() or [""]


def _long(shown: Board, cells: list[list[Text]]) -> Table:
    table = _table()
    table.add_column("checkpoint", overflow="fold")
    table.add_column("benchmark")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    for row in cells:
        name, kind = row[0].split("\n")
        for number, (benchmark, cell) in enumerate(zip(shown.benchmarks, row[1:-1], strict=True)):
            parts = cell.split("\n")
            label = (name, Text.assemble(kind, style="dim"))[number] if number < 2 else ""
            table.add_row(label, f.benchmark_label(benchmark), *parts, *([""] if len(parts) == 1 else []))
        table.add_section()
    return table


def status_table(state: RunStatus) -> Group:
    """A run's stages in order: state, progress, attempts, time, memory; errors and the hooks' decisions below."""
    summary = state.summary
    head = Text.assemble(
        f"{f.plain(summary.name)}  ",
        (summary.status, _STATES.get(summary.status, "")),
        f"  {summary.stages_done} of {summary.stages} stages, {f.duration(summary.seconds)}",
    )
    if summary.status == "running" and summary.heartbeat_age is not None:
        head.append(f", last sign of life {f.duration(summary.heartbeat_age)} ago")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("progress", "attempts", "time", "left", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in state.stages:
        table.add_row(*_stage(stage))
    notes = []
    if summary.best_checkpoint:
        rule = f" ({f.plain(state.best_rule)})" if state.best_rule else ""
        notes.append(Text(f"best checkpoint: {f.plain(summary.best_checkpoint)}{rule}"))
    for iteration, decisions in state.decisions.items():
        for said in decisions:
            notes.append(Text(f.plain(f"after iteration {iteration}, {said['hook']}: {said['action']}: {said['reason']}")))
    for stage in state.stages:
        if stage.error:
            log = f"\n  log: {f.plain(stage.log)}" if stage.log else ""
            notes.append(Text(f"{f.plain(stage.name)}: {_lines(stage.error)}{log}", style="red"))
    if summary.error and not any(stage.error for stage in state.stages):
        notes.append(Text(_lines(summary.error), style="red"))
    return Group(head, table, *notes)


def progress(stage: StageStatus) -> str:
    """`32 / 48 prompts`, or nothing before the first report."""
    if stage.done is None or stage.total is None:
        return ""
    return f"{f.count(stage.done)} / {f.count(stage.total)} {f.plain(stage.unit or '')}".strip()


def _cells(shown: Board, line: Ranked) -> list[Text]:
    cells = [Text.assemble(f.plain(line.row.name), "\n", (f.kind(line.row), "dim"))]
    for name in shown.benchmarks:
        cell = line.cells.get(name)
        if cell is None:
            cells.append(Text(f.ABSENT, style="dim"))
        elif cell.value is None:
            cells.append(Text(f"withheld{f.FLAG if cell.flags else ''}\n{cell.n_failed} failed", style="yellow"))
        else:
            letter = shown.letter(cell)
            flag = f.FLAG if cell.flags else ""
            value = (f"{f.number(name, cell.value)}{f' ({letter})' if letter else ''}{flag}", "bold")
            cells.append(Text.assemble(value, "\n", (f.interval(cell), "dim")))
    return [*cells, Text(f"{f.count(line.row.answer_tokens)}\n{f.duration(line.row.seconds)}")]


def _stage(stage: StageStatus) -> list[Text]:
    state = Text(stage.status, style=_STATES.get(stage.status, "dim"))
    if stage.status == "running" and stage.heartbeat_age is not None and stage.heartbeat_age > 60:
        state.append(f", silent for {f.duration(stage.heartbeat_age)}", style="yellow")
    # A stage that another run made has no attempt here.
    attempts = str(stage.attempts) if stage.attempts else ""
    left = f.duration(stage.eta_seconds) if stage.eta_seconds is not None else ""
    seconds = f.duration(stage.seconds) if stage.seconds is not None else ""
    memory = f.size(stage.peak_rss_bytes) if stage.peak_rss_bytes is not None else ""
    return [Text(f.plain(stage.name)), state, *(Text(text) for text in (progress(stage), attempts, seconds, left, memory))]


def _lines(text: str) -> str:
    return "\n".join(f.plain(line) for line in text.splitlines())
