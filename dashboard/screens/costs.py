"""What it all cost: machine time, judges' tokens, money; by run, by iteration, by benchmark and judge."""

import streamlit as st

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Column
from dashboard.source import empty, expected_errors, read
from db import costs
from db.costs import JudgeCost, Queued, RunCost, Spent


def page() -> None:
    st.title("Costs", anchor=False)
    with expected_errors():
        runs, judges = read(costs.by_run), read(costs.by_judge)
        if not runs and not judges:
            empty("Nothing spent yet", "Time and money appear here as stages end.", "harness train-and-eval quickstart")
            return
        st.caption(
            "Time is wall-clock of stages, with or without an accelerator; an evaluation stage asks several benchmarks together. "
            "What a run reuses is counted in the run that made it. Money is what a run paid its judges, from the price in the "
            "recipe; without a price it is not known and shown as a dash."
        )
        if runs:
            st.html(_totals(runs, judges))
            st.header("Runs", anchor=False)
            st.html(_runs(runs, judges))
            _queued(read(costs.queued))
            looped = [run for run in runs if len(run.iterations) > 1]
            if looped:
                st.header("Iterations", anchor=False)
                names = [run.run for run in looped]
                column, _ = st.columns([2, 5])
                chosen = column.selectbox("Run", names, format_func=f.plain, key="of", bind="query-params")
                st.html(_iterations(looped[names.index(chosen)]))
                st.caption("The judges' part is what judging these checkpoints cost, whichever run paid for it.")
        if judges:
            st.header("Benchmarks and judges", anchor=False)
            st.html(_judges(judges))


def _totals(runs: list[RunCost], judges: list[JudgeCost]) -> str:
    """All there is: the sums of the tables below."""
    gpu, cpu = sum(run.total.gpu_seconds for run in runs), sum(run.total.cpu_seconds for run in runs)
    rest = _elsewhere(runs, judges)
    tokens = sum(run.total.judge_tokens for run in runs) + rest.judge_tokens
    money = sum(run.total.micro_dollars for run in runs) + rest.micro_dollars
    return markup.facts(
        [
            ("GPU time", hours(gpu), "stages with an accelerator"),
            ("CPU time", hours(cpu), "stages without one"),
            ("Judges' tokens", f.count(tokens or None), "in and out"),
            ("Money", f.dollars(money), "judges"),
        ]
    )


def _elsewhere(runs: list[RunCost], judges: list[JudgeCost]) -> Spent:
    """What judges were paid outside of any run that is here, such as calibrations."""
    tokens = sum(one.tokens for one in judges) - sum(run.total.judge_tokens for run in runs)
    money = sum(one.micro_dollars for one in judges) - sum(run.total.micro_dollars for run in runs)
    return Spent(judge_tokens=max(0.0, tokens), micro_dollars=max(0, money))


def _runs(runs: list[RunCost], judges: list[JudgeCost]) -> str:
    names = ("GPU time", "CPU time", "Judges' tokens", "Money", "Checkpoints", "Time per checkpoint", "Money per checkpoint")
    columns = [Column("Run"), Column("State"), *(Column(name, numeric=True) for name in names)]
    rows: list[list[object]] = []
    for run in runs:
        time, money = run.total.gpu_seconds + run.total.cpu_seconds, run.total.micro_dollars
        each = [hours(time / run.checkpoints), f.dollars(money / run.checkpoints)] if run.checkpoints else [f.ABSENT] * 2
        rows.append([run.run, markup.state(run.status), *_spent(run.total), str(run.checkpoints), *each])
    rest = _elsewhere(runs, judges)
    if rest.judge_tokens or rest.micro_dollars:
        rows.append(["outside of these runs", "", *_spent(rest), "", "", ""])
    return markup.plain_table("Runs", columns, rows)


def _queued(left: list[Queued]) -> None:
    """What running runs have still to do, each stage as dear as the last finished one of its program."""
    if not left:
        return
    st.header("Still to come", anchor=False)
    st.caption(
        "Each stage is taken to cost what the last finished one of its program did, in this run or in the newest of the same "
        "recipe. `harness train-and-eval RECIPE --dry-run` asks the judge's price list before anything is spent."
    )
    columns = [Column("Run"), Column("Program"), *(Column(name, numeric=True) for name in ("Stages", "Time", "Judge"))]
    rows = [
        [one.run, one.program, str(one.stages), _about(hours(one.seconds)), _about(f.dollars(one.micro_dollars or 0))]
        for one in left
    ]
    known = [one.seconds for one in left if one.seconds is not None]
    unknown = len(left) - len(known)
    total = _about(hours(sum(known))) + (f" and {f.plural(unknown, 'program')} not measured yet" if unknown else "")
    st.html(markup.facts([("Time", total, "one stage after the other"), ("Money", _about(f.dollars(_sum(left))), "judges")]))
    st.html(markup.plain_table("Still to come", columns, rows))


def _sum(left: list[Queued]) -> int:
    return sum(one.micro_dollars or 0 for one in left)


def _about(text: str) -> str:
    return text if text == f.ABSENT else f"about {text}"


def _iterations(run: RunCost) -> str:
    columns = [Column("Iteration"), *(Column(name, numeric=True) for name in ("GPU time", "CPU time", "Judges' tokens", "Money"))]
    rows = [[str(t) if t else "before the loop", *_spent(run.iterations[t])] for t in sorted(run.iterations)]
    return markup.plain_table("Iterations", columns, rows)


def _judges(judges: list[JudgeCost]) -> str:
    names = ("Evaluations", "Judge's tokens", "Money", "Per evaluation")
    columns = [Column("Benchmark"), Column("Judge"), *(Column(name, numeric=True) for name in names)]
    rows = []
    for one in judges:
        spent = [f.count(one.tokens or None), f.dollars(one.micro_dollars), f.dollars(one.micro_dollars / one.evaluations)]
        rows.append([f.benchmark_label(one.benchmark), f.judge(one), f.count(one.evaluations), *spent])
    return markup.plain_table("Benchmarks and judges", columns, rows)


def _spent(spent: Spent) -> list[str]:
    return [
        hours(spent.gpu_seconds),
        hours(spent.cpu_seconds),
        f.count(spent.judge_tokens or None),
        f.dollars(spent.micro_dollars),
    ]


def hours(seconds: float | None) -> str:
    return f.duration(seconds) if seconds else f.ABSENT


page()
