"""Two checkpoints, question by question: is the one better, by how much, and on which questions they part."""

import streamlit as st

from core.paths import default_registry_url
from dashboard import format as f
from dashboard import length_outcome, markup
from dashboard.comparison_table import EXPLAINED, categories_table, comparison_table, parts_table, signed
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read
from dashboard.text_diff import side_by_side
from db import differences, samples
from db.differences import Differs
from db.models import Judgment
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
        pair = _pick(known)
        found = _compared(default_registry_url(), pair, read(samples.evaluation_states, *pair))
        st.caption(EXPLAINED)
        st.html(comparison_table(found))
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


def _pick(known: dict[str, str]) -> Pair:
    """(fingerprint, fingerprint) from the URL: by default the newest checkpoint and its parent."""
    fingerprints, labels = list(known), f.distinct(known)
    left, right = st.columns(2)
    a = left.selectbox("Checkpoint", fingerprints, format_func=labels.__getitem__, key="a", bind="query-params")
    others = [key for key in fingerprints if key != a]
    parent = read(parent_fingerprint, a)
    # The parent first: what one most often asks is whether a step of training helped.
    others.sort(key=lambda key: key != parent)
    b = right.selectbox("Against", others, format_func=labels.__getitem__, key="b", bind="query-params")
    return a, b


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
    _lengths(found, evaluations, values)
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
    _flipped(found, evaluations, values)


def _lengths(found: Compared, evaluations: tuple[int, int], values: list[dict[str, float]]) -> None:
    pairs = length_outcome.paired([read(samples.answer_lengths, evaluation) for evaluation in evaluations], values)
    # Answers to likelihood benchmarks have no text.
    if not any(pair.longer for pair in pairs):
        return
    st.subheader("Length against outcome", anchor=False)
    left, right = st.columns([3, 2], gap="medium")
    spec = length_outcome.length_outcome(pairs, found.a)
    left.vega_lite_chart(spec, alt=length_outcome.in_words(pairs, found.a), key="length-outcome")
    right.html(length_outcome.counts(pairs, found.a))


def _flipped(found: Compared, evaluations: tuple[int, int], values: list[dict[str, float]]) -> None:
    """The questions on which the two part most, with links to both answers, and one of them in full."""
    st.subheader("Where they part", anchor=False)
    shared = sorted(values[0].keys() & values[1].keys(), key=lambda q: (-abs(values[0][q] - values[1][q]), q))
    apart = [question for question in shared if values[0][question] != values[1][question]][:FLIPPED]
    if not apart:
        empty("Nowhere", f"Both have the same verdict on all {f.count(len(shared))} questions.")
        return
    columns = [Column("Question"), *(Column(name, numeric=True) for name in (found.a, found.b, "Difference"))]
    answers = [read(samples.first_answers, evaluation, apart) for evaluation in evaluations]
    rows = []
    for question in apart:
        first, second = (
            _link(evaluation, places[question], known[question])
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
    said = [read(samples.answers_to, evaluation, question) for evaluation in evaluations]
    if said[0] and said[0][0].prompt:
        st.html(markup.heading("Prompt"))
        st.code(f.visible(said[0][0].prompt), language=None, wrap_lines=True)
    for first, second in zip(*said, strict=False):
        marked = side_by_side(first.text, second.text) if differ else None
        for place, (column, name, answer) in enumerate(zip(st.columns(2), (found.a, found.b), (first, second), strict=True)):
            turn = f", turn {answer.turn}" if answer.turn > 1 else ""
            column.html(markup.heading(f"{name}{turn}", f"{f.count(answer.output_tokens)} tokens"))
            if marked:
                column.html(marked[place])
            else:
                column.code(f.visible(answer.text) or "(empty)", language=None, wrap_lines=True)
    given = [read(samples.judgments_of, evaluation, question) for evaluation in evaluations]
    if not any(_replies(judgment) for several in given for judgment in several):
        return
    with st.expander("What the judge said"):
        for column, name, several in zip(st.columns(2), (found.a, found.b), given, strict=True):
            with column:
                st.html(markup.heading(name))
                for judgment in several:
                    _judgment(judgment)


def _judgment(judgment: Judgment) -> None:
    turn = f", turn {judgment.turn}" if judgment.turn > 1 else ""
    st.html(markup.heading(f"Game {judgment.game}{turn}: {f.decimal(judgment.value, 2)}", judgment.error or ""))
    for reply in _replies(judgment):
        st.code(f.visible(reply) or "(empty)", language=None, wrap_lines=True)


def _replies(judgment: Judgment) -> list[str]:
    return [str(reply.get("text", "")) for reply in (judgment.raw or {}).get("replies", [])]


def _link(evaluation: int, answer: int, value: float) -> Markup:
    return Markup(f'<a href="samples?evaluation={evaluation}&amp;sample={answer}">{f.decimal(value, 2)}</a>')


page()
