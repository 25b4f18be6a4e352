"""The tables as HTML. Every piece of text passes through `text`, so nothing that a model or a stranger wrote can act."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from dashboard import format as f
from dashboard.export import footnotes, no_interval, section_words
from dashboard.ranking import Board, Ranked, Section
from dashboard.theme import COLOURS
from db.leaderboard import Cell, Row


@dataclass(frozen=True)
class Column:
    """A column of a plain table."""

    title: str
    numeric: bool = False
    wide: bool = False
    """Whether its text may break into lines."""

    @property
    def style(self) -> str:
        return "n" if self.numeric else "wide" if self.wide else ""


CHANGES = (
    "Below each interval: the difference from the parent on the questions that both answered; ▲ and ▼ only where a paired test, "
    "adjusted over the benchmarks, is significant."
)


class Markup(str):
    """HTML that is already safe."""


Scales = dict[tuple[str, str, str], tuple[float, float]]
"""(column, comparability group, metric) -> least and greatest end of its intervals."""


@dataclass(frozen=True)
class Measure:
    """A column of what is known of a checkpoint besides its scores."""

    title: str
    note: str
    value: Callable[[Row], str]


MEASURES = (
    Measure("Answer", "mean tokens", lambda row: f.count(row.answer_tokens)),
    Measure("Time", "training", lambda row: f.duration(row.seconds)),
    Measure("Judged for", "dollars", lambda row: f.dollars(row.micro_dollars)),
    Measure("Date", "UTC", lambda row: f.day(row.created_at)),
)


def text(value: object) -> Markup:
    """One line of inert HTML."""
    return Markup(escape(f.plain(str(value))))


def dot(checkpoint_id: int) -> Markup:
    """The colour that a checkpoint has on every page; its name beside it carries the meaning."""
    return Markup(f'<i class="dot c{(checkpoint_id - 1) % COLOURS}"></i>')


def root(*parts: str) -> Markup:
    """A block that the style sheet applies to."""
    return Markup(f'<div class="h-root">{"".join(parts)}</div>')


def heading(title: str, note: str = "", chart: bool = False) -> Markup:
    """A title with a note below it; `chart`: above one chart of several in a row."""
    style = ' class="chart"' if chart else ""
    return root(f"<h3{style}>{text(title)}{f'<small>{text(note)}</small>' if note else ''}</h3>")


def facts(pairs: Sequence[tuple[str, str, str]]) -> Markup:
    """Key figures: (name, value, note)."""
    items = (f"<div><dt>{text(k)}</dt><dd>{text(v)}{f'<small>{text(n)}</small>' if n else ''}</dd></div>" for k, v, n in pairs)
    return root(f"<dl>{''.join(items)}</dl>")


def plain_table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> Markup:
    """A table whose first column names the row. Cells are text unless they are Markup."""
    head = "".join(f'<th scope="col" class="{"name" if i == 0 else c.style}">{text(c.title)}</th>' for i, c in enumerate(columns))
    body = []
    for row in rows:
        cells = [value if isinstance(value, Markup) else text(value) for value in row]
        first = f'<th scope="row" class="name">{cells[0]}</th>'
        rest = "".join(f'<td class="{column.style}">{cell}</td>' for column, cell in zip(columns[1:], cells[1:], strict=True))
        body.append(f"<tr>{first}{rest}</tr>")
    return root(_scroll(caption, f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"))


def leaderboard(board: Board, benchmark: str | None, links: bool = True) -> Markup:
    """The leaderboard: a body per section that may be ranked together, notes on every column below.

    `benchmark`: the one that sorts and ranks. `links`: names and scores lead to the pages of a running dashboard.
    """
    scales = _scales(board)
    own = {name for name in board.benchmarks if _questions(board, name) is None}
    ranked = any(line.rank for line in board.lines)
    head = ['<th scope="col" class="name">Checkpoint</th>']
    head += ['<th scope="col" class="n">Rank<small>range</small></th>'] if ranked else []
    head += [_column(board, name, name == benchmark) for name in board.benchmarks]
    measures = [one for one in MEASURES if any(one.value(line.row) != f.ABSENT for line in board.lines)]
    head += [f'<th scope="col" class="n">{one.title}<small>{one.note}</small></th>' for one in measures]
    bodies = []
    for section in board.sections:
        title = _section(section, board.first or section, benchmark, len(head)) if board.parted else ""
        lines = "".join(_line(board, line, scales, own, ranked, links, measures) for line in section.lines)
        bodies.append(f"<tbody>{title}{lines}</tbody>")
    table = _scroll("Leaderboard", f"<thead><tr>{''.join(head)}</tr></thead>{''.join(bodies)}", "board")
    notes = [*footnotes(board), *([CHANGES] if any(f.change(c) for line in board.lines for c in line.cells.values()) else [])]
    notes = "".join(f"<li>{text(note)}</li>" for note in notes) + (_judges(board) if links else "")
    return root(table, f'<ul class="notes">{notes}</ul>')


def _judges(board: Board) -> str:
    """Links to the cards of the judges whose verdicts stand in the table."""
    groups = [group for name in board.benchmarks for group in board.groups[name]]
    names = dict.fromkeys(group.judge for group in groups if group.judge_kind not in ("none", "sandbox", "published"))
    cards = ", ".join(f'<a href="judges?judge={quote(f.plain(name), safe="")}">{text(name)}</a>' for name in names)
    return f"<li>What is known of the judges: {cards}</li>" if cards else ""


def progress(done: int | None, total: int | None, unit: str | None) -> Markup:
    """A bar with its numbers, or nothing before the first report."""
    if done is None or not total:
        return Markup("")
    share = min(100.0, 100 * done / total)
    label = text(f"{f.count(done)} / {f.count(total)} {unit or ''}")
    return Markup(f'{label}<span class="fill" aria-hidden="true"><i style="width:{share:.1f}%"></i></span>')


def state(status: str) -> Markup:
    """A stage's or a run's state in its colour; the word itself carries the meaning."""
    colour = {"done": "good", "reused": "good", "failed": "bad", "running": "v", "stopped": "warn"}.get(status, "absent")
    return Markup(f'<span class="{colour}">{text(status)}</span>')


def _scroll(caption: str, rows: str, style: str = "") -> str:
    label = text(caption)
    # Reachable by keyboard, so that what lies to the right can be scrolled to without a mouse.
    region = f'<div class="h-scroll" role="region" tabindex="0" aria-label="{label}">'
    named = f' class="{style}"' if style else ""
    return f'{region}<table{named} aria-label="{label}">{rows}</table></div>'


def _column(board: Board, name: str, sorts: bool) -> str:
    cells = [line.cells[name] for line in board.lines if name in line.cells]
    metrics = " or ".join(sorted({f.metric_label(name, cell.metric) for cell in cells}))
    several = board.groups[name]
    notes = [text(metrics)]
    if all(f.is_starter(group.version) for group in several):
        notes.append(Markup('<span class="warn">starter set</span>'))
    if asked := _questions(board, name):
        notes.append(text(f"n {asked}"))
    small = "".join(f"<small>{note}</small>" for note in notes)
    marks = ('n sorted" aria-sort="descending' if _descending(cells) else 'n sorted" aria-sort="ascending') if sorts else "n"
    return f'<th scope="col" class="{marks}">{text(f.benchmark_label(name))}{small}</th>'


def _questions(board: Board, name: str) -> int | None:
    """The questions of a column's cells, 0 where a published table does not say; None where they differ, and each cell tells
    its own."""
    found = {line.cells[name].n_questions for line in board.lines if name in line.cells}
    return found.pop() if len(found) == 1 else None


def _descending(cells: list[Cell]) -> bool:
    return all(cell.higher_is_better is not False for cell in cells)


def _section(section: Section, first: Section, benchmark: str | None, width: int) -> str:
    title, parts = section_words(section, first, benchmark)
    label = Markup(f"<b>{text(title)}:</b> {text(parts)}")
    return f'<tr><th class="group" scope="rowgroup" colspan="{width}"><span>{label}</span></th></tr>'


def _line(
    board: Board,
    line: Ranked,
    scales: Scales,
    own: set[str],
    ranked: bool,
    links: bool,
    measures: Sequence[Measure],
) -> str:
    row = line.row
    details = text(f.kind(row) + (f" from {f.plain(row.base)}" if row.base else ""))
    if row.kind in ("published", "canary"):
        details = Markup(f'<span class="chip">{details}</span>')
    card = f'<a href="checkpoint?fingerprint={text(row.fingerprint)}">{text(row.name)}</a>' if links else text(row.name)
    name = f'<th scope="row" class="name">{card}<small>{dot(row.checkpoint_id)}{details}</small></th>'
    rank = f"<td>{text(f.rank(line.rank))}</td>" if ranked else ""
    cells = "".join(_cell(board, line.cells.get(name), scales, name in own, links) for name in board.benchmarks)
    rest = "".join(f"<td>{text(one.value(row))}</td>" for one in measures)
    return f"<tr>{name}{rank}{cells}{rest}</tr>"


def _cell(board: Board, cell: Cell | None, scales: Scales, counted: bool, links: bool) -> str:
    """`counted`: whether the cell tells its number of questions, as its column's head cannot."""
    if cell is None:
        return f'<td class="absent">{f.ABSENT}</td>'
    marks = []
    if cell.n_failed:
        marks.append(f"{cell.n_failed} failed")
    if not cell.complete:
        marks.append("not complete")
    warnings = "".join(f'<small><span class="warn">{text(mark)}</span></small>' for mark in marks)
    letter = board.letter(cell)
    shown = text("withheld" if cell.value is None else f.number(cell.benchmark, cell.value))
    # Behind a published score there are no answers to lead to.
    leads = links and cell.judge_kind != "published"
    value = f'<a href="samples?evaluation={cell.evaluation_id}">{shown}</a>' if leads else shown
    mark = letter + (f.FLAG if cell.flags else "")
    superscript = f"<sup>{text(mark)}</sup>" if mark else ""
    interval = f.interval(cell)
    low_high = f'<span class="i">{text(interval)}</span>{_bar(cell, scales)}' if interval else ""
    n = f"<small>{text(f'n {cell.n_questions}')}</small>" if counted and cell.n_questions else ""
    below = f"{low_high}{_change(cell)}{n}{warnings}"
    tooltip = "; ".join(filter(None, (f.describe(cell), no_interval(cell))))
    return f'<td title="{text(tooltip)}"><b>{value}</b>{superscript}{below}</td>'


