"""Charts of scores and training, each with its description in words. Vega-Lite specifications; the theme gives the colours.

They are plain dictionaries: the same chart built and checked by altair took 60 to 110 ms, nine of them most of a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dashboard import format as f
from dashboard.theme import COLOURS
from db.views import Point, Series

Spec = dict[str, Any]

HEIGHT = 190
GREY = "#888888"
"""Of what is drawn for reference only; legible on both themes."""
POINTS = 240
"""Points of one training curve that are sent: more than its width in pixels shows nothing more."""
_ONE = {"values": [{}]}
SCORE_AXIS = {"title": None, "scale": {"zero": False}, "axis": {"tickCount": 4}}


@dataclass(frozen=True)
class Trace:
    """One line of a training chart: a metric over the stages of successive iterations."""

    name: str
    stages: list[tuple[str, list[tuple[int, float | None]]]]
    """[(stage, [(step, value)])]; a value that was not finite is None and leaves a gap."""


def policy(point: Point) -> str:
    """A run's policy on the axis: `base`, `SFT`, `1`, `2`."""
    return {"base": "base", "sft": "SFT"}.get(point.role, str(point.iteration))


def chart(data: list[dict[str, Any]], layers: list[Spec], *, height: int = HEIGHT, **common: Any) -> Spec:
    """A layered chart as wide as its place; `common` is the encoding that all layers share."""
    # One layer down: Streamlit sends data at the top separately, and the chart is drawn empty until they arrive.
    group = {"data": {"values": data}, "encoding": common, "layer": layers}
    # Marks and axes are not read out one by one: every chart has its description in words, and its numbers stand in a table.
    return {"layer": [group], "height": height, "width": "container", "config": {"aria": False, "mark": {"aria": False}}}


def field(name: str, kind: str = "quantitative", **options: Any) -> Spec:
    """A channel that shows a field of the data."""
    return {"field": name, "type": kind, **options}


def iterations(series: Series) -> Spec:
    """Score over a run's policies: points and line, 95 % band, dashed line at the first policy's score."""
    rows = [
        {
            "policy": policy(point),
            "value": point.cell.value,
            "low": point.cell.low,
            "high": point.cell.high,
            "score": f.score(point.cell),
            "checkpoint": f.plain(point.checkpoint),
            "n": point.cell.n_questions,
            "colour": str((point.checkpoint_id - 1) % COLOURS),
        }
        for point in series.points
    ]
    accent = {"color": {"datum": "0", "type": "nominal"}}  # the theme's first colour
    band = accent | {"y": field("low", title=None), "y2": {"field": "high"}}
    score = {"y": field("value", **SCORE_AXIS)}
    layers: list[Spec] = [
        {"mark": {"type": "area", "opacity": 0.16, "line": False}, "encoding": band},
        {"mark": {"type": "rule", "opacity": 0.55, "strokeWidth": 1}, "encoding": band},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": score | accent},
        {"mark": {"type": "point", "filled": True, "size": 72, "opacity": 1}, "encoding": score | {"color": _colour(rows)}},
    ]
    if series.first is not None and series.first.cell.value is not None:
        layers.insert(0, _reference_line(series.first.cell.value, [3, 3]))
    for point in series.baselines:
        if point.cell.value is not None:
            layers += [_reference_line(point.cell.value, [8, 3]), _line_label(point)]
    return chart(
        rows,
        layers,
        x=field(
            "policy",
            "nominal",
            sort=[row["policy"] for row in rows],
            title=None,
            scale={"padding": 0.35},
            axis={"labelAngle": 0, "grid": False},
        ),
        tooltip=[
            field("checkpoint", "nominal", title="Checkpoint"),
            field("score", "nominal", title=f.metric_label(series.benchmark, series.metric)),
            field("n", title="Questions"),
        ],
    )


def _colour(rows: list[dict[str, Any]]) -> Spec:
    """Each checkpoint's own colour: the domain is whole, so that place n in it is colour n of the theme."""
    return field("colour", "nominal", legend=None, scale={"domain": [str(i) for i in range(COLOURS)]})


def _reference_line(value: float, dash: list[int]) -> Spec:
    mark = {"type": "rule", "strokeDash": dash, "opacity": 0.7, "color": GREY}
    # a datum, and no shared channel: this line has no policy; data of its own, or it is drawn once for each row
    return {"mark": mark, "data": _ONE, "encoding": {"y": {"datum": value}, "x": None, "tooltip": None}}


