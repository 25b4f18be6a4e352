"""The answers behind a cell, and one of them in full: prompt, answer, what the judge said, what the sandbox saw."""

import hashlib
import json
from collections import Counter
from statistics import fmean
from typing import Any

import streamlit as st

from core.fingerprint import digest
from dashboard import format as f
from dashboard import markup
from dashboard.link import copy_link
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read
from db import samples
from db.models import Judgment
from db.samples import OUTCOMES, Evaluated, Line, Sample

PAGE_LINES = 50
_OUTCOMES = {
    "all": "All",
    "better": "Won or passed",
    "even": "Tied",
    "worse": "Lost or failed the tests",
    "failed": "Without a verdict",
    "cut": "Cut at the token limit",
}


def page() -> None:
    st.title("Samples", anchor=False)
    with expected_errors():
        chosen = _pick()
        if chosen is None:
            return
        st.html(_about(chosen))
        answer = _number("sample")
        if answer is not None:
            with st.container(horizontal=True, gap="small"):
                if st.button("All samples of this evaluation", icon=":material/arrow_back:"):
                    del st.query_params["sample"]
                    st.rerun()
                copy_link("This answer with its verdicts.")
            _one(read(samples.sample, chosen.evaluation_id, answer))
        else:
            _list(chosen)


def _pick() -> Evaluated | None:
    """The evaluation that the page is about: the URL's, else the newest checkpoint's first one."""
    known = dict(read(samples.evaluated_checkpoints))
    if not known:
        empty("No samples yet", "Answers appear here as soon as a benchmark is evaluated.", "harness train-and-eval quickstart")
        return None
    asked = _number("evaluation")
    current = read(samples.evaluated, asked) if asked is not None else None
    left, right = st.columns(2)
    fingerprints = list(known)
    index = fingerprints.index(current.checkpoint_fingerprint) if current else 0
    names = f.distinct(known)
    fingerprint = left.selectbox("Checkpoint", fingerprints, index=index, format_func=names.__getitem__)
    several = read(samples.evaluations, fingerprint)
    places = [
        (one.evaluation_id == asked, current is not None and one.benchmark == current.benchmark, -place)
        for place, one in enumerate(several)
    ]
    labels = _labels(several)
    chosen = right.selectbox(
        "Benchmark and judge", several, index=places.index(max(places)), format_func=lambda one: labels[one.evaluation_id]
    )
    if chosen.evaluation_id != asked:
        # Of the rest of the address the filters are their widgets' own, and Streamlit lets nobody else remove them.
        for name in ("sample", "after"):
            st.query_params.pop(name, None)
        st.query_params["evaluation"] = str(chosen.evaluation_id)
    return chosen


def _about(of: Evaluated) -> str:
    source = of.provenance.get("source")
    facts = [
        ("Checkpoint", of.checkpoint, of.checkpoint_fingerprint[:16]),
        ("Benchmark", f.benchmark_label(of.benchmark), f.data_version(of.version)),
        ("Judge", f.judge(of), f"imported from {source}" if source else ""),
        ("Questions", f.count(of.n_questions), "a sample" if of.settings.get("limit") else "all"),
    ]
    return markup.facts(facts)


def _list(of: Evaluated) -> None:
    categories = sorted(set(read(samples.question_categories, of.evaluation_id).values()))
    # One category, or none, parts nothing.
    widths = [3, 4, 2, 2, *([3] if len(categories) > 1 else [])]
    left, middle, first, second, *last = st.columns(widths, vertical_alignment="bottom")
    # A rating is no win and no loss: those can only be told apart by whether there is one.
    offered = [one for one in OUTCOMES if of.benchmark not in f.RATED or one in ("all", "failed", "cut")]
    bound: dict[str, Any] = {"bind": "query-params", "on_change": _first_page}
    outcome = left.selectbox("Outcome", offered, format_func=_OUTCOMES.__getitem__, key="outcome", **bound)
    search = middle.text_input("Search in questions and answers", key="q", **bound)
    number = {"min_value": 0, "value": None, "step": 1, "placeholder": "any"} | bound
    least = first.number_input("At least, characters", key="least", **number)
    most = second.number_input("At most, characters", key="most", **number)
    category = None
    if last:
        category = last[0].selectbox(
            "Category", categories, index=None, placeholder="All", format_func=f.plain, key="category", **bound
        )
    after = _number("after") or 0
    found = read(samples.lines, of.evaluation_id, outcome, search or "", after, PAGE_LINES + 1, (least, most), category)
    if not found and after:
        empty("No more answers", "The address names a place behind the last answer that matches.")
        if st.button("First page"):
            _first_page()
            st.rerun()
        return
    if not found and of.judge_kind == "published":
        empty("Only the score was published", "There are no answers behind it; its source is on the checkpoint's page.")
        return
    if not found:
        empty("No answer matches", "Choose another outcome or category, or search for something else.")
        return
    columns = [Column("Question"), Column("Verdict", numeric=True), Column("Answer", wide=True)]
    columns += [Column("Characters", numeric=True), Column("Tokens", numeric=True), Column("Ended")]
    st.html(markup.plain_table("Samples", columns, [_line(of, line) for line in found[:PAGE_LINES]]))
    with st.container(horizontal=True, gap="small"):
        if after and st.button("First page"):
            _first_page()
            st.rerun()
        if len(found) > PAGE_LINES and st.button("Next page"):
            st.query_params["after"] = str(found[PAGE_LINES - 1].answer_id)
            st.rerun()


