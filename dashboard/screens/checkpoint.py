"""A checkpoint's card: lineage, training, every score with the command that makes it again."""

import json
import shlex

import streamlit as st

from dashboard import export, markup
from dashboard import format as f
from dashboard.data_tables import data_card
from dashboard.markup import Column, Markup
from dashboard.reproduce import evaluation_options
from dashboard.source import empty, expected_errors, later, read, show_command, show_json
from db import samples
from db.card import Card, Measured, card
from db.differences import flat
from db.leaderboard import Cell

PLACE = "CHECKPOINT"
"""In a command for weights whose folder the registry does not know: whoever types it puts the folder there."""


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
        measured = sorted((one for one in found.measured if one.cells), key=lambda one: order.index(one.cells[0].benchmark))
        st.html(_scores(measured))
        for one in measured:
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


def _scores(measured: list[Measured]) -> Markup:
    """Each evaluation's headline, with the way to its answers."""
    columns = [Column("Benchmark"), Column("Score", numeric=True), Column("Change", numeric=True)]
    columns += [Column("Questions", numeric=True), Column("Judge"), Column("Data", wide=True)]
    rows: list[list[object]] = []
    for one in measured:
        head = _head(one)
        link = f'<a href="samples?evaluation={one.evaluation_id}">{markup.text(_value(head))}</a>'
        score = Markup(f'<b>{link}</b><span class="i">{markup.text(f.interval(head))}</span>')
        failed = f"<small>{markup.text(f'{head.n_failed} failed')}</small>" if head.n_failed else ""
        metric = markup.text(f.metric_label(head.benchmark, head.metric))
        name = Markup(f"{markup.text(f.benchmark_label(head.benchmark))}<small>{metric}</small>")
        n = Markup(f"{f.count(head.n_questions)}{failed}")
        rows.append([name, score, f.change(head), n, f.judge(head), f.data_version(head.version)])
    return markup.plain_table("Scores", columns, rows)


def _measured(found: Card, one: Measured) -> None:
    """Every metric of one evaluation, its identity, and the commands that make and export it."""
    cells = sorted(one.cells, key=lambda cell: (not cell.headline, cell.metric))
    head = cells[0]
    source = f"; imported from {one.provenance['source']}" if one.provenance.get("source") else ""
    columns = [Column("Metric"), Column("Value", numeric=True), Column("n", numeric=True), Column("Failed", numeric=True)]
    columns.append(Column("How", wide=True))
    with st.expander(f"{f.words(f.benchmark_label(head.benchmark))}: every metric, and the commands that make and export it"):
        st.html(
            markup.heading(f.benchmark_label(head.benchmark), f"judge: {f.judge(head)}; {head.n_questions} questions{source}")
        )
        st.html(markup.plain_table(head.benchmark, columns, [_cell(cell) for cell in cells]))
        for command in commands(found, one, head):
            show_command(command)
        if found.checkpoint.source != "published":
            _answers(found, one, head)
        identity = {"settings": one.settings, "judge": one.judge_config} | ({"source": one.provenance} if one.provenance else {})
        show_json(identity)


def _answers(found: Card, one: Measured, head: Cell) -> None:
    """A button whose file is made when it is asked for."""
    asked = later(samples.everything, one.evaluation_id)
    st.download_button(
        "Answers and verdicts, JSONL",
        lambda: "".join(json.dumps(row) + "\n" for row in asked()),
        f"{export.file_part(head.benchmark)}-{found.checkpoint.fingerprint[:16]}.jsonl",
        "application/jsonl",
        icon=":material/download:",
        on_click="ignore",
        key=f"answers-{one.evaluation_id}",
    )


def _head(one: Measured) -> Cell:
    return min(one.cells, key=lambda cell: (not cell.headline, cell.metric))


def _value(cell: Cell) -> str:
    if cell.value is None:
        return "withheld"
    return f.count(cell.value) if cell.method == "count" else f.number(cell.benchmark, cell.value)


def _cell(cell: Cell) -> list[object]:
    shown = Markup(f'<b>{markup.text(_value(cell))}</b><span class="i">{markup.text(f.interval(cell))}</span>')
    return [f.metric_label(cell.benchmark, cell.metric), shown, str(cell.n), str(cell.n_failed or ""), cell.method]


