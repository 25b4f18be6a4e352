"""The registry behind the pages: one read-only engine per process, and what a page shows when there is none."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import streamlit as st

from core.errors import HarnessError
from core.paths import default_registry_url
from dashboard import format as f
from dashboard import markup
from db import views
from db.registry import Registry

Result = TypeVar("Result")


@st.cache_resource(show_spinner=False, on_release=lambda registry: registry.close())
def _open(url: str) -> Registry:
    return Registry.open(url, readonly=True)


def read(view: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call one of `db.views` on the registry in a read transaction of its own."""
    with _open(default_registry_url()).read() as session:
        return view(session, *arguments, **options)


@contextmanager
def expected_errors() -> Iterator[None]:
    """Show an expected failure as one sentence, as text, in place of the rest of the page; its commands can be copied."""
    try:
        yield
    except HarnessError as error:
        commands = re.findall(r"`(harness [^`]+)`", str(error))
        empty("This cannot be shown", str(error).replace("`", ""), *commands)


def empty(title: str, reason: str, *commands: str) -> None:
    """An empty state: what is missing, and the commands that fill it."""
    with st.container(border=True):
        st.html(markup.heading(title, reason))
        for command in commands:
            show_command(command)


def show_command(command: str) -> None:
    """A command to copy. A name in it that could turn the reading direction would make it say something else than it does."""
    st.code(f.visible(command), language="bash")


def show_json(value: Any) -> None:
    """Recorded settings, which may hold a stranger's names."""
    st.code(f.visible(json.dumps(value, indent=1, ensure_ascii=False)), language="json", wrap_lines=True)


def pick_run() -> str | None:
    """The run that the page is about, newest by default, kept in the URL; None, and an empty state, when there is none."""
    names = [run.name for run in read(views.runs)]
    if not names:
        reason = "A run appears here as soon as it starts; this one needs no GPU and no network."
        empty("No run yet", reason, "harness train-and-eval quickstart")
        return None
    column, _ = st.columns([2, 5])
    # The same widget, with the same meaning of nothing chosen, as on the leaderboard: the URL carries it between pages.
    placeholder = f"{f.plain(names[0])} (newest)"
    chosen = column.selectbox(
        "Run", names, index=None, placeholder=placeholder, format_func=f.plain, key="run", bind="query-params"
    )
    return chosen or names[0]
