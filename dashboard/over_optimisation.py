"""The over-optimisation chart: reward against the distance from the first policy (Gao et al. 2022, arXiv 2210.10760).

While proxy and gold rise together the loop learns what is wanted; where the gold one turns, it learns the proxy's faults.
"""

from collections.abc import Sequence

from dashboard import format as f
from dashboard.charts import HEIGHT, SCORE_AXIS, Spec, chart, field
from db.rewards import Rewarded

_NAMES = {"proxy": "proxy, optimised", "gold": "gold, held out"}


def over_optimisation(points: Sequence[Rewarded]) -> Spec:
    """Mean proxy and gold reward over KL, with 95 % intervals; policies in the order of the loop."""
    rows = [
        {
            "kl": point.kl,
            "policy": policy(point),
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "reward": name,
            "order": order,
        }
        for order, point in enumerate(points)
        for name, cell in ((_NAMES["proxy"], point.proxy), (_NAMES["gold"], point.gold))
        if cell is not None and point.kl is not None
    ]
    names = list(_NAMES.values())
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolOpacity": 1}
    value = {"y": field("value", **SCORE_AXIS | {"title": "mean reward"})}
    line = value | {"order": field("order"), "strokeDash": field("reward", "nominal", sort=names, legend=legend)}
    bars = {"y": field("low", title="mean reward"), "y2": {"field": "high"}}
    return chart(
        rows,
        [
            {"mark": {"type": "rule", "opacity": 0.5}, "encoding": bars},
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": line},
            {"mark": {"type": "point", "filled": True, "size": 48, "opacity": 1}, "encoding": value},
            {"mark": {"type": "text", "dy": -10, "fontSize": 11}, "encoding": value | {"text": field("policy", "nominal")}},
        ],
        height=HEIGHT + 90,
        x=field("kl", title="KL to the first policy, nats a response", axis={"grid": False, "tickCount": 5}),
        color=field("reward", "nominal", sort=names, legend=legend),
        tooltip=[
            field("policy", "nominal", title="Policy"),
            field("reward", "nominal", title="Reward model"),
            field("value", title="Mean reward", format=".3f"),
            field("kl", title="KL", format=".3f"),
        ],
    )


def in_words(points: Sequence[Rewarded]) -> str:
    """The chart's content as sentences."""
    parts = [
        f"{policy(point)}: KL {f.decimal(point.kl, 2)}, proxy {f.score(point.proxy)}, gold {f.score(point.gold)}"
        for point in points
    ]
    return "; ".join(parts) + "."


def policy(point: Rewarded) -> str:
    """A policy in words: `SFT`, `iteration 2`."""
    return f"iteration {point.iteration}" if point.role == "iteration" else {"sft": "SFT"}.get(point.role, point.role)
