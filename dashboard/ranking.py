"""Which cells stand in the table, and which of them may be ranked together. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

from dashboard.format import is_starter, order_benchmarks
from db.leaderboard import Cell, Group, Row, groups, rank_ranges

Kind = tuple[str, str]
"""(comparability group, metric): one group may hold two metrics, a length-controlled win rate where it could be fitted, the raw
one elsewhere."""


@dataclass(frozen=True)
class Ranked:
    """One line of the table: a row, the cells that it shows, and its place within its section."""

    row: Row
    cells: dict[str, Cell]
    rank: tuple[int, int] | None
    """Best and worst rank that the intervals allow; None where the sorting benchmark has no value."""


@dataclass(frozen=True)
class Section:
    """Lines that may be ranked together: one group and one metric; both None for checkpoints without the sorting benchmark."""

    group: Group | None
    metric: str | None
    lines: list[Ranked]
    flagged: bool = False
    """Whether these cells are flagged: answers that were made for the judge are no evidence of a policy's quality, and a rank
    among policies would say that they were. They stand beside the others, unranked."""


@dataclass(frozen=True)
class Board:
    """The whole table."""

    benchmarks: list[str]
    groups: dict[str, list[Group]]
    """benchmark -> the comparability groups of the cells shown."""
    sections: list[Section]
    kinds: dict[str, list[Kind]]
    """benchmark -> what its cells may be compared within, in the order of their letters."""
    first: Section | None
    """The section that the others are told apart from, also where a slice begins behind it."""
    parted: bool
    """Whether there are several sections, also where a slice holds one."""

    @property
    def lines(self) -> list[Ranked]:
        return [line for section in self.sections for line in section.lines]

    def slice(self, start: int, stop: int) -> "Board":
        """The same table with only the lines from `start` to `stop`; ranks are those of the whole."""
        sections, seen = [], 0
        for section in self.sections:
            lines = section.lines[max(0, start - seen) : max(0, stop - seen)]
            seen += len(section.lines)
            if lines:
                sections.append(replace(section, lines=lines))
        return replace(self, sections=sections)

    def letter(self, cell: Cell) -> str:
        """`a`, `b`, ... by comparability group and metric; empty where a benchmark has only one."""
        kinds = self.kinds[cell.benchmark]
        return letters(kinds.index((cell.group, cell.metric))) if len(kinds) > 1 else ""


def board(
    rows: list[Row], benchmark: str | None = None, group: str | None = None, columns: Collection[str] | None = None
) -> Board:
    """Rows sorted and ranked by `benchmark` within each of its comparability groups; without one, in the order given.

    A checkpoint with several evaluations of a benchmark shows the one in the group that most others are in, so that as
    much as possible can be compared; groups on the real benchmark come before those on the starter set. `group` is the
    key of one that comes before all others; `columns`, where given, are the only ones that stand in the table.
    """
    found = {name: order_groups(several, group) for name, several in groups(rows).items()}
    chosen = {row.checkpoint_id: {name: _choose(row, name, several) for name, several in found.items()} for row in rows}
    cells = {identity: {name: cell for name, cell in of_row.items() if cell} for identity, of_row in chosen.items()}
    used = {cell.group for of_row in cells.values() for cell in of_row.values()}
    found = {name: [one for one in several if one.key in used] for name, several in found.items()}
    shown = order_benchmarks(set(found) if columns is None else found.keys() & set(columns))
    if benchmark is None or benchmark not in found:
        lines = [Ranked(row, cells[row.checkpoint_id], None) for row in rows]
        return _made(shown, found, [Section(None, None, lines)] if lines else [])
    sections = []
    by_key = {one.key: one for one in found[benchmark]}
    together: dict[tuple[str, str, bool] | None, list[Row]] = defaultdict(list)
    for row in rows:
        cell = cells[row.checkpoint_id].get(benchmark)
        together[(cell.group, cell.metric, bool(cell.flags)) if cell else None].append(row)
    places = {key: index for index, key in enumerate(by_key)}
    for key in sorted(together, key=lambda key: (key is None, (key[2], places[key[0]], key[1]) if key else ())):
        together_in, metric, flagged = (by_key[key[0]], *key[1:]) if key else (None, None, False)
        sections.append(Section(together_in, metric, _rank(together[key], cells, benchmark, flagged), flagged))
    return _made(shown, found, sections)


def _made(benchmarks: list[str], groups: dict[str, list[Group]], sections: list[Section]) -> Board:
    shown = [cell for section in sections for line in section.lines for cell in line.cells.values()]
    places = {(name, one.key): place for name, several in groups.items() for place, one in enumerate(several)}
    kinds: dict[str, set[Kind]] = defaultdict(set)
    for cell in shown:
        kinds[cell.benchmark].add((cell.group, cell.metric))
    ordered = {name: sorted(of, key=lambda kind: (places[name, kind[0]], kind[1])) for name, of in kinds.items()}
    return Board(benchmarks, groups, sections, ordered, sections[0] if sections else None, len(sections) > 1)


def comparable(table: Board) -> Board:
    """Only what may be compared: the first section's lines, and in each column the cells of the group and the metric that most of
    them share."""
    if not table.sections:
        return table
    first = table.sections[0]
    kept: dict[str, Kind] = {}
    for name in table.benchmarks:
        unflagged = [line.cells[name] for line in first.lines if name in line.cells and not line.cells[name].flags]
        if counts := Counter((cell.group, cell.metric) for cell in unflagged):
            kept[name] = counts.most_common(1)[0][0]
    lines = [
        replace(line, cells={name: cell for name, cell in line.cells.items() if kept.get(name) == (cell.group, cell.metric)})
        for line in first.lines
    ]
    groups = {
        name: [one for one in several if name in kept and one.key == kept[name][0]] for name, several in table.groups.items()
    }
    return _made([name for name in table.benchmarks if name in kept], groups, [replace(first, lines=lines)])


def order_groups(several: list[Group], first: str | None = None) -> list[Group]:
    """Comparability groups of one benchmark: `first`, then the real benchmark before the starter set, larger ones first."""
    return sorted(several, key=lambda one: (one.key != first, is_starter(one.version), -one.checkpoints, one.key))


def letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    return (letters(index // 26 - 1) if index >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[index % 26]


def _rank(rows: list[Row], cells: dict[int, dict[str, Cell]], benchmark: str, flagged: bool) -> list[Ranked]:
    by_row = {row.checkpoint_id: cells[row.checkpoint_id].get(benchmark) for row in rows}
    known = [cell for cell in by_row.values() if cell is not None]
    # A metric without a better direction is listed, largest first, and not ranked.
    ranks = rank_ranges(by_row) if not flagged and all(cell.higher_is_better is not None for cell in known) else {}

    def place(row: Row) -> tuple[bool, float, int]:
        cell = by_row[row.checkpoint_id]
        if cell is None or cell.value is None:
            return True, 0.0, row.checkpoint_id
        return False, cell.value if cell.higher_is_better is False else -cell.value, row.checkpoint_id

    ordered = sorted(rows, key=place)
    return [Ranked(row, cells[row.checkpoint_id], ranks.get(row.checkpoint_id)) for row in ordered]


def _choose(row: Row, benchmark: str, several: list[Group]) -> Cell | None:
    if benchmark not in row.evaluations:
        return None
    cells = [cell for group in several if (cell := row.cell(benchmark, group.key))]
    return next((cell for cell in cells if cell.complete), cells[0])
