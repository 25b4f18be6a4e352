"""Two checkpoints, question by question: is the one better, by how much, and on which questions they part."""

from dataclasses import replace

import streamlit as st

from core.paths import default_registry_url
from dashboard import format as f
from dashboard import length_outcome, markup
from dashboard.comparison_table import (
    EXPLAINED,
    NOTHING_SHARED,
    categories_table,
    comparison_table,
    parts_table,
    signed,
    verdict_scale,
)
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read
from dashboard.text_diff import side_by_side
from db import differences, samples, views
from db.differences import Differs
from db.models import Answer, Judgment
from evals.comparison import Comparison
from evals.headline_values import headline_values
from evals.paired import Compared, compare_categories, compare_checkpoints, parent_fingerprint, shared_evaluations

# Questions shown, those that differ most.
FLIPPED = 20
Pair = tuple[str, str]


def page() -> None:
    st.title("Compare", anchor=False)
    with expected_errors():
        known = dict(read(samples.evaluated_checkpoints))
        if len(known) < 2:
            reason = "A comparison needs two evaluated checkpoints; a run makes several."
            empty("Nothing to compare yet", reason, "harness train-and-eval quickstart")
            return
        labels = f.distinct(known)
        pair = _pick(known, labels)
        if pair is None:
            return
        found = _compared(default_registry_url(), pair, read(samples.evaluation_states, *pair))
        # Two that share a name are told apart in the tables as they are above.
        found = replace(found, a=labels[pair[0]], b=labels[pair[1]])
        if found.comparisons or found.apart:
            st.caption(EXPLAINED)
            st.html(comparison_table(found))
        else:
            empty(*NOTHING_SHARED, "harness eval CHECKPOINT --benchmarks BENCHMARK")
        _settings(found, pair)
        if found.comparisons:
            _questions(found, pair)


# The tests resample every benchmark; choosing a question below must not do it again. What they depend on is in the key.
@st.cache_data(max_entries=500, show_spinner="Comparing")
def _compared(url: str, pair: Pair, states: tuple[tuple[int, str, str], ...]) -> Compared:
    return read(compare_checkpoints, *pair)


@st.cache_data(max_entries=200, show_spinner="Comparing categories")
def _categories(
    url: str, evaluations: tuple[int, int], benchmark: str, states: tuple[tuple[int, str, str], ...]
) -> list[Comparison]:
    return read(compare_categories, evaluations, benchmark)


def _pick(known: dict[str, str], labels: dict[str, str]) -> Pair | None:
    """(fingerprint, fingerprint) from the address, which afterwards holds both; None, and why, where it names no such pair.

    The address decides and the widgets show it: a bound widget would put its label there, which changes its meaning once
    another checkpoint takes the name. A name is understood as long as one checkpoint has it.
    """
    asked = _asked()
    named = {side: _named(name, known, labels) for side, name in asked.items() if name}
    a, b = (several[0] if len(several) == 1 else None for several in (named.get(side, []) for side in ("a", "b")))
    if "a" not in named:
        a = _newest(known, b)
    if "b" not in named and a is not None:
        b = _against(known, a)
    # The parent first: what one most often asks is whether a step of training helped.
    parent = None if a is None else read(parent_fingerprint, a)
    others = sorted((key for key in known if key != a), key=lambda key: key != parent)
    st.session_state["a"], st.session_state["b"] = a, b if b in others else None
    left, right = st.columns(2)
    left.selectbox("Checkpoint", list(known), format_func=labels.__getitem__, key="a", on_change=_chosen, args=("a",))
    right.selectbox("Against", others, format_func=labels.__getitem__, key="b", on_change=_chosen, args=("b",))
    for side, several in named.items():
        if len(several) != 1:
            _not_one(asked[side] or "", len(several))
    found = {side: key for side, key in (("a", a), ("b", b)) if key is not None}
    # Both at once: each change of the address is a step for the browser's way back.
    if any(st.query_params.get(side) != key for side, key in found.items()):
        st.query_params.update(found)
    if a is None or b is None:
        return None
    if a == b:
        empty("Nothing to compare", "Both are the same checkpoint; choose another one above.")
        return None
    return a, b


def _asked() -> dict[str, str | None]:
    """What the reader has just chosen, or else the address says, as "a" and "b"; None where neither says anything."""
    asked = {side: st.query_params.get(side) for side in ("a", "b")}
    side = st.session_state.pop("chosen", None)
    if side:
        asked[side] = st.session_state.get(side)
    # Another first checkpoint has another parent to be compared with.
    return asked | {"b": None} if side == "a" else asked


