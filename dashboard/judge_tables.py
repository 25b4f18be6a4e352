"""What is known of a judge as tables: calibrations, leanings by benchmark, canaries. See docs/judges.md for each figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Column, Markup
from db.judges import JudgeCard
from db.leaderboard import Cell

METRICS = {
    "agreement": ("agrees with the labels", True),
    "agreement_both_orders": ("agrees in both orders", True),
    "agreement_with_ties": ("agrees, ties counted", True),
    "kappa": ("Cohen's kappa", False),
    "kappa_orders": ("kappa between the two orders", False),
    "flip_rate": ("changes with the order", True),
    "first_preference": ("gives the answer shown first", True),
    "longer_preference": ("gives the longer answer", True),
    "length_slope": ("gain per doubled length", False),
    "ties": ("ties", True),
    "failed": ("failed", True),
    "unread": ("unreadable replies", True),
    "people_ceiling": ("one person against two others", True),
    "people_pairwise": ("two people, ties counted", True),
    "spearman": ("Spearman with the board", False),
    "kendall": ("Kendall with the board", False),
}
"""metric -> (what it says, whether it is a share, shown in percent)"""
_LEANINGS = ("flip_rate", "first_preference", "longer_preference", "length_slope", "ties", "failed", "unread")
FAIR = 0.5
"""What an answer gets for its place, or for its length, from a judge without a leaning."""


def calibrations(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """One line per data set and metric; categories after the whole."""
    columns = [
        Column("Data"),
        Column("What"),
        Column("Value", numeric=True),
        Column("n", numeric=True),
        Column("Made", numeric=True),
    ]
    lines: list[list[object]] = []
    for row in rows:
        known = [(label, row["statistics"][name], share) for name, (label, share) in METRICS.items() if name in row["statistics"]]
        for name, statistic in row["statistics"].items():
            category, _, metric = name.rpartition(":")
            if category and metric == "agreement":
                known.append((f"agrees, {f.plain(category)}", statistic, True))
        failed = f"{row['n_failed']} failed" if row["n_failed"] else ""
        for place, (label, statistic, share) in enumerate(known):
            first = place == 0
            data = (
                Markup(f"{markup.text(row['dataset'])}<small>{markup.text(row['version'])}</small>") if first else row["dataset"]
            )
            n = Markup(f"{statistic['n']}<small>{failed}</small>") if first and failed else str(statistic["n"])
            lines.append([data, label, value(statistic, share), n, str(row["created_at"])[:10] if first else ""])
    return markup.plain_table("Agreement with people and labels", columns, lines)


def leanings(cards: Sequence[JudgeCard]) -> Markup:
    """One line per benchmark that it judged, one column per leaning that its design can show."""
    shown = [name for name in _LEANINGS if any(name in card.bias for card in cards)]
    columns = [Column("Benchmark"), Column("Evaluations", numeric=True)]
    columns += [Column(METRICS[name][0].capitalize(), numeric=True) for name in shown]
    lines = [
        [
            f.benchmark_label(card.benchmark),
            str(card.evaluations),
            *(value(card.bias[name], METRICS[name][1], fair=_fair(name)) if name in card.bias else f.ABSENT for name in shown),
        ]
        for card in cards
    ]
    return markup.plain_table("Leanings by benchmark", columns, lines)


def canaries(found: Sequence[tuple[str, Cell]]) -> Markup:
    """What the judge gives to answers that no model wrote."""
    columns = [Column("Canary"), Column("Benchmark"), Column("Score", numeric=True), Column("n", numeric=True)]
    columns.append(Column("What it is", wide=True))
    lines = []
    for name, cell in found:
        link = f'<a href="samples?evaluation={cell.evaluation_id}">{markup.text(f.score(cell))}</a>'
        reason = next((flag["reason"] for flag in cell.flags if flag["flag"] == "canary"), "")
        metric = f"{f.benchmark_label(cell.benchmark)}, {f.metric_label(cell.benchmark, cell.metric)}"
        lines.append([name, metric, Markup(link), str(cell.n), reason])
    return markup.plain_table("Canaries", columns, lines)


def value(statistic: Mapping[str, Any], share: bool, fair: float | None = None) -> Markup:
    """`61.0 %` over its interval; coloured where the interval leaves what is fair."""
    if statistic["value"] is None:
        return markup.text("withheld")
    scale, decimals, unit = (100.0, 1, "\u2009%") if share else (1.0, 2, "")
    main = f.decimal(scale * statistic["value"], decimals) + unit
    ends = [statistic["low"], statistic["high"]]
    leans = fair is not None and None not in ends and not ends[0] <= fair <= ends[1]
    below = "" if None in ends else f"[{', '.join(f.decimal(scale * end, decimals) for end in ends)}]"
    colour = ' class="warn"' if leans else ""
    mark = markup.text("leans ") if leans else ""
    return Markup(f'<b{colour}>{markup.text(main)}</b><span class="i">{mark}{markup.text(below)}</span>')


def _fair(metric: str) -> float | None:
    return {"first_preference": FAIR, "longer_preference": FAIR, "length_slope": 0.0}.get(metric)
