"""The small multiples that two pages show: one chart per benchmark, its description and numbers beside it."""

from collections.abc import Callable

import streamlit as st

from dashboard import charts, markup
from dashboard import format as f
from dashboard.ranking import letters
from db.views import Point, Series

COLUMNS = 3


def draw_iterations(series: list[Series]) -> None:
    """One chart per benchmark and comparability group, and the same numbers as a table."""
    places = {name: i for i, name in enumerate(f.order_benchmarks({one.benchmark for one in series}))}
    ordered = sorted(series, key=lambda one: places[one.benchmark])
    grid(len(ordered), lambda index: _chart(ordered, index))
    with st.expander("The numbers behind the charts"):
        st.html(_numbers(ordered))


def grid(count: int, draw: Callable[[int], None]) -> None:
    """Cells in rows of three; on a narrow screen they stand below each other."""
    for start in range(0, count, COLUMNS):
        for offset, column in enumerate(st.columns(COLUMNS, gap="medium")):
            if start + offset < count:
                with column:
                    draw(start + offset)


def _chart(ordered: list[Series], index: int) -> None:
    one = ordered[index]
    cell = one.points[0].cell
    notes = [f.metric_label(one.benchmark, one.metric), f.data_version(one.version), f"n {cell.n_questions}"]
    title = f.benchmark_label(one.benchmark) + _letter(ordered, one)
    st.html(markup.heading(title, "; ".join([*notes, f"judge: {f.judge(cell)}"]), chart=True))
    st.vega_lite_chart(charts.iterations(one), alt=charts.iterations_in_words(one), key=f"iterations-{one.group}")


def _numbers(ordered: list[Series]) -> str:
    policies = [charts.policy(point) for one in ordered for point in one.points]
    policies = list(dict.fromkeys([*policies, *(_baseline(point) for one in ordered for point in one.baselines)]))
    columns = [markup.Column("Benchmark"), *(markup.Column(_title(name), numeric=True) for name in policies)]
    rows = []
    for one in ordered:
        found = {charts.policy(point): f.score(point.cell) for point in one.points}
        found |= {_baseline(point): f.score(point.cell) for point in one.baselines}
        rows.append([f.benchmark_label(one.benchmark) + _letter(ordered, one), *(found.get(name, f.ABSENT) for name in policies)])
    return markup.plain_table("Scores by iteration", columns, rows)


def _baseline(point: Point) -> str:
    return f"baseline {f.plain(point.role).replace('_', ' ')}"


def _title(policy: str) -> str:
    return f"iteration {policy}" if policy.isdigit() else policy


def _letter(ordered: list[Series], one: Series) -> str:
    """` (a)`, ` (b)` where a benchmark has several comparability groups."""
    same = [other.group for other in ordered if other.benchmark == one.benchmark]
    return f" ({letters(same.index(one.group))})" if len(same) > 1 else ""
