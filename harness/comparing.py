"""How `harness compare` prints what `evals.paired` finds."""

from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dashboard.format import p_value, plain
from evals.paired import Compared

_STYLES = {"IMPROVED": "green", "REGRESSED": "bold red", "UNDERPOWERED": "yellow", "NO EVIDENCE": ""}


def as_json(found: Compared) -> dict[str, Any]:
    """What `harness compare --json` prints."""
    return {"a": found.a, "b": found.b, "comparisons": [asdict(one) for one in found.comparisons], "not_comparable": found.apart}


def as_table(found: Compared) -> Group:
    """One line per benchmark. Names are strangers': neither Rich nor the terminal may take them for instructions."""
    title = Text(plain(f"{found.a} against {found.b}"), style="table.title")
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("benchmark", overflow="fold")
    table.add_column("verdict", overflow="fold")
    for column in ("difference\n95 % interval", "p", "smallest\nvisible", "n", "+ / = / -"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.comparisons:
        d = one.difference
        interval = "" if d.low is None or d.high is None else f"\n[{d.low:+.2f}, {d.high:+.2f}]"
        table.add_row(
            Text(plain(one.benchmark)),
            Text(one.verdict, style=_STYLES[one.verdict]),
            Text(f"{d.value:+.2f}{interval}"),
            p_value(one.adjusted_p),
            "" if d.mde is None else f"{d.mde:.2f}",
            str(d.n),
            f"{one.wins} / {one.ties} / {one.losses}",
        )
    notes = [
        "Mean difference over the n questions that both answered, in the benchmark's unit; + / = / -: questions that the first "
        "answered better, equally, worse. p: sign flips, Holm-adjusted over the benchmarks. Smallest visible: the true "
        "difference that this test, adjusted so, would show with probability 0.8. UNDERPOWERED: a difference worth acting on "
        "could hide.",
        *(f"{benchmark}: not compared, {why}." for benchmark, why in found.apart.items()),
    ]
    return Group(table, *(Text(plain(note), style="dim") for note in notes))
