"""The registry behind the pages: one read-only engine per process, and what a page shows when there is none."""

import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import streamlit as st
from sqlalchemy import make_url

from core.errors import HarnessError
from core.paths import default_registry_url
from dashboard import format as f
from dashboard import markup
from dashboard.link import copy_link
from db import views
from db.registry import Registry

Result = TypeVar("Result")
STALE_SECONDS = 2.0
"""How much older than the registry a page may be."""
_states: dict[str, tuple[float, str]] = {}


@st.cache_resource(show_spinner=False, on_release=lambda registry: registry.close())
def _open(url: str) -> Registry:
    return Registry.open(url, readonly=True)


class Shared:
    """The newest answer to each of the questions asked last: one computes it, whoever asks meanwhile waits for it.

    Older answers are let go at once: Streamlit looks through all that is alive for garbage after every run of a script.
    """

    def __init__(self, most: int = 256):
        self.most = most
        self._lock = Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def answer(self, question: str, state: Callable[[], str], ask: Callable[[], Any]) -> Any:
        with self._lock:
            known = self._known.setdefault(question, _Known())
            self._known.move_to_end(question)
            while len(self._known) > self.most:
                self._known.popitem(last=False)
        with known.lock:
            # Looked up by those who waited when they come in, or an older state than the answer's would have it asked again.
            now = state()
            if known.state != now:
                known.state, known.answer = None, None
                known.answer = ask()
                known.state = now
            return known.answer


@dataclass
class _Known:
    lock: Any = field(default_factory=Lock)
    state: str | None = None
    answer: Any = None


_shared = Shared()


def read(view: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """What one of `db.views` (a module's function) says of the registry, in a read transaction of its own; not to be changed.

    Sessions share it: the same question about the same state of the registry is asked once, and while others write, the
    state is looked up at most once in STALE_SECONDS.
    """
    url = default_registry_url()

    def ask() -> Result:
        with _open(url).read() as session:
            return view(session, *arguments, **options)

    return _shared.answer(f"{url} {view.__module__}.{view.__qualname__} {arguments!r} {options!r}", lambda: _state(url), ask)


def read_now(view: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """`read` of what also changes while nobody writes, such as the age of a sign of life: asked again every STALE_SECONDS."""
    url = default_registry_url()

    def ask() -> Result:
        with _open(url).read() as session:
            return view(session, *arguments, **options)

    def state() -> str:
        at = time.monotonic()
        return f"{_state(url)} {at // STALE_SECONDS if STALE_SECONDS else at}"

    question = f"now {url} {view.__module__}.{view.__qualname__} {arguments!r} {options!r}"
    return _shared.answer(question, state, ask)


def later(view: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
    """`read` for a file that is made when it is asked for, outside a page's run; the answer, which may be large, is not kept."""
    registry = _open(default_registry_url())

    def ask() -> Result:
        with registry.read() as session:
            return view(session, *arguments)

    return ask


def _state(url: str) -> str:
    """Changes when the registry does (SQLite: size and time of its files), else, on a server, every STALE_SECONDS."""
    now = time.monotonic()
    asked, state = _states.get(url, (-STALE_SECONDS, ""))
    if now - asked >= STALE_SECONDS:
        state, where = str(now), make_url(url)
        if where.get_backend_name() == "sqlite" and where.database:
            files = [os.stat(path) for path in (where.database, f"{where.database}-wal") if os.path.exists(path)]
            state = " ".join(f"{file.st_ino} {file.st_size} {file.st_mtime_ns}" for file in files)
        _states[url] = now, state
    return state


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
    st.code(f.visible(command), language="bash", wrap_lines=True)


def show_json(value: Any) -> None:
    """Recorded settings, which may hold a stranger's names."""
    st.code(f.visible(json.dumps(value, indent=1, ensure_ascii=False)), language="json", wrap_lines=True)


def pick_run() -> str | None:
    """The run that the page is about, the URL's or the newest; None, and an empty state, when there is none."""
    names = [run.name for run in read(views.runs)]
    if not names:
        reason = "A run appears here as soon as it starts; this one needs no GPU and no network."
        empty("No run yet", reason, "harness train-and-eval quickstart")
        return None
    asked = st.query_params.get("run")
    column, beside = st.columns([2, 5], vertical_alignment="bottom")
    # The same widget, with the same meaning of nothing chosen, as on the leaderboard: the URL carries it between pages.
    placeholder = f"{f.plain(names[0])} (newest)"
    chosen = column.selectbox(
        "Run", names, index=None, placeholder=placeholder, format_func=f.plain, key="run", bind="query-params"
    )
    run = chosen or names[0]
    with beside:
        copy_link("This page, of this run.", run=f.plain(run))
    if asked and asked not in {f.plain(name) for name in names}:
        empty("No such run", f"There is no run {asked} in this registry; this is {run}.")
    return run