def _chosen(side: str) -> None:
    st.session_state["chosen"] = side


def _named(asked: str, known: dict[str, str], labels: dict[str, str]) -> list[str]:
    """Fingerprints of the checkpoints that an address may mean: by fingerprint, else by name, or by label, as links give it."""
    if asked in known:
        return [asked]
    return [key for key, name in known.items() if asked in (name, f.plain(name), labels[key])]


def _not_one(asked: str, count: int) -> None:
    if count:
        empty("Several checkpoints have this name", f"{f.count(count)} checkpoints are called {asked}; choose one above.")
    else:
        empty("No such checkpoint", f"There is no evaluated checkpoint {asked}; choose one above.")


def _newest(known: dict[str, str], other: str | None) -> str:
    """The newest checkpoint of ours whose parent is evaluated; without one, the newest, published rows and canaries last."""
    policies = _policies()
    names = set(known.values())
    for key in known:
        # By name first: that needs no query of its own.
        if key != other and policies.get(key) in names and read(parent_fingerprint, key) in known.keys() & policies.keys():
            return key
    return min((key for key in known if key != other), key=lambda key: key not in policies)


def _against(known: dict[str, str], a: str) -> str:
    """A checkpoint's parent; where that is not evaluated, the newest other, published rows and canaries last."""
    parent = read(parent_fingerprint, a)
    if parent in known and parent != a:
        return parent
    policies = _policies()
    return min((key for key in known if key != a), key=lambda key: key not in policies)


def _policies() -> dict[str, str | None]:
    """Fingerprint -> name of the parent, of the checkpoints whose answers are here and come from a model."""
    rows = read(views.leaderboard, benchmarks=[])
    return {row.fingerprint: row.parent for row in rows if row.source != "published" and row.kind not in ("published", "canary")}


def _settings(found: Compared, pair: Pair) -> None:
    """Where the two were made, or evaluated, differently."""
    made = read(differences.made_differently, *pair)
    apart = {name: read(differences.evaluated_differently, *pair, name) for name in found.apart}
    with st.expander(f"Settings that differ ({len(made) + sum(map(len, apart.values()))})"):
        st.html(_differences("How they were made", found, made))
        for benchmark, several in apart.items():
            if several:
                st.html(_differences(f"How {f.benchmark_label(benchmark)} was evaluated", found, several))


def _differences(title: str, found: Compared, several: list[Differs]) -> Markup:
    if not several:
        return markup.heading(title, "no difference is recorded")
    columns = [Column("Key"), Column(found.a, wide=True), Column(found.b, wide=True)]
    table = markup.plain_table(title, columns, [[one.key, one.first, one.second] for one in several])
    return Markup(markup.heading(title) + table)


def _questions(found: Compared, pair: Pair) -> None:
    """One benchmark in full: length against outcome, its parts, the questions on which the two part most."""
    st.header("Question by question", anchor=False)
    benchmarks = f.order_benchmarks({one.benchmark for one in found.comparisons})
    column, _ = st.columns([2, 5])
    benchmark = column.selectbox("Benchmark", benchmarks, format_func=f.benchmark_label, key="benchmark", bind="query-params")
    evaluations = read(shared_evaluations, *pair, benchmark)
    values = [read(headline_values, evaluation, benchmark) for evaluation in evaluations]
    scale = verdict_scale(next(one.unit for one in found.comparisons if one.benchmark == benchmark))
    _lengths(found, evaluations, values, scale)
    categories = _categories(default_registry_url(), evaluations, benchmark, read(samples.evaluation_states, *pair))
    if categories:
        with st.expander("By category"):
            st.caption("Tested within each category; p adjusted over the categories (Holm).")
            st.html(categories_table(categories))
    parts = [read(samples.breakdowns, evaluation) for evaluation in evaluations]
    tested = {"categories", "subjects"} if categories else set()
    for kind in sorted(parts[0].keys() & parts[1].keys() - tested):
        with st.expander(f"By {f.PARTS[kind]}"):
            st.html(parts_table(kind, (found.a, found.b), (parts[0][kind], parts[1][kind])))
    _flipped(found, evaluations, values, scale)


def _lengths(found: Compared, evaluations: tuple[int, int], values: list[dict[str, float]], scale: str) -> None:
    pairs = length_outcome.paired([read(samples.answer_lengths, evaluation) for evaluation in evaluations], values)
    # Answers to likelihood benchmarks have no text.
    if not any(pair.longer for pair in pairs):
        return
    st.subheader("Length against outcome", anchor=False)
    left, right = st.columns([3, 2], gap="medium")
    spec = length_outcome.length_outcome(pairs, found.a, scale)
    left.vega_lite_chart(spec, alt=length_outcome.in_words(pairs, found.a), key="length-outcome")
    right.html(length_outcome.counts(pairs, found.a))


