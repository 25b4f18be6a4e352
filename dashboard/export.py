"""The table that is shown as CSV, Markdown, LaTeX and JSON: its lines, its columns, its cells, in its order; a card as JSON.

Pure, text out; model-given names cannot act in any of them.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dashboard import format as f
from dashboard.ranking import Board, Kind, Ranked, Section
from db.card import Card
from db.leaderboard import Cell, Group

# What a spreadsheet takes for a formula at the start of a cell, full-width forms included
# (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_CHANGE = {"change": "value", "change_low": "low", "change_high": "high", "change_p": "p", "change_verdict": "verdict"}
_CELL_FIELDS = ("value", "low", "high", *_CHANGE, "n", "n_failed", "complete", "metric", "method", "judge", "version", "group")
_CELL_FIELDS += ("flags",)
# What TeX would act on (The TeXbook, chapter 7: the characters with a category of their own).
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": "$-$", "\u2013": "--"}
_TEX |= {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    f.FLAG: r"\textdagger{}",
    "\u2009": r"\,",
}
_TEX |= {"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "<": r"\textless{}", ">": r"\textgreater{}"}


def file_part(name: str) -> str:
    """A name as a part of a file's name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "unnamed"


def card_json(found: Card) -> dict[str, Any]:
    """A checkpoint's card: where it comes from, how it was made, and every metric of every evaluation with its identity."""
    row = found.checkpoint
    about = {name: getattr(row, name) for name in ("name", "kind", "iteration", "source", "fingerprint", "provenance")}
    return about | {
        "created_at": row.created_at.isoformat(),
        "run": found.run,
        "recipe": found.recipe_keys,
        "lineage": [asdict(one) for one in found.ancestors],
        "data": found.counts,
        "evaluations": [
            {"settings": one.settings, "judge": one.judge_config, "provenance": one.provenance}
            | {"scores": [{"benchmark": cell.benchmark, **_score(cell)} for cell in one.cells]}
            for one in found.measured
        ],
    }


def to_json(table: Board) -> list[dict[str, Any]]:
    """One object per checkpoint; `scores` maps benchmark to the cell that the table shows."""
    return [_record(table, section, line) for section in table.sections for line in section.lines]


def to_csv(table: Board) -> str:
    """One line per checkpoint; the columns of benchmark B are B, B_low, B_high, B_n, B_n_failed, B_metric, ...

    Numbers stay numbers; text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    head = ["checkpoint", "rank_low", "rank_high", "section", "kind", "iteration", "run", "base", "parent", "answer_tokens"]
    head += ["seconds", "dollars", "created_at", "fingerprint"]
    columns = [(name, key) for name in table.benchmarks for key in _CELL_FIELDS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, *(_neutral(name if key == "value" else f"{name}_{key}") for name, key in columns)])
    for record in to_json(table):
        values = [record[name] for name in head] + [record["scores"].get(name, {}).get(key) for name, key in columns]
        writer.writerow([_neutral(value) for value in values])
    return out.getvalue()


def to_markdown(table: Board) -> str:
    """A table with `value [low, high]` cells, and below it what the letters behind the values stand for."""
    heads = ["Checkpoint", "Rank", "Kind", *(_heading(table, name) for name in table.benchmarks)]
    # As on the page: no column of dashes where nothing was paid.
    paid = any(line.row.micro_dollars for line in table.lines)
    heads += ["Tokens", "Time", *(["Dollars"] if paid else []), "Date"]
    lines = [_line(heads), _line([":--", "--:", ":--", *["--:"] * (len(heads) - 3)])]
    for section, line in _lines(table):
        if line is None:
            lines.append(_line([f"**{_escape(section)}**", *[""] * (len(heads) - 1)]))
            continue
        cells = [_cell(table, line.cells.get(name)) for name in table.benchmarks]
        row = line.row
        known = [_escape(f.plain(row.name)), f.rank(line.rank), _escape(f.kind(row))]
        spent = [f.dollars(row.micro_dollars)] if paid else []
        measures = [f.count(row.answer_tokens), f.duration(row.seconds), *spent, f.day(row.created_at)]
        lines.append(_line([*known, *cells, *measures]))
    notes = [f"- {_escape(note)}" for note in footnotes(table)]
    return "\n".join([*lines, "", "95 % intervals in brackets.", "", *notes]) + "\n"


def to_latex(table: Board) -> str:
    """A `tabular` of booktabs with the interval below each value; amssymb has the two triangles of a significant change."""
    heads = ["Checkpoint", "Rank", "Kind", *(_tex(f.benchmark_label(name)) for name in table.benchmarks), "Tokens", "Time"]
    metrics = ["", "", "", *(_tex(_metrics(table, name)) for name in table.benchmarks), "", ""]
    body = []
    for section, line in _lines(table):
        if line is None:
            body += ["\\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{{_tex(section)}}} \\\\"]
            continue
        cells = [line.cells.get(name) for name in table.benchmarks]
        values = [_tex_value(table, cell) for cell in cells]
        below = [_tex(" ".join(filter(None, (f.interval(cell), f.change(cell))))) if cell else "" for cell in cells]
        measures = [_tex(f.count(line.row.answer_tokens)), _tex(f.duration(line.row.seconds))]
        known = [_tex(f.plain(line.row.name)), _tex(f.rank(line.rank)), _tex(f.kind(line.row))]
        body.append(_tex_line([*known, *values, *measures]))
        body.append(_tex_line(["", "", "", *(f"{{\\scriptsize {text}}}" if text else "" for text in below), "", ""]))
    notes = [f"% {_one_line(note)}" for note in footnotes(table)]
    columns = "lrl" + "r" * (len(table.benchmarks) + 2)
    return "\n".join(
        [
            "% \\usepackage{booktabs,amssymb}; 95 % intervals in brackets.",
            *notes,
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            _tex_line(heads),
            _tex_line(metrics),
            *([] if table.parted else ["\\midrule"]),
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def _lines(table: Board) -> Iterator[tuple[str, Ranked | None]]:
    """The table's lines, and before each of several sections (its words, None)."""
    for section in table.sections:
        words = section_of(table, section)
        if words:
            yield words, None
        yield from ((words, line) for line in section.lines)


