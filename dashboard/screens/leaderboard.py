"""One row per checkpoint, one cell per benchmark; the iteration curves of one run below."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import streamlit as st

from dashboard import export, markup
from dashboard import format as f
from dashboard.curves import draw_iterations
from dashboard.link import copy_link
from dashboard.ranking import Board, board, comparable, order_groups
from dashboard.source import empty, expected_errors, read
from db import samples, views
from db.leaderboard import Group, Row

PAGE_LINES = 40
# Kinds of judges that are no judges: their scores stand whichever judge is chosen.
_OURS = ("none", "sandbox")


@dataclass(frozen=True)
class Chosen:
    """What the filters leave, and how it is to be shown."""

    rows: list[Row]
    columns: list[str]
    rank_by: str | None
    group: str | None
    """Key of the comparability group that comes first."""
    only_comparable: bool


def page() -> None:
    st.title("Leaderboard", anchor=False)
    with expected_errors():
        rows = read(views.leaderboard, metrics=[f"{name}/{metric}" for name, several in f.SECOND.items() for metric in several])
        if not rows:
            reason = "The registry has no checkpoint yet. The first command fills it in minutes, the second scores one you have."
            empty("Nothing to rank yet", reason, "harness train-and-eval quickstart", "harness eval PATH_OR_HUB_ID")
            return
        runs = [run.name for run in read(views.runs)]
        theirs = ", published ones with what was published" if any(row.source == "published" for row in rows) else ""
        st.caption(
            f"{f.plural(len(rows), 'checkpoint')}, {f.plural(len(runs), 'run')}. "
            f"Every score stands with its 95 % interval{theirs}; checkpoints whose intervals overlap share a range of ranks."
        )
        chosen = _filters(rows, runs)
        _table(chosen)
        _curves(runs)


def _filters(rows: list[Row], runs: list[str]) -> Chosen:
    search, left, middle, right = st.columns([2, 2, 2, 2], vertical_alignment="bottom")
    asked = search.text_input("Search", key="q", placeholder="Name, base or fingerprint", bind="query-params") or ""
    run = left.selectbox("Run", runs, index=None, placeholder="All runs", format_func=f.plain, key="run", bind="query-params")
    kinds = [kind for kind in views.POLICY_KINDS if any(row.kind == kind for row in rows)]
    wanted = middle.multiselect("Kind", kinds, format_func=_kind, placeholder="All kinds", key="kind", bind="query-params")
    played = {row.checkpoint_id for row in read(views.leaderboard, run=run, benchmarks=[])} if run else None
    kept = [
        row
        for row in rows
        if (played is None or row.checkpoint_id in played) and (not wanted or row.kind in wanted) and _found(row, asked)
    ]
    with st.container(horizontal=True, gap="small"):
        with st.popover("Columns and judge", icon=":material/tune:"):
            kept, columns, only = _view(kept)
        copy_link("This page as it stands, with every filter.")
        with st.popover("Compare two", icon=":material/compare_arrows:"):
            _compare(kept)
    found = {name for row in kept for name in row.evaluations}
    benchmarks = [name for name in columns if name in found]
    if not benchmarks:
        return Chosen(kept, columns, None, None, only)
    rank_by = right.selectbox("Rank by", benchmarks, format_func=export.column_label, key="by", bind="query-params")
    groups = {group.key: group for group in order_groups(views.groups(kept)[rank_by])}
    if len(groups) < 2:
        return Chosen(kept, columns, rank_by, None, only)
    first = st.selectbox(
        "Judge and data ranked first",
        list(groups),
        format_func=lambda key: _group(groups[key]),
        help="Scores that differ in judge, data or settings are never ranked together: each group has ranks of its own.",
        key=f"group-{rank_by}",
        bind="query-params",
    )
    return Chosen(kept, columns, rank_by, first, only)


def _view(rows: list[Row]) -> tuple[list[Row], list[str], bool]:
    """(rows with the cells of the chosen judge, the columns to show, whether to hide what cannot be compared)."""
    judges = sorted(
        {c.judge for row in rows for several in row.evaluations.values() for c in several if c.judge_kind not in _OURS}
    )
    judge = st.selectbox(
        "Judge", judges, index=None, placeholder="All judges", format_func=f.plain, key="judge", bind="query-params"
    )
    if judge is not None:
        rows = [_judged_by(row, judge) for row in rows]
    # A second metric that is nowhere but in the headline itself would be the same column twice.
    options = f.order_benchmarks(
        {name for row in rows for name, cell in row.cells.items() if "/" not in name or not cell.headline}
    )
    picked = st.multiselect(
        "Columns", options, format_func=export.column_label, placeholder="Headlines", key="columns", bind="query-params"
    )
    columns = f.order_benchmarks(set(picked)) or [name for name in options if "/" not in name or name in f.BESIDE]
    styled = {name: f"{name}/style_controlled_score" for name in f.STYLED if f"{name}/style_controlled_score" in options}
    help_text = "Arena-Hard as it would be if all answers were of one length and layout."
    if styled and st.toggle("Style control", key="style", help=help_text, bind="query-params"):
        columns = f.order_benchmarks({styled.get(name, name) for name in columns})
    only = st.toggle("Hide what cannot be compared", key="comparable", bind="query-params")
    return rows, columns, only


def _compare(rows: list[Row]) -> None:
    """Two checkpoints ticked here lead to the page that compares them."""
    labels = f.distinct(dict(read(samples.evaluated_checkpoints)))
    options = [row.fingerprint for row in rows if row.fingerprint in labels]
    ticked = st.multiselect(
        "Tick two checkpoints", options, format_func=labels.__getitem__, max_selections=2, key="tick", bind="query-params"
    )
    if len(ticked) == 2:
        query = dict(zip("ab", ticked, strict=True))
        st.page_link("screens/compare.py", label="Compare them", icon=":material/compare_arrows:", query_params=query)


def _table(chosen: Chosen) -> None:
    rows, benchmark = chosen.rows, chosen.rank_by
    if not rows:
        empty("No checkpoint matches", "Search for something else, or choose another run or kind above.")
        return
    if benchmark is None:
        empty(
            "No evaluation yet",
            "These checkpoints have no scores. A run that stopped goes on with the command on the Runs page; this gives some to "
            "any other checkpoint.",
            "harness eval CHECKPOINT --benchmarks human_eval,truthful_qa",
        )
    table = board(rows, benchmark, chosen.group, chosen.columns)
    if chosen.only_comparable:
        hidden = len(table.lines)
        table = comparable(table)
        hidden -= len(table.lines)
        if hidden:
            st.caption(
                f"{f.plural(hidden, 'checkpoint')} hidden: not comparable in {f.words(export.column_label(benchmark or ''))}."
            )
    st.html(markup.leaderboard(_page_of(table), benchmark))
    with st.container(horizontal=True, gap="small"):
        _download("CSV", lambda: export.to_csv(table), "csv", "text/csv")
        _download("Markdown", lambda: export.to_markdown(table), "md", "text/markdown")
        _download("LaTeX", lambda: export.to_latex(table), "tex", "application/x-tex")
        _download("JSON", lambda: json.dumps(export.to_json(table), indent=1, ensure_ascii=False), "json", "application/json")


def _page_of(table: Board) -> Board:
    """The part of a long table that is sent to the browser."""
    total = len(table.lines)
    if total <= PAGE_LINES:
        return table
    starts = list(range(0, total, PAGE_LINES))
    column, _ = st.columns([2, 5])
    start = column.selectbox(
        "Lines",
        starts,
        format_func=lambda start: f"{start + 1} to {start + PAGE_LINES}",
        key="lines",
        bind="query-params",
    )
    return table.slice(start, start + PAGE_LINES)


def _download(label: str, data: Callable[[], str], suffix: str, mime: str) -> None:
    """A button whose file is made when it is asked for."""
    name = f"leaderboard.{suffix}"
    st.download_button(label, data, name, mime, icon=":material/download:", on_click="ignore", key=f"download-{suffix}")


def _curves(runs: list[str]) -> None:
    chosen = st.session_state.get("run")
    candidates = [chosen] if chosen else runs
    for run in candidates[:10]:
        series = read(views.iteration_curves, run)
        if any(len(one.points) > 1 for one in series):
            st.header("Iterations", anchor=False)
            st.html(markup.facts([("Run", run, "score with its 95 % band; dashed: the first policy")]))
            draw_iterations(series)
            return


def _found(row: Row, asked: str) -> bool:
    wanted = asked.strip().casefold()
    return not wanted or any(wanted in text.casefold() for text in (row.name, row.base or "", row.run or "", row.fingerprint))


def _judged_by(row: Row, judge: str) -> Row:
    evaluations = {
        name: kept
        for name, several in row.evaluations.items()
        if (kept := [cell for cell in several if cell.judge == judge or cell.judge_kind in _OURS])
    }
    return replace(row, evaluations=evaluations, cells={name: several[0] for name, several in evaluations.items()})


def _group(group: Group) -> str:
    # This text stands in the URL: it must not change when checkpoints are added. It is how Streamlit finds the choice again:
    # the key, which has all of the judge, tells apart what differs in the judge's prompt or endpoint alone.
    return f"{f.data_version(group.version)}; judge: {f.judge(group)}; settings {group.settings_hash[:8]}; group {group.key[:8]}"


def _kind(kind: str) -> str:
    return {"iteration": "iterations", "sft": "SFT", "third_party": "third-party"}.get(kind, kind)


page()
