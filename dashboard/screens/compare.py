"""Two checkpoints, question by question: is the one better, by how much, and on which questions they part."""

import streamlit as st

from dashboard import format as f
from dashboard import markup
from dashboard.comparison_table import EXPLAINED, comparison_table, signed
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read
from db import samples
from db.values import question_values
from evals.paired import Compared, compare_checkpoints, parent_fingerprint, shared_evaluations

# Questions shown, those that differ most.
FLIPPED = 20


def page() -> None:
    st.title("Compare", anchor=False)
    with expected_errors():
        known = dict(read(samples.evaluated_checkpoints))
        if len(known) < 2:
            reason = "A comparison needs two evaluated checkpoints; a run makes several."
            empty("Nothing to compare yet", reason, "harness train-and-eval quickstart")
            return
        pair = _pick(known)
        if pair is None:
            return
        found = read(compare_checkpoints, *pair)
        st.caption(EXPLAINED)
        st.html(comparison_table(found))
        if not found.comparisons:
            return
        _flipped(found, pair)


def _pick(known: dict[str, str]) -> tuple[str, str] | None:
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


def _flipped(found: Compared, pair: tuple[str, str]) -> None:
    """The questions on which the two part most, with links to both answers."""
    st.header("Where they part", anchor=False)
    benchmarks = [one.benchmark for one in found.comparisons]
    benchmark = st.selectbox("Benchmark", benchmarks, format_func=f.benchmark_label, key="benchmark", bind="query-params")
    evaluations = read(shared_evaluations, *pair, benchmark)
    values = [read(question_values, evaluation) for evaluation in evaluations]
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
    question = st.selectbox("Read both answers to question", apart, format_func=f.plain, key="question", bind="query-params")
    said = [read(samples.answers_to, evaluation, question) for evaluation in evaluations]
    if said[0] and said[0][0].prompt:
        st.html(markup.heading("Prompt"))
        st.code(f.visible(said[0][0].prompt), language=None, wrap_lines=True)
    for column, name, several in zip(st.columns(2), (found.a, found.b), said, strict=True):
        with column:
            for answer in several:
                turn = f", turn {answer.turn}" if answer.turn > 1 else ""
                st.html(markup.heading(f"{name}{turn}", f"{f.count(answer.output_tokens)} tokens"))
                st.code(f.visible(answer.text) or "(empty)", language=None, wrap_lines=True)


def _link(evaluation: int, answer: int, value: float) -> Markup:
    return Markup(f'<a href="samples?evaluation={evaluation}&amp;sample={answer}">{f.decimal(value, 2)}</a>')


page()
