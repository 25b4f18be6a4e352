"""A checkpoint's card: lineage, training, every score with the command that makes it again."""

import json
import shlex

import streamlit as st

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Column, Markup
from dashboard.source import empty, expected_errors, read
from db import samples
from db.card import Card, Measured, card
from db.leaderboard import Cell


def page() -> None:
    st.title("Checkpoint", anchor=False)
    with expected_errors():
        known = dict(read(samples.evaluated_checkpoints))
        if not known:
            empty("No checkpoint yet", "A checkpoint has a card once it is evaluated.", "harness train-and-eval quickstart")
            return
        # By fingerprint in the URL: a bound widget would put its label there, and two checkpoints may share a name.
        asked = st.query_params.get("fingerprint")
        listed = list(known) if asked in known or asked is None else [asked, *known]
        labels = f.distinct(known)
        index = listed.index(asked) if asked else 0
        chosen = st.selectbox("Checkpoint", listed, index=index, format_func=lambda key: labels.get(key, key[:16]))
        if chosen != asked:
            st.query_params["fingerprint"] = chosen
        found = read(card, chosen)
        st.html(_facts(found))
        st.header("Lineage", anchor=False)
        st.html(_lineage(found))
        st.header("Scores", anchor=False)
        order = f.order_benchmarks({one.cells[0].benchmark for one in found.measured if one.cells})
        for one in sorted((one for one in found.measured if one.cells), key=lambda one: order.index(one.cells[0].benchmark)):
            _measured(found, one)
        _provenance(found)


def _facts(found: Card) -> str:
    row = found.checkpoint
    made = f"recipe {found.recipe}" if found.recipe else ""
    return markup.facts(
        [
            ("Kind", row.kind.replace("_", " "), f"iteration {row.iteration}" if row.iteration is not None else row.source),
            ("Run", found.run or f.ABSENT, made),
            ("Registered", f.moment(row.created_at), "UTC"),
            ("Fingerprint", row.fingerprint[:16], row.fingerprint),
        ]
    )


def _lineage(found: Card) -> str:
    columns = [Column("Checkpoint"), Column("Kind"), Column("Reference policy"), Column("Fingerprint")]
    rows: list[list[object]] = []
    for one in found.ancestors:
        kind = f"iteration {one.iteration}" if one.kind == "iteration" else one.kind.replace("_", " ")
        link = Markup(f'<a href="checkpoint?fingerprint={markup.text(one.fingerprint)}">{markup.text(one.name)}</a>')
        rows.append([link, kind, one.reference or f.ABSENT, one.fingerprint[:16]])
    return markup.plain_table("Lineage, from this checkpoint back to its base", columns, rows)


def _measured(found: Card, one: Measured) -> None:
    cells = sorted(one.cells, key=lambda cell: (not cell.headline, cell.metric))
    head = cells[0]
    source = f"; imported from {one.provenance['source']}" if one.provenance.get("source") else ""
    note = f"judge: {f.judge(head)}; data: {f.data_version(head.version)}; {head.n_questions} questions{source}"
    st.html(markup.heading(f.benchmark_label(head.benchmark), note))
    columns = [Column("Metric"), Column("Value", numeric=True), Column("n", numeric=True), Column("Failed", numeric=True)]
    columns.append(Column("How", wide=True))
    st.html(markup.plain_table(head.benchmark, columns, [_cell(cell) for cell in cells]))
    with st.expander("Evidence, and the commands that make and export it"):
        st.html(markup.root(f'<p><a href="samples?evaluation={one.evaluation_id}">All answers and verdicts</a></p>'))
        for command in commands(found, one, head):
            st.code(command, language="bash")
        identity = {"settings": one.settings, "judge": one.judge_config} | ({"source": one.provenance} if one.provenance else {})
        st.code(json.dumps(identity, indent=1, ensure_ascii=False), language="json", wrap_lines=True)


def _cell(cell: Cell) -> list[object]:
    value = "withheld" if cell.value is None else f.number(cell.benchmark, cell.value)
    shown = Markup(f'<span class="v">{markup.text(value)}</span><span class="i">{markup.text(f.interval(cell))}</span>')
    return [f.metric_label(cell.benchmark, cell.metric), shown, str(cell.n), str(cell.n_failed or ""), cell.method]


def commands(found: Card, one: Measured, head: Cell) -> list[str]:
    """What to type to get this evaluation again, and to write it in the reference tool's files."""
    row = found.checkpoint
    quoted = shlex.quote(row.name)
    export = f"harness export {quoted} --benchmark {head.benchmark}"
    if one.provenance or row.source == "published":
        return [export] if row.source != "published" else []
    parts = ["harness eval", shlex.quote(row.path or row.name), "--benchmarks", head.benchmark]
    variant = head.version.split("@")[0].removesuffix("+stand-in")
    parts += ["--variant", shlex.quote(variant)] if variant != "official" else []
    parts += ["--limit", str(one.settings["limit"])] if one.settings.get("limit") else []
    parts += ["--engine", one.settings["engine"]] if one.settings.get("engine") not in (None, "vllm") else []
    judge = {"openai": f"openai:{head.judge}"}.get(head.judge_kind)
    parts += ["--judge", shlex.quote(judge)] if judge else []
    # Held-out prompts are the run's own: only the run itself asks them again.
    return [export] if head.benchmark == "held_out_reward" else [" ".join(parts), export]


def _provenance(found: Card) -> None:
    provenance = found.checkpoint.provenance
    if provenance:
        st.header("How it was made", anchor=False)
        st.code(json.dumps(provenance, indent=1, ensure_ascii=False), language="json", wrap_lines=True)


page()
