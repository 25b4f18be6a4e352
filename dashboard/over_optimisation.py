"""The over-optimisation chart: reward against the distance from the first policy (Gao et al. 2022, arXiv 2210.10760).

While proxy and gold rise together the loop learns what is wanted; where the gold one turns, it learns the proxy's faults.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashboard import format as f
from dashboard.charts import HEIGHT
from db.rewards import Rewarded

if TYPE_CHECKING:
    import altair

_NAMES = {"proxy": "proxy, optimised", "gold": "gold, held out"}


def over_optimisation(points: Sequence[Rewarded]) -> "altair.LayerChart":
    """Mean proxy and gold reward over KL, with 95 % intervals; policies in the order of the loop."""
    import altair as alt

    rows = [
        {
            "kl": point.kl,
            "policy": _policy(point),
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
    legend = alt.Legend(title=None, orient="top", symbolType="stroke")
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("kl:Q", title="KL to the reference, nats a response", axis=alt.Axis(grid=False, tickCount=5)),
        color=alt.Color("reward:N", sort=names, legend=legend),
        tooltip=[
            alt.Tooltip("policy:N", title="Policy"),
            alt.Tooltip("reward:N", title="Reward model"),
            alt.Tooltip("value:Q", title="Mean reward", format=".3f"),
            alt.Tooltip("kl:Q", title="KL", format=".3f"),
        ],
    )
    value = alt.Y("value:Q", title="mean reward", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    line = base.mark_line(strokeWidth=2).encode(
        y=value, order="order:Q", strokeDash=alt.StrokeDash("reward:N", sort=names, legend=legend)
    )
    label = base.mark_text(dy=-10, fontSize=11).encode(y=value, text="policy:N")
    bars = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="mean reward"), y2="high:Q")
    dots = base.mark_point(filled=True, size=48, opacity=1).encode(y=value)
    return alt.layer(bars, line, dots, label).properties(height=HEIGHT + 60, width="container")


def in_words(points: Sequence[Rewarded]) -> str:
    """The chart's content as sentences."""
    parts = [
        f"{_policy(point)}: KL {f.decimal(point.kl, 2)}, proxy {f.score(point.proxy)}, gold {f.score(point.gold)}"
        for point in points
    ]
    return "; ".join(parts) + "."


def _policy(point: Rewarded) -> str:
    return f"iteration {point.iteration}" if point.role == "iteration" else {"sft": "SFT"}.get(point.role, point.role)