def _line_label(point: Point) -> Spec:
    """The baseline's name at the right end of its line."""
    mark = {"type": "text", "align": "right", "baseline": "bottom", "dy": -2, "fontSize": 11, "color": GREY}
    at = {"y": {"datum": point.cell.value}, "x": {"value": "width"}, "tooltip": None}
    return {"mark": mark, "data": _ONE, "encoding": at | {"text": {"value": f.plain(point.role).replace("_", " ")}}}


def iterations_in_words(series: Series) -> str:
    """The chart's content as a sentence."""
    name, metric = f.benchmark_label(series.benchmark), f.metric_label(series.benchmark, series.metric)
    return (
        f"{name}, {metric}: "
        + "; ".join(f"{_name(point)} {f.score(point.cell)}" for point in [*series.points, *series.baselines])
        + "."
    )


def training(traces: Sequence[Trace]) -> Spec:
    """Training curves over the steps of all iterations, one after the other, a thin line where an iteration begins.

    Several traces share the axes and are told apart by colour, dash and legend.
    """
    rows, offsets = [], _offsets(traces)
    for trace in traces:
        for stage, points in trace.stages:
            rows += [
                {"step": offsets[stage] + step, "at": step, "value": value, "trace": trace.name, "stage": stage}
                for step, value in thinned(points, POINTS // len(trace.stages))
            ]
    starts = [{"step": offset, "stage": stage} for stage, offset in offsets.items()]
    several = len(traces) > 1
    names = [trace.name for trace in traces]
    legend = {"title": None, "orient": "top", "symbolType": "stroke"} if several else None
    lines = {
        "y": field("value", **SCORE_AXIS),
        "color": field("trace", "nominal", sort=names, legend=legend),
        "detail": field("stage", "nominal"),
        "tooltip": [
            field("stage", "nominal", title="Stage"),
            field("at", title="Step"),
            field("value", title="Value", format=".4g"),
        ],
    }
    if several:
        lines["strokeDash"] = field("trace", "nominal", sort=names, legend=legend)
    begin = {"mark": {"type": "rule", "strokeDash": [2, 3], "opacity": 0.6, "color": GREY}, "data": {"values": starts}}
    layers: list[Spec] = [begin, {"mark": {"type": "line", "strokeWidth": 2, "point": {"size": 18}}, "encoding": lines}]
    if len(starts) > 1:
        label = {"type": "text", "align": "left", "dy": -4, "baseline": "bottom", "fontSize": 11, "color": GREY}
        layers.append(
            {"mark": label, "data": {"values": starts}, "encoding": {"text": field("stage", "nominal"), "y": {"value": 0}}}
        )
    return chart(rows, layers, x=field("step", title=None, axis={"grid": False, "tickCount": 5, "tickMinStep": 1}))


def thinned(points: Sequence[tuple[int, float | None]], most: int) -> list[tuple[int, float | None]]:
    """No more than about `most` points: of each run of neighbours the lowest and the highest, so that no spike is lost.

    A value that was not finite is kept: a gap is a finding.
    """
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // max(2, most))
    kept: list[tuple[int, float | None]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [point for point in part if point[1] is not None]
        ends = {min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])} if known else set()
        kept += sorted(ends | {point for point in part if point[1] is None})
    return kept


def training_in_words(traces: Sequence[Trace]) -> str:
    """First and last value of each trace."""
    sentences = []
    for trace in traces:
        values = [value for _, points in trace.stages for _, value in points if value is not None]
        steps = sum(len(points) for _, points in trace.stages)
        ends = f"from {values[0]:.4g} to {values[-1]:.4g}" if values else "no finite value"
        sentences.append(f"{trace.name}: {ends} over {steps} points.")
    return " ".join(sentences)


def _offsets(traces: Sequence[Trace]) -> dict[str, int]:
    """Stage -> steps before it, in the order of the stages."""
    last: dict[str, int] = {}
    for trace in traces:
        for stage, points in trace.stages:
            last[stage] = max(last.get(stage, 0), max((step for step, _ in points), default=0))
    offsets, total = {}, 0
    for stage, steps in last.items():
        offsets[stage], total = total, total + steps
    return offsets


def _name(point: Point) -> str:
    if point.role == "iteration":
        return f"iteration {point.iteration}"
    return policy(point) if point.role in ("base", "sft") else f"baseline {f.plain(point.role).replace('_', ' ')}"