def section_of(table: Board, section: Section) -> str:
    """What a section's lines have in common, in words; "" where the table has only one."""
    if not table.parted:
        return ""
    benchmark = next((one.group.benchmark for one in table.sections if one.group), None)
    return ": ".join(section_words(section, table.first or section, benchmark))


def section_words(section: Section, first: Section, benchmark: str | None) -> tuple[str, str]:
    """(whether these lines are ranked, by what, or why not) of a section beside the table's first one."""
    if section.flagged:
        return "Not ranked", "flagged, see the notes below"
    if section.group is None or section.metric is None or benchmark is None:
        return "Not ranked", f"no {f.benchmark_label(benchmark or '')} score"
    group = section.group
    parts = [f.metric_label(group.benchmark, section.metric), f.data_version(group.version), f"judge: {f.judge(group)}"]
    why = _apart(group, section.metric, first)
    words = f"{f.benchmark_label(group.benchmark)}, {'; '.join(parts)}"
    return "Ranked together", f"{words}. Not ranked with those above: {why}." if why else words


def _apart(group: Group, metric: str, first: Section) -> str:
    """How a section's numbers differ from the first one's; empty for the first."""
    if first.group is None or first.metric is None:
        return ""
    differs = (
        ("another judge", group.judge, first.group.judge),
        ("other data", group.version, first.group.version),
        ("other answer settings", group.settings_hash, first.group.settings_hash),
        ("another metric", metric, first.metric),
    )
    return ", ".join(words for words, mine, theirs in differs if mine != theirs) or (
        "another prompt or configuration of the judge" if group.key != first.group.key else ""
    )


def column_label(name: str) -> str:
    """A column's title by itself: of a second figure, `benchmark/metric`, with the metric."""
    metric = name.partition("/")[2]
    return f.benchmark_label(name) + (f", {f.metric_label(name, metric).removesuffix(', %')}" if metric else "")


def no_interval(cell: Cell) -> str:
    """What is said of a published score that came without an interval: nothing below it is one; "" of every other."""
    return "no interval published" if cell.judge_kind == "published" and cell.value is not None and not f.interval(cell) else ""


def footnotes(table: Board) -> list[str]:
    """What each benchmark's cells are: one line per comparability group and metric."""
    lines = []
    for name in table.benchmarks:
        groups = {group.key: group for group in table.groups[name]}
        of_kind: dict[Kind, list[Cell]] = {kind: [] for kind in table.kinds.get(name, [])}
        for line in table.lines:
            if cell := line.cells.get(name):
                of_kind[cell.group, cell.metric].append(cell)
        for (key, metric), cells in of_kind.items():
            if not cells:
                continue
            group, letter = groups[key], table.letter(cells[0])
            questions = sorted({cell.n_questions for cell in cells})
            n = str(questions[0]) if len(questions) == 1 else f"{questions[0]} to {questions[-1]}"
            failed = sum(cell.n_failed for cell in cells)
            # Some published tables do not say of how many questions they are.
            parts = [f.metric_label(name, metric), f.data_version(group.version), *([f"{n} questions"] if questions[-1] else [])]
            parts += [f"judge: {f.judge(group)}", *f.trust(group.trust), *([f"{failed} items failed"] if failed else [])]
            if bare := [cell for cell in cells if no_interval(cell)]:
                some = "" if len(bare) == len(cells) else f"{len(bare)} of {len(cells)} with "
                parts.append(some + no_interval(bare[0]))
            lines.append(f"{f.benchmark_label(name)}{f' ({letter})' if letter else ''}: {'; '.join(parts)}")
    if any(len(table.kinds.get(name, [])) > 1 for name in table.benchmarks):
        lines.append("Values with different letters differ in judge, data, settings or metric and are not ranked together.")
    return lines + [_flagged(table, line) for line in table.lines if any(cell.flags for cell in _cells(table, line).values())]