def _first_page() -> None:
    """Another filter has other pages."""
    st.query_params.pop("after", None)


def _line(of: Evaluated, line: Line) -> list[object]:
    place = (
        line.question_id + (f", turn {line.turn}" if line.turn > 1 else "") + (f", sample {line.sample}" if line.sample else "")
    )
    link = Markup(f'<a href="samples?evaluation={of.evaluation_id}&amp;sample={line.answer_id}">{markup.text(place)}</a>')
    verdict = f.decimal(line.value, 2)
    if line.failed:
        verdict = Markup(f'{verdict}<small><span class="warn">{line.failed} of {line.verdicts} failed</span></small>')
    start = " ".join(line.start.split()) + ("…" if line.length > len(line.start) else "")
    return [link, verdict, start, f.count(line.length), f.count(line.output_tokens or None), line.finish_reason or ""]


def _one(found: Sample) -> None:
    answer, of = found.answer, found.evaluated
    known = [judgment.value for judgment in found.judgments if judgment.value is not None]
    verdict = f.decimal(fmean(known), 2) if known else f.ABSENT
    games = " and ".join(f.decimal(judgment.value, 2) for judgment in found.judgments)
    place = f"turn {answer.turn}, sample {answer.sample}" if answer.turn > 1 or answer.sample else ""
    spent = sum(j.micro_dollars for j in found.judgments)
    tokens = sum(j.tokens_in + j.tokens_out for j in found.judgments)
    of_question = ", ".join(part for part in (f.plain(answer.category or ""), place) if part)
    st.html(
        markup.facts(
            [
                ("Question", answer.question_id, of_question),
                ("Verdict", verdict, f"mean of {games}" if len(found.judgments) > 1 else ""),
                ("Tokens", f.count(answer.output_tokens or None), f"prompt {f.count(answer.prompt_tokens or None)}"),
                ("Ended", answer.finish_reason or f.ABSENT, f"seed {answer.seed}" if answer.seed is not None else ""),
                ("Judge's tokens", f.count(tokens), f"{spent / 1e6:.6f} dollars" if spent else ""),
                ("sha256 of the answer", _sha256(answer.text), f"of the prompt {_sha256(answer.prompt)}"),
                ("Evaluation", of.evaluation_key[:16], f"answer set {of.answer_set_key[:16]}"),
            ]
        )
    )
    _text("Prompt, as the engine got it", answer.prompt)
    _text("Answer", answer.text)
    if answer.detail:
        _text("Settings and details of the answer", json.dumps(answer.detail, indent=1, ensure_ascii=False))
    for judgment in found.judgments:
        _judgment(of, judgment, found.shown.get(judgment.shown or "", []))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _judgment(of: Evaluated, judgment: Judgment, shown: list[dict[str, Any]]) -> None:
    """One verdict with what it was derived from."""
    raw: dict[str, Any] = dict(judgment.raw or {})
    order = f"Game {judgment.game}" if judgment.game > 1 or of.benchmark.startswith("arena") else "Verdict"
    note = judgment.error or f"value {f.decimal(judgment.value, 4)}"
    st.html(markup.heading(f"{order}: {f.decimal(judgment.value, 2)}", note))
    if shown:
        said = "\n\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in shown)
        _text("What it was compared with" if of.judge_kind == "reward_model" else "Prompt of the judge", said)
    replies, code = raw.pop("replies", []), raw.pop("code", None)
    for number, reply in enumerate(replies, 1):
        _text(f"Reply {number} of the judge", str(reply.get("text", "")))
        if reply.get("top_logprobs"):
            _text("Its first token's log-probabilities", json.dumps(reply["top_logprobs"], indent=1, ensure_ascii=False))
    if code is not None:
        _text("Code that was run", str(code))
    if raw:
        _text("How the verdict was derived", json.dumps(raw, indent=1, ensure_ascii=False))


def _text(title: str, body: str) -> None:
    """Text of a model or a stranger: shown, never rendered."""
    st.html(markup.heading(title))
    st.code(f.visible(body) or "(empty)", language=None, wrap_lines=True)


def _labels(several: list[Evaluated]) -> dict[int, str]:
    """Evaluation id -> its label, with the settings' hash, then the id, where several would read alike.

    Streamlit finds what was chosen again by its label: of two that are equal, one could never be chosen.
    """
    labels = {one.evaluation_id: _label(one) for one in several}
    for more in (lambda one: f"settings {digest(one.settings)[:8]}", lambda one: f"#{one.evaluation_id}"):
        alike = Counter(labels.values())
        for one in several:
            if alike[labels[one.evaluation_id]] > 1:
                labels[one.evaluation_id] += f"; {more(one)}"
    return labels


def _label(one: Evaluated) -> str:
    sample = f", {one.n_questions} questions" if one.settings.get("limit") else ""
    return f"{f.benchmark_label(one.benchmark)}{sample}; {f.data_version(one.version)}; {f.judge(one)}"


def _number(name: str) -> int | None:
    value = st.query_params.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 19 else None


page()
