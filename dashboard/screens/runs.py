"""The runs and the stages of one of them; what moves refreshes itself."""

import streamlit as st

from dashboard import format as f
from dashboard import markup
from dashboard.log_tail import tail
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, pick_run, read_now
from db import views
from db.resume import resume_command
from db.throughput import Computing, computing
from db.views import RunStatus, RunSummary, StageStatus

REFRESH_SECONDS = 2.0
# A live stage reports at least every few seconds; after so long without a sign its process is probably gone.
SILENT_SECONDS = 60.0


def page() -> None:
    st.title("Runs", anchor=False)
    with expected_errors():
        run = pick_run()
        if run is None:
            return
        running = read_now(views.run_status, run).summary.status == "running"
        st.fragment(_run, run_every=REFRESH_SECONDS if running else None)(run, running)
        others = read_now(views.runs)
        if len(others) > 1:
            st.header("All runs", anchor=False)
            st.html(_runs(others))


def _run(run: str, was_running: bool) -> None:
    with expected_errors():
        status = read_now(views.run_status, run)
        if was_running and status.summary.status != "running":
            st.rerun()  # the whole page, without the timer
        st.html(_summary(status))
        st.html(_stages(status.stages))
        for stage in status.stages:
            if stage.error:
                _error(f"{stage.name} failed", stage.error, stage.log)
        if status.summary.error and not any(stage.error for stage in status.stages):
            _error("The run failed", status.summary.error, None)
        if status.summary.status in ("failed", "stopped"):
            _can_go_on(status)
        _log(status)


def _can_go_on(status: RunStatus) -> None:
    typed = resume_command(status.summary.name, status.summary.recipe_name, status.recipe, status.environment)
    does = "this resumes the rest" if typed else "the command that began it, typed again, resumes the rest"
    empty("It can go on", f"What is verified done is kept; {does}.", *([typed] if typed else []))


def _log(status: RunStatus) -> None:
    """The end of one stage's log; by default of the one that runs or failed."""
    logged = {stage.name: stage for stage in status.stages if stage.log}
    if not logged:
        return
    st.header("Log", anchor=False)
    live = [name for name, stage in logged.items() if stage.status in ("running", "failed")]
    default = (live or list(logged))[-1]
    column, _ = st.columns([2, 5])
    placeholder = f"{f.plain(default)} (newest)"
    chosen = column.selectbox(
        "Stage", list(logged), index=None, placeholder=placeholder, format_func=f.plain, key="log", bind="query-params"
    )
    stage = logged.get(chosen or default, logged[default])
    written = tail(stage.log)
    if written is None:
        here = "It is not in this machine's runs folder"
        st.html(markup.heading(stage.name, f"{here}: {stage.log}" + (f", on {status.host}" if status.host else "")))
        return
    st.html(markup.heading(stage.name, f"the end of {stage.log}"))
    st.code(f.visible(written) or "(empty)", language=None, wrap_lines=True)


def _summary(status: RunStatus) -> str:
    summary = status.summary
    beat = f"last sign of life {f.duration(summary.heartbeat_age)} ago" if summary.heartbeat_age is not None else ""
    ended = f"ended {f.moment(summary.finished_at)} UTC" if summary.finished_at else ""
    machine = status.environment.get("machine", "")
    return markup.facts(
        [
            ("State", summary.status, beat if summary.status == "running" else ended),
            ("Stages", f"{summary.stages_done} of {summary.stages}", "done or reused"),
            ("Iterations", str(summary.iterations), ""),
            ("Time in stages", f.duration(summary.seconds), f"began {f.moment(summary.created_at)} UTC"),
            ("Machine", status.host or f.ABSENT, str(machine)),
            *_judging(status),
        ]
    )


def _judging(status: RunStatus) -> list[tuple[str, str, str]]:
    """Tokens that the judge's endpoint takes and gives each second, and the share of the limit that they are."""
    now = status.judging
    if now is None:
        return []
    shares = [
        f"{f.decimal(100 * used / limit, 0)} % of {f.count(limit)} {unit} a minute"
        for used, limit, unit in (
            (now.tokens_per_minute, now.token_limit, "tokens"),
            (now.requests_per_minute, now.request_limit, "requests"),
        )
        if limit
    ]
    rate = f"{f.count(now.tokens_per_minute / 60)} tokens/s"
    return [
        ("Judge's endpoint", rate, "; ".join(shares) or f"{f.count(now.requests_per_minute)} requests a minute, no limit set")
    ]


def _stages(stages: list[StageStatus]) -> str:
    columns = [Column("Stage"), Column("State"), Column("Progress")]
    columns += _numeric("Rate", "Left", "Tokens/s", "Attempts", "Time", "Peak memory")
    rows = [_stage(stage) for stage in stages]
    # Rate and time left belong to a running stage: without one their columns would stand empty.
    used = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    return markup.plain_table("Stages", [columns[i] for i in used], [[row[i] for i in used] for row in rows])


def _stage(stage: StageStatus) -> list[object]:
    state = markup.state(stage.status)
    if stage.heartbeat_age is not None:
        late = stage.heartbeat_age > SILENT_SECONDS
        heard = f"silent for {f.duration(stage.heartbeat_age)}" if late else f"heard {f.duration(stage.heartbeat_age)} ago"
        state = Markup(f'{state}<small><span class="{"warn" if late else "absent"}">{markup.text(heard)}</span></small>')
    rate = f.rate(stage.rate, stage.unit or "") if stage.rate else ""
    return [
        stage.name,
        state,
        markup.progress(stage.done, stage.total, stage.unit),
        rate,
        f.duration(stage.eta_seconds) if stage.eta_seconds is not None else "",
        _speed(computing(stage.metrics)),
        str(stage.attempts) if stage.attempts else "",
        f.duration(stage.seconds) if stage.seconds is not None else "",
        f.size(stage.peak_rss_bytes) if stage.peak_rss_bytes is not None else "",
    ]


def _speed(found: Computing | None) -> object:
    """Tokens a second, and below them the share of what the hardware can do at most."""
    if found is None:
        return ""
    share = "" if found.limit_share is None else f"{100 * found.limit_share:.1f} % of {found.limit}"
    return Markup(f"{f.count(found.tokens_per_second)}{f'<small>{markup.text(share)}</small>' if share else ''}")


def _error(title: str, error: str, log: str | None) -> None:
    """An error as text: it may quote what a model wrote."""
    with st.container(border=True):
        st.html(markup.heading(title, f"log: {log}" if log else ""))
        st.code(f.visible(error), language=None, wrap_lines=True)


def _runs(summaries: list[RunSummary]) -> str:
    columns = [Column("Run"), Column("State"), Column("Recipe"), *_numeric("Stages", "Iterations", "Time in stages")]
    columns += [Column("Best checkpoint"), *_numeric("Began (UTC)")]
    rows = []
    for one in summaries:
        done = f"{one.stages_done} / {one.stages}"
        best = one.best_checkpoint or f.ABSENT
        counts = [done, str(one.iterations), f.duration(one.seconds), best, f.moment(one.created_at)]
        rows.append([one.name, markup.state(one.status), one.recipe_name, *counts])
    return markup.plain_table("All runs", columns, rows)


def _numeric(*names: str) -> list[Column]:
    return [Column(name, numeric=True) for name in names]


page()
