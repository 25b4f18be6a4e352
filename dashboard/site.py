"""The leaderboard as one HTML file that needs no server: every ranking, iteration curves, each checkpoint against its parent.

No script, no request: what a browser shows is in the file, and a Content-Security-Policy of its own keeps it so.
"""

from html import escape

from sqlalchemy.orm import Session

from dashboard import charts, markup
from dashboard import format as f
from dashboard.comparison_table import EXPLAINED, comparison_table
from dashboard.export import column_label
from dashboard.ranking import board
from dashboard.theme import STYLE
from db import views
from db.leaderboard import Row
from db.models import now
from db.views import Series
from evals.paired import compare_checkpoints

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_PAGE = """<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem; color: light-dark(#1B2733, #E4EAF1);
  background: light-dark(#FFFFFF, #10151C); font-family: system-ui, sans-serif; }
h1 { font-size: 1.875rem; } h2 { font-size: 1.375rem; margin-top: 2.5rem; } p { color: light-dark(#56636F, #A3B0BE); }
details { margin: 0.75rem 0; } summary { cursor: pointer; padding: 0.25rem 0; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: 0.8125rem; color: light-dark(#56636F, #A3B0BE); }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: light-dark(#56636F, #A3B0BE); }
</style>"""


def site(session: Session, title: str = "RLHF leaderboard") -> str:
    """The whole file. Published reference rows are in the rankings, marked as such."""
    rows = views.leaderboard(session, metrics=f.BESIDE)
    theirs = ", published ones with what was published" if any(row.source == "published" for row in rows) else ""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"{STYLE}{_PAGE}</head><body><main>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{f.plural(len(rows), 'checkpoint')}; made {f.moment(now())} UTC. Every score stands with its 95 % interval{theirs}; "
        "checkpoints whose intervals overlap share a range of ranks.</p>",
        *_rankings(rows),
        *_curves(session),
        *_comparisons(session, rows),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _rankings(rows: list[Row]) -> list[str]:
    # A second metric that is nowhere but in the headline itself would be the same column twice.
    columns = {name for row in rows for name, cell in row.cells.items() if "/" not in name or not cell.headline}
    found = []
    for place, benchmark in enumerate(f.order_benchmarks(columns)):
        table = markup.leaderboard(board(rows, benchmark, columns=columns), benchmark, links=False)
        opened = " open" if place == 0 else ""
        found.append(f"<details{opened}><summary>Ranked by {escape(column_label(benchmark))}</summary>{table}</details>")
    return found


def _curves(session: Session) -> list[str]:
    found = []
    for run in views.runs(session):
        series = [one for one in views.iteration_curves(session, run.name) if len(one.points) > 1]
        if series:
            figures = "".join(figure(one) for one in series)
            found.append(f'<h2>Iterations of {markup.text(run.name)}</h2><div class="charts">{figures}</div>')
    return found


def _comparisons(session: Session, rows: list[Row]) -> list[str]:
    found = []
    for row in rows:
        if row.parent is None or not row.cells:
            continue
        compared = compare_checkpoints(session, row.fingerprint)
        title = markup.text(f"{compared.a} against {compared.b}")
        found.append(f"<details><summary>{title}</summary>{comparison_table(compared)}</details>")
    return ["<h2>Each checkpoint against its parent</h2>", f"<p>{EXPLAINED}</p>", *found] if found else []


def figure(series: Series, width: int = 320, height: int = 170) -> str:
    """Score over a run's policies as SVG: band, line, points; dashed lines for the first policy and, longer, offline baselines;
    the numbers again in words below."""
    known = [(place, point.cell) for place, point in enumerate(series.points) if point.cell.value is not None]
    ends = [end for _, cell in known for end in (cell.low, cell.high, cell.value) if end is not None]
    beside_it = [point.cell.value for point in series.baselines if point.cell.value is not None]
    ends += beside_it
    words = escape(charts.iterations_in_words(series))
    name = markup.text(f"{f.benchmark_label(series.benchmark)}: {f.metric_label(series.benchmark, series.metric)}")
    if not known:
        return f"<figure>{markup.root(f'<h3>{name}</h3>')}<figcaption>{words}</figcaption></figure>"
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    left, right, top, bottom = 44, 14, 10, 24

    def x(place: int) -> float:
        return left + (width - left - right) * (place + 0.5) / len(series.points)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - low) / span)

    banded = [(place, cell.low, cell.high) for place, cell in known if cell.low is not None and cell.high is not None]
    band = [f"{x(p):.1f},{y(up):.1f}" for p, _, up in banded] + [f"{x(p):.1f},{y(down):.1f}" for p, down, _ in reversed(banded)]
    line = " ".join(f"{x(place):.1f},{y(cell.value):.1f}" for place, cell in known)
    first = series.first.cell.value if series.first else None
    dashed = [(value, dash) for value, dash in ((first, "3 3"), *((value, "8 3") for value in beside_it)) if value is not None]
    lines = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(at):.1f}" y2="{y(at):.1f}" stroke="#888888" stroke-dasharray="{dash}"/>'
        for at, dash in dashed
    )
    marks = "".join(f'<circle cx="{x(place):.1f}" cy="{y(cell.value):.1f}" r="4"/>' for place, cell in known)
    below = "".join(
        f'<text x="{x(place):.1f}" y="{height - 6}" text-anchor="middle">{markup.text(charts.policy(point))}</text>'
        for place, point in enumerate(series.points)
    )
    beside = "".join(
        f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{f.number(series.benchmark, value)}</text>'
        for value in (low, high)
    )
    drawn = (
        f'<g fill="var(--accent)" stroke="none"><polygon points="{" ".join(band)}" opacity="0.16"/>{marks}</g>'
        f'<polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
        f"{lines}"
    )
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{words}">{drawn}{below}{beside}</svg>'
    return f"<figure>{markup.root(f'<h3>{name}</h3>', svg)}<figcaption>{words}</figcaption></figure>"
