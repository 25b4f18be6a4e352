"""Does the longer answer win? Differences in length against differences in verdict, question by question. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dashboard import format as f
from dashboard import markup
from dashboard.charts import GREY, Spec, chart, field
from dashboard.markup import Column, Markup

POINTS = 600
"""Questions drawn; of more, every k-th by length."""


@dataclass(frozen=True)
class Pair:
    """One question that both answered."""

    question: str
    longer: float
    """Characters by which the first's answer is longer; negative where it is shorter."""
    better: float
    """By how much the first's verdict is better, in the verdicts' own unit."""


def paired(lengths: Sequence[Mapping[str, float]], values: Sequence[Mapping[str, float]]) -> list[Pair]:
    """Questions of which both sides have a length and a verdict, from the first's shortest to its longest."""
    shared = values[0].keys() & values[1].keys() & lengths[0].keys() & lengths[1].keys()
    pairs = [Pair(q, lengths[0][q] - lengths[1][q], values[0][q] - values[1][q]) for q in shared]
    return sorted(pairs, key=lambda pair: (pair.longer, pair.question))


def length_outcome(pairs: Sequence[Pair], first: str, scale: str) -> Spec:
    """One point a question; the lines are no difference in length, and none in verdict. `scale`: what verdicts are in."""
    step = -(-len(pairs) // POINTS)
    rows = [{"question": f.plain(p.question), "longer": p.longer, "better": p.better} for p in pairs[::step]]
    line = {"type": "rule", "strokeDash": [3, 3], "opacity": 0.7, "color": GREY}
    one = {"values": [{}]}
    layers: list[Spec] = [
        {"mark": line, "data": one, "encoding": {"x": {"datum": 0, "type": "quantitative"}}},
        {"mark": line, "data": one, "encoding": {"y": {"datum": 0, "type": "quantitative"}}},
    ]
    # Not shared with the lines: a field of all layers would take the place of their one value.
    points = {
        "x": field("longer", title=f"characters by which {f.plain(first)} is longer", axis={"grid": False, "tickCount": 6}),
        "y": field("better", title=f"difference, {scale.rpartition(', ')[2]}", axis={"tickCount": 5}),
        "tooltip": [
            field("question", "nominal", title="Question"),
            field("longer", title="Longer by", format=".0f"),
            field("better", title="Better by", format=".3f"),
        ],
    }
    layers.append({"mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.7}, "encoding": points})
    return chart(rows, layers, height=260)


def counts(pairs: Sequence[Pair], first: str) -> Markup:
    """How often the first does better, equally and worse where its answer is longer, as long, and shorter."""
    columns = [Column(f"Answer of {first}"), *(Column(name, numeric=True) for name in ("Questions", "Better", "Equal", "Worse"))]
    rows = []
    for name, kept in _by_length(pairs):
        better, worse = sum(p.better > 0 for p in kept), sum(p.better < 0 for p in kept)
        rows.append([name, *(f.count(n) for n in (len(kept), better, len(kept) - better - worse, worse))])
    return markup.plain_table("Length against outcome", columns, rows)


def in_words(pairs: Sequence[Pair], first: str) -> str:
    """The chart's content as sentences."""
    parts = []
    for name, kept in _by_length(pairs):
        better, worse = sum(p.better > 0 for p in kept), sum(p.better < 0 for p in kept)
        parts.append(f"{name}: better on {better} of {len(kept)} questions, worse on {worse}")
    return f"Length of the answer against its verdict. Where the answer of {f.plain(first)} is " + "; ".join(parts) + "."


def _by_length(pairs: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    parts = {
        "longer": [p for p in pairs if p.longer > 0],
        "as long": [p for p in pairs if p.longer == 0],
        "shorter": [p for p in pairs if p.longer < 0],
    }
    return [(name, kept) for name, kept in parts.items() if kept]