def _change(cell: Cell) -> str:
    """The difference from the parent; only a significant one has a mark and a colour."""
    shown = f.change(cell)
    if not shown:
        return ""
    colour = {"IMPROVED": "good", "REGRESSED": "bad"}.get(cell.change.verdict, "absent")
    return f'<small><span class="{colour}">{text(shown)}</span></small>'


def _bar(cell: Cell, scales: Scales) -> str:
    """Value and interval on the scale of what it may be compared with: where two bars overlap, the intervals do."""
    low, high = scales.get((cell.benchmark, cell.group, cell.metric), (0.0, 0.0))
    width = high - low
    if width <= 0 or cell.value is None or cell.low is None or cell.high is None:
        return ""
    left, right, middle = (100 * (value - low) / width for value in (cell.low, cell.high, cell.value))
    return f'<i class="bar" style="--l:{left:.0f}%;--w:{max(1.0, right - left):.0f}%;--m:{middle:.0f}%"></i>'


def _scales(board: Board) -> Scales:
    """Only of groups with cells to compare."""
    ends: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for line in board.lines:
        for cell in line.cells.values():
            if cell.value is not None and cell.low is not None and cell.high is not None:
                ends[cell.benchmark, cell.group, cell.metric] += [cell.low, cell.high]
    return {place: (min(values), max(values)) for place, values in ends.items() if len(values) > 2}
