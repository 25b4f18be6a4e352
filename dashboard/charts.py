"""Charts of scores and training, each with its description in words. Vega-Lite specifications; the theme gives the colours.

They are plain dictionaries: the same chart built and checked by altair took 60 to 110 ms, nine of them most of a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dashboard import format as f
from db.views import Point, Series

Spec = dict[str, Any]

HEIGHT = 190
GREY = "#888888"
"""Of what is drawn for reference only; legible on both themes."""
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
    return {"layer": [group], "height": height, "width": "container"}


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
            "n": point.cell.n,
            "series": "score",  # one value: the mark takes the first colour of the theme
        }
        for point in series.points
    ]
    band = {"y": field("low", title=None), "y2": {"field": "high"}}
    score = {"y": field("value", **SCORE_AXIS)}
    layers: list[Spec] = [
        {"mark": {"type": "area", "opacity": 0.16, "line": False}, "encoding": band},
        {"mark": {"type": "rule", "opacity": 0.55, "strokeWidth": 1}, "encoding": band},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": score},
        {"mark": {"type": "point", "filled": True, "size": 64, "opacity": 1}, "encoding": score},
    ]
    first = next((row["value"] for row in rows if row["value"] is not None), None)
    if first is not None:
        dashed = {"type": "rule", "strokeDash": [3, 3], "opacity": 0.6, "color": GREY}
        # a datum, and no shared channel: this line has no policy
        layers.insert(0, {"mark": dashed, "encoding": {"y": {"datum": first}, "x": None, "color": None, "tooltip": None}})
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
        color=field("series", "nominal", legend=None),
        tooltip=[
            field("checkpoint", "nominal", title="Checkpoint"),
            field("score", "nominal", title=f.metric_label(series.benchmark, series.metric)),
            field("n", title="Questions"),
        ],
    )


def iterations_in_words(series: Series) -> str:
    """The chart's content as a sentence."""
    name, metric = f.benchmark_label(series.benchmark), f.metric_label(series.benchmark, series.metric)
    return f"{name}, {metric}: " + "; ".join(f"{_name(point)} {f.score(point.cell)}" for point in series.points) + "."


def training(traces: Sequence[Trace]) -> Spec:
    """Training curves over the steps of all iterations, one after the other, a thin line where an iteration begins.

    Several traces share the axes and are told apart by colour, dash and legend.
    """
    rows, offsets = [], _offsets(traces)
    for trace in traces:
        for stage, points in trace.stages:
            rows += [
                {"step": offsets[stage] + step, "at": step, "value": value, "trace": trace.name, "stage": stage}
                for step, value in points
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
    return f"iteration {point.iteration}" if point.role == "iteration" else policy(point)
