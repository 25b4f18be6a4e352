"""The table of a paired comparison, for the page and the exported site."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard import format as f
from dashboard import markup
from dashboard.markup import Column, Markup
from evals.comparison import Comparison
from evals.paired import Compared

_COLOURS = {"IMPROVED": "good", "REGRESSED": "bad", "UNDERPOWERED": "warn", "NO EVIDENCE": "absent"}
EXPLAINED = (
    "Mean difference over the questions that both answered, in the benchmark's unit; p by sign flips, adjusted over the "
    "benchmarks (Holm). Smallest visible: the true difference that this test would show with probability 0.8."
)
NOTHING_SHARED = (
    "No benchmark in common",
    "There is none on which the evaluations of both are complete; one that is under way counts once it is.",
)
"""Title and reason."""
_TESTED = {"alpaca_eval": "raw win rate, not length-controlled"}
"""benchmark -> what its paired test is of, where the headline may be fitted to all verdicts and so has no value per question."""
_SCALES = {"percent": "verdict, 0 to 1", "rating": "rating, 1 to 10", "reward": "reward"}


def comparison_table(found: Compared) -> Markup:
    """One line per benchmark; what cannot be compared, and why, below."""
    if not found.comparisons and not found.apart:
        return markup.heading(*NOTHING_SHARED)
    lines = [_line(_benchmark(one.benchmark), one) for one in _ordered(found.comparisons)]
    table = markup.plain_table("Paired differences", _columns("Benchmark"), lines)
    apart = (markup.heading(f"{f.benchmark_label(name)} is not compared", why) for name, why in found.apart.items())
    return Markup((table if found.comparisons else "") + "".join(apart))


def categories_table(comparisons: Sequence[Comparison]) -> Markup:
    """One line per category of a benchmark, the widest difference first."""
    widest = sorted(comparisons, key=lambda one: (-abs(one.difference.value), one.benchmark))
    return markup.plain_table("By category", _columns("Category"), [_line(one.benchmark, one) for one in widest])


def verdict_scale(unit: str) -> str:
    """What one question's verdict is measured in, in words: `unit` is the benchmark's, whose percentages are means of them."""
    return _SCALES.get(unit, "verdict")


def _benchmark(name: str) -> Markup:
    """A benchmark's label, and below it what is tested where that is not its headline."""
    note = f"<small>{markup.text(_TESTED[name])}</small>" if name in _TESTED else ""
    return Markup(f"{markup.text(f.benchmark_label(name))}{note}")


def _columns(what: str) -> list[Column]:
    measured = ("Difference", "p", "Smallest visible", "n", "Better / equal / worse")
    return [Column(what), Column("Verdict"), *(Column(name, numeric=True) for name in measured)]


def parts_table(
    kind: str, names: tuple[str, str], sides: tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]
) -> Markup:
    """Both sides' scores in each part of a benchmark, the widest difference first; parts are too small to be tested."""
    columns = [Column(f.PARTS[kind].capitalize()), *(Column(name, numeric=True) for name in (*names, "Difference", "n"))]
    rows = []
    for part in sides[0].keys() & sides[1].keys():
        a, b = (_score(side[part]) for side in sides)
        if a is not None and b is not None:
            n = sides[0][part].get("n", sides[0][part].get("prompts"))
            rows.append((part, a, b, n))
    rows.sort(key=lambda row: (-abs(row[1] - row[2]), row[0]))
    cells = [[part, f.decimal(a, 1), f.decimal(b, 1), signed(a - b), f.count(n)] for part, a, b, n in rows]
    return markup.plain_table(f"By {f.PARTS[kind]}", columns, cells)


def _score(part: Mapping[str, Any]) -> float | None:
    """A part's score: arena-hard calls it `score`, lm-eval's tasks `acc`."""
    return part.get("score", part.get("acc"))


def signed(value: float) -> str:
    """Two decimals with the sign that a difference needs."""
    text = f.decimal(value, 2)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def _line(label: str, one: Comparison) -> list[object]:
    d = one.difference
    ends = "" if d.low is None or d.high is None else f"[{signed(d.low)}, {signed(d.high)}]"
    difference = Markup(f'<span class="v">{signed(d.value)}</span><span class="i">{ends}</span>')
    verdict = Markup(f'<span class="{_COLOURS[one.verdict]}">{markup.text(one.verdict.lower())}</span>')
    outcome = Markup(f"{_bar(one)}<small>{one.wins} / {one.ties} / {one.losses}</small>")
    visible = f.decimal(d.mde, 2)
    return [label, verdict, difference, f.p_value(one.adjusted_p), visible, str(d.n), outcome]


def _ordered(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """In the order of the leaderboard's columns."""
    places = f.order_benchmarks({one.benchmark for one in comparisons})
    return sorted(comparisons, key=lambda one: places.index(one.benchmark))


def _bar(one: Comparison) -> str:
    """Shares of questions answered better, equally and worse, as three strokes; the numbers beside it carry the meaning."""
    total = max(1, one.wins + one.ties + one.losses)
    parts = (("good", one.wins), ("tie", one.ties), ("bad", one.losses))
    strokes = "".join(f'<i class="{name}" style="width:{100 * count / total:.1f}%"></i>' for name, count in parts)
    return f'<span class="split" aria-hidden="true">{strokes}</span>'
