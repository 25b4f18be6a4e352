"""A judge's card: how far it agrees with people, what it leans to, what canaries get from it, what it cost."""

import shlex

import streamlit as st

from dashboard import format as f
from dashboard import judge_tables, markup
from dashboard.source import empty, expected_errors, read, show_json
from db import costs, views
from db.judges import JudgeCard, judge_names, judging_checkpoint


def page() -> None:
    st.title("Judges", anchor=False)
    with expected_errors():
        names = read(judge_names)
        if not names:
            reason = "A judge appears here with its first evaluation or calibration; a published judge's verdicts need no key."
            empty("No judge yet", reason, "harness judge calibrate saved:gpt-4", "harness train-and-eval quickstart")
            return
        st.caption("What to know of a judge before its numbers are believed. Shares are in percent, intervals 95 %.")
        column, _ = st.columns([2, 5])
        # The same name and meaning as the leaderboard's filter: the URL carries the judge between the pages.
        chosen = column.selectbox(
            "Judge",
            names,
            index=None,
            placeholder=f"{f.plain(names[0])} (most used)",
            format_func=f.plain,
            key="judge",
            bind="query-params",
        )
        _card(chosen or names[0])


def _card(name: str) -> None:
    cards = read(views.judge_cards, name)
    judged = [card for card in cards if card.benchmark]
    canaries = read(views.canaries, name)
    spent = [one for one in read(costs.by_judge) if one.judge == name]
    tokens, money = sum(one.tokens for one in spent), sum(one.micro_dollars for one in spent)
    kind = cards[0].kind if cards else ""
    typed = _typed(name, kind)
    st.html(
        markup.facts(
            [
                ("Judge", name, kind.replace("_", " ")),
                ("Evaluations", f.count(sum(card.evaluations for card in judged)), f.plural(len(judged), "benchmark")),
                ("Agreement with people", _agreement(cards), "in the order shown"),
                ("Tokens", f.count(tokens or None), f.dollars(money)),
            ]
        )
    )
    if judged:
        st.page_link(
            "screens/leaderboard.py",
            label="Its rows on the leaderboard",
            icon=":material/leaderboard:",
            query_params={"judge": name},
        )
    st.header("Agreement", anchor=False)
    rows = {row["dataset"]: row for card in cards for row in card.calibrations}
    if rows:
        st.html(judge_tables.calibrations(list(rows.values())))
    else:
        empty("Not calibrated", "How far it agrees with people is not known.", f"harness judge calibrate {typed}")
    biased = [card for card in judged if card.bias]
    if biased:
        st.header("Leanings", anchor=False)
        st.caption(
            "Over its newest evaluations here. Half is fair for the first and for the longer answer; an interval that leaves "
            "it out is marked. Longer answers may be better: read it beside another judge of the same answers."
        )
        st.html(judge_tables.leanings(biased))
    st.header("Canaries", anchor=False)
    if canaries:
        st.caption("Answers that no model wrote. A sound judge gives them next to nothing.")
        st.html(judge_tables.canaries(canaries))
    else:
        benchmark = next((card.benchmark for card in judged if card.benchmark != f.HELD_OUT), "alpaca_eval")
        reason = "Whether constant, imitating or padded answers fool it is not known."
        empty("No canary judged", reason, f"harness judge canaries --benchmark {benchmark} --judge {typed}")
    with st.expander("What identifies it"):
        for card in cards:
            label = f.benchmark_label(card.benchmark) if card.benchmark else "Calibrations only"
            st.html(markup.heading(label))
            show_json(card.config)


def _agreement(cards: list[JudgeCard]) -> str:
    """With the labels of several people; a dash where that was not measured."""
    found = next((r["statistics"].get("agreement") for c in cards for r in c.calibrations if r["dataset"] in views.PEOPLE), None)
    if not found or found["value"] is None:
        return f.ABSENT
    return f"{f.decimal(100 * found['value'], 1)} % of {found['n']}"


def _typed(name: str, kind: str) -> str:
    """The judge as the command line takes it; where the registry does not know how, a word to be replaced."""
    if kind == "openai":
        return shlex.quote(f"openai:{name}")
    checkpoint = read(judging_checkpoint, name)
    return shlex.quote(checkpoint) if checkpoint else "JUDGE"


page()