def _flipped(found: Compared, evaluations: tuple[int, int], values: list[dict[str, float]], scale: str) -> None:
    """The questions on which the two part most, with links to both answers, and one of them in full."""
    st.subheader("Where they part", anchor=False)
    shared = sorted(values[0].keys() & values[1].keys(), key=lambda q: (-abs(values[0][q] - values[1][q]), q))
    apart = [question for question in shared if values[0][question] != values[1][question]][:FLIPPED]
    if not apart:
        empty("Nowhere", f"Both have the same verdict on all {f.count(len(shared))} questions.")
        return
    titles = (f"{found.a} ({scale})", f"{found.b} ({scale})", "Difference")
    columns = [Column("Question"), *(Column(title, numeric=True) for title in titles)]
    answers = [read(samples.first_answers, evaluation, apart) for evaluation in evaluations]
    rows = []
    for question in apart:
        first, second = (
            _link(evaluation, places.get(question), known[question])
            for evaluation, places, known in zip(evaluations, answers, values, strict=True)
        )
        rows.append([question, first, second, signed(values[0][question] - values[1][question])])
    st.html(markup.plain_table("Questions that differ most", columns, rows))
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    question = left.selectbox("Read both answers to question", apart, format_func=f.plain, key="question", bind="query-params")
    differ = right.toggle("Mark what differs", value=True, key="diff", bind="query-params")
    _both(found, evaluations, question, differ)


def _both(found: Compared, evaluations: tuple[int, int], question: str, differ: bool) -> None:
    """Both answers side by side, turn by turn, and what the judge said of each."""
    said = [{(one.turn, one.sample): one for one in read(samples.answers_to, evaluation, question)} for evaluation in evaluations]
    places = sorted(said[0].keys() | said[1].keys())
    prompt = next((side[place].prompt for place in places for side in said if place in side and side[place].prompt), "")
    if prompt:
        st.html(markup.heading("Prompt"))
        st.code(f.visible(prompt), language=None, wrap_lines=True)
    for place in places:
        _answers(found, place, (said[0].get(place), said[1].get(place)), differ)
    given = [read(samples.judgments_of, evaluation, question) for evaluation in evaluations]
    if not any(_replies(judgment) for several in given for judgment in several):
        return
    with st.expander("What the judge said"):
        for column, name, several in zip(st.columns(2), (found.a, found.b), given, strict=True):
            with column:
                st.html(markup.heading(name))
                for judgment in several:
                    _judgment(judgment)


def _answers(found: Compared, place: tuple[int, int], answers: tuple[Answer | None, Answer | None], differ: bool) -> None:
    """The two answers of one (turn, sample); None where a side has none there."""
    turn, sample = place
    where = (f", turn {turn}" if turn > 1 else "") + (f", sample {sample}" if sample else "")
    first, second = answers
    marked = None
    if differ and first and second:
        marked = side_by_side(first.text, second.text)
        if marked is None:
            st.caption("These answers are too long for what differs to be marked.")
    for side, (column, name, answer) in enumerate(zip(st.columns(2), (found.a, found.b), answers, strict=True)):
        if answer is None:
            column.html(markup.heading(f"{name}{where}", "no such answer"))
            continue
        column.html(markup.heading(f"{name}{where}", f"{f.count(answer.output_tokens)} tokens"))
        if marked:
            column.html(marked[side])
        else:
            column.code(f.visible(answer.text) or "(empty)", language=None, wrap_lines=True)


def _judgment(judgment: Judgment) -> None:
    turn = f", turn {judgment.turn}" if judgment.turn > 1 else ""
    st.html(markup.heading(f"Game {judgment.game}{turn}: {f.decimal(judgment.value, 2)}", judgment.error or ""))
    for reply in _replies(judgment):
        st.code(f.visible(reply) or "(empty)", language=None, wrap_lines=True)


def _replies(judgment: Judgment) -> list[str]:
    return [str(reply.get("text", "")) for reply in (judgment.raw or {}).get("replies", [])]


def _link(evaluation: int, answer: int | None, value: float) -> Markup:
    """A verdict that leads to its answer, where one is stored."""
    if answer is None:
        return markup.text(f.decimal(value, 2))
    return Markup(f'<a href="samples?evaluation={evaluation}&amp;sample={answer}">{f.decimal(value, 2)}</a>')


page()