def _flagged(table: Board, line: Ranked) -> str:
    """Why a line's cells are flagged; of a canary of ours, what it is."""
    told = []
    for name, cell in _cells(table, line).items():
        ours = [flag for flag in cell.flags if flag["flag"] == "canary"]
        if cell.flags:
            told.append(f"{f.benchmark_label(name)}: {', '.join(f.plain(flag['reason']) for flag in ours or cell.flags)}")
    return f"{f.FLAG} {f.plain(line.row.name)} is flagged and not ranked with others. {'; '.join(told)}."


def _cells(table: Board, line: Ranked) -> dict[str, Cell]:
    """benchmark -> the line's cell, of the columns that stand in the table."""
    return {name: line.cells[name] for name in table.benchmarks if name in line.cells}


def _record(table: Board, section: Section, line: Ranked) -> dict[str, Any]:
    row, cells = line.row, _cells(table, line)
    return {
        "checkpoint": row.name,
        "rank_low": line.rank[0] if line.rank else None,
        "rank_high": line.rank[1] if line.rank else None,
        "section": section_of(table, section),
        "kind": row.kind,
        "iteration": row.iteration,
        "run": row.run,
        "base": row.base,
        "parent": row.parent,
        "fingerprint": row.fingerprint,
        "created_at": row.created_at.isoformat(),
        "held_out_reward": cells[f.HELD_OUT].value if f.HELD_OUT in cells else None,
        "answer_tokens": row.answer_tokens,
        "seconds": row.seconds,
        "dollars": row.micro_dollars / 1e6,
        "scores": {name: _score(cell) for name, cell in cells.items()},
    }


def _score(cell: Cell) -> dict[str, Any]:
    fields = ("metric", "value", "low", "high", "method", "n", "n_failed", "worst", "best", "higher_is_better")
    fields += ("version", "judge", "judge_kind", "complete", "group")
    return {name: getattr(cell, name) for name in fields} | {
        "starter": f.is_starter(cell.version),
        "flags": list(cell.flags),
        **{name: getattr(cell.change, field) if cell.change else None for name, field in _CHANGE.items()},
    }


def _metrics(table: Board, name: str) -> str:
    return " or ".join(sorted({f.metric_label(name, line.cells[name].metric) for line in table.lines if name in line.cells}))


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_line(cells: list[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _tex_value(table: Board, cell: Cell | None) -> str:
    if cell is None:
        return _tex(f.ABSENT)
    mark = table.letter(cell) + (f.FLAG if cell.flags else "")
    value = _tex("withheld" if cell.value is None else f.number(cell.benchmark, cell.value))
    return value + (f"\\textsuperscript{{{_tex(mark)}}}" if mark else "")


def _one_line(text: str) -> str:
    """Text for a comment of TeX, which ends with the line."""
    return " ".join(text.split())


def _neutral(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(f"{one['flag']}: {one['reason']}" for one in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _heading(table: Board, name: str) -> str:
    starter = all(f.is_starter(group.version) for group in table.groups[name])
    return _escape(column_label(name)) + (f" ({f.STARTER})" if starter else "")


def _cell(table: Board, cell: Cell | None) -> str:
    letter = table.letter(cell) if cell else ""
    marks = (f" ({letter})" if letter else "") + (f.FLAG if cell and cell.flags else "")
    # A withheld score says itself how many failed.
    failed = f"{cell.n_failed} failed" if cell and cell.n_failed and cell.value is not None else ""
    beside = [f.change(cell), failed] if cell else []
    return _escape(f.score(cell)) + marks + "".join(f"; {_escape(part)}" for part in beside if part)


def _escape(text: str) -> str:
    """CommonMark and HTML of `text` made inert: every ASCII punctuation mark that could mean something is escaped."""
    return re.sub(r"([\\`*_\[\]<>|#!&~$])", r"\\\1", text)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