def commands(found: Card, one: Measured, head: Cell) -> list[str]:
    """What to type to get this evaluation again, and to write it in the reference tool's files."""
    row = found.checkpoint
    judges = {other.cells[0].judge for other in found.measured if other.cells and other.cells[0].benchmark == head.benchmark}
    told = ["--judge", head.judge] if len(judges) > 1 else []
    export = shlex.join(["harness", "export", found.called, "--benchmark", head.benchmark, *told])
    if one.provenance or row.source == "published":
        return [export] if row.source != "published" else []
    asked = [row.path or PLACE, "--benchmarks", head.benchmark, *evaluation_options(one, found.recipe_keys.get("seed"))]
    # Held-out prompts are the run's own: only the run itself asks them again.
    return [export] if head.benchmark == "held_out_reward" else [shlex.join(["harness", "eval", *asked]), export]


def _provenance(found: Card) -> None:
    """What it learned from, with which settings, on what; and what to type to publish it."""
    provenance = found.checkpoint.provenance
    if found.recipe_keys.get("data") or found.counts:
        st.header("Data", anchor=False)
        for part in _sources(found):
            st.html(part)
        if found.counts.get("card"):
            with st.expander("The data set's card: every row that was dropped, and why"):
                st.html(data_card(found.counts["card"]))
    if provenance:
        st.header("How it was made", anchor=False)
        made = provenance.get("program")
        machine = provenance.get("environment", {}).get("machine", "a machine")
        st.html(markup.heading(f"{made} on {machine}" if made else "Recorded when it was registered"))
        for title in ("settings", "metrics", "inputs", "environment"):
            if provenance.get(title):
                with st.expander(title.capitalize()):
                    rows = [[key, "none" if value is None else str(value)] for key, value in flat(provenance[title])]
                    st.html(markup.plain_table(title.capitalize(), [Column("Key"), Column("Value", wide=True)], rows))
        if provenance.get("chat_template"):
            with st.expander("Chat template"):
                st.code(f.visible(provenance["chat_template"]), language=None, wrap_lines=True)
        if found.recipe_keys:
            with st.expander("Recipe of the run"):
                show_json(found.recipe_keys)
        with st.expander("All that is recorded"):
            show_json(provenance)
    st.header("Publish", anchor=False)
    for command in _publish(found):
        show_command(command)
    name = f"{export.file_part(found.checkpoint.name)}-{found.checkpoint.fingerprint[:16]}.json"
    st.download_button(
        "This card, JSON",
        lambda: json.dumps(export.card_json(found), indent=1),
        name,
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        key="card",
    )


def _sources(found: Card) -> list[Markup]:
    """The recipe's sources, what was kept of them, and an iteration's pairs."""
    parts = []
    sources = (found.recipe_keys.get("data") or {}).get("sources") or []
    if sources:
        columns = [Column("Source"), Column("For"), Column("At most", numeric=True)]
        rows = [
            [str(one.get("name")), str(one.get("use")), f.count(one["limit"]) if one.get("limit") else "all"] for one in sources
        ]
        parts.append(markup.plain_table("Sources of the run's data", columns, rows))
    kept = [(key.replace("_", " ").capitalize(), f.count(n), "") for key, n in found.counts.items() if isinstance(n, int | float)]
    if found.pairs is not None:
        dropped = sum(found.pairs.dropped.values())
        kept.append(
            ("Preference pairs", f.count(found.pairs.n_pairs), f"of {f.count(found.pairs.n_prompts)} prompts; {dropped} dropped")
        )
    if kept:
        parts.append(markup.facts(kept))
    return parts


def _publish(found: Card) -> list[str]:
    row = found.checkpoint
    if row.source == "published" or row.kind == "canary":
        return []
    typed = [f"harness export model {shlex.quote(found.called)} --to out/model"]
    if found.pairs is not None and found.run:
        typed.append(f"harness export dataset {shlex.quote(found.run)} --iteration {row.iteration} --to out/pairs")
    return typed


page()
