"""What wants attention: in the registry, and on the machine that serves this page."""

import streamlit as st

from dashboard import format as f
from dashboard import markup
from dashboard.machine import doctor
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read, read_now, show_command
from db import views
from db.health import registry_findings
from db.models import now

_WORDS = {"ok": ("good", "ok"), "warn": ("warn", "look"), "fail": ("bad", "fails")}


def page() -> None:
    st.title("Health", anchor=False)
    with expected_errors():
        _registry()
    # Apart from the registry: what this machine lacks is of use when the registry cannot be opened, too.
    with expected_errors():
        st.header("This machine", anchor=False)
        when, findings = _doctor()
        st.caption(f"As `harness doctor` found it at {when} UTC, on the machine that serves this page.")
        st.html(_table("This machine", [(one["check"], one["state"], one["found"], one["fix"]) for one in findings]))
        if st.button("Check again", icon=":material/refresh:"):
            _doctor.clear()
            st.rerun()


def _registry() -> None:
    found = read_now(registry_findings)
    if not read(views.runs) and not read(views.leaderboard, benchmarks=[]):
        empty("The registry is empty", "There is nothing in it to look after yet.", "harness train-and-eval quickstart")
        return
    st.header("This registry", anchor=False)
    st.html(_table("This registry", [(one.check, one.state, one.found, one.fix) for one in found]))
    for one in found:
        if one.fix.startswith("harness "):
            show_command(one.fix)


# Kept for all visitors: a page that anyone may open must not start a process at each visit.
@st.cache_data(ttl=300, show_spinner="Looking at this machine")
def _doctor() -> tuple[str, list[dict[str, str]]]:
    return f.moment(now()), doctor()


def _table(caption: str, rows: list[tuple[str, str, str, str]]) -> Markup:
    columns = [Column("Check"), Column("State"), Column("Found", wide=True), Column("What to do", wide=True)]
    # What fails first, then what to look at; otherwise in the order of the checks.
    ordered = sorted(rows, key=lambda row: ("fail", "warn", "ok").index(row[1]) if row[1] in _WORDS else 0)
    return markup.plain_table(caption, columns, [[check, _state(state), found, fix] for check, state, found, fix in ordered])


def _state(state: str) -> Markup:
    colour, word = _WORDS.get(state, ("bad", state))
    return Markup(f'<span class="{colour}">{markup.text(word)}</span>')


page()
