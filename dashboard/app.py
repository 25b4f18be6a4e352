"""Entry of the dashboard; started by `dashboard.serve`, or by hand: `streamlit run dashboard/app.py`."""

import gc

import streamlit as st

from dashboard.sign_in import may_enter
from dashboard.theme import STYLE


@st.cache_resource(show_spinner=False)
def settle(page: str) -> None:
    """Once per page of the process: what its first run imported lives as long as the server does, so set it apart.

    Streamlit collects garbage after every run of a script, which takes 70 ms over all modules, half the time of a page.
    """
    gc.collect()
    gc.freeze()


st.set_page_config(page_title="RLHF leaderboard", page_icon="📊", layout="wide", menu_items={})
st.html(STYLE)
# The files are not in a folder `pages`: until the first session has run this file, Streamlit would take such a folder for
# its older kind of multipage app and answer a link to a page without ever coming here.
page = st.navigation(
    [
        st.Page("screens/leaderboard.py", title="Leaderboard", icon=":material/leaderboard:", default=True),
        st.Page("screens/iterations.py", title="Iterations", icon=":material/show_chart:"),
        st.Page("screens/compare.py", title="Compare", icon=":material/compare_arrows:"),
        st.Page("screens/checkpoint.py", title="Checkpoint", icon=":material/badge:"),
        st.Page("screens/samples.py", title="Samples", icon=":material/quick_reference_all:"),
        st.Page("screens/judges.py", title="Judges", icon=":material/balance:"),
        st.Page("screens/runs.py", title="Runs", icon=":material/list_alt:"),
        st.Page("screens/costs.py", title="Costs", icon=":material/payments:"),
        st.Page("screens/health.py", title="Health", icon=":material/monitor_heart:"),
    ],
    position="top",
)
if may_enter():
    page.run()
    settle(page.title)
