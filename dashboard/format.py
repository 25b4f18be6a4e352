"""How numbers and names read, on the pages and in the terminal alike. Pure functions, text in and out."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from db.judges import Trust
from db.leaderboard import Cell, Group, Row

ABSENT = "–"
STARTER = "starter, not the benchmark"
FLAG = "†"
"""Behind the value of a flagged cell, and before the footnote that says why."""

# In the order in which the columns stand; benchmarks that are not named here follow, the held-out reward comes last.
_LABELS = {
    "alpaca_eval": "AlpacaEval 2",
    "arena_hard": "Arena-Hard",
    "arena_hard_v2": "Arena-Hard v2",
    "mt_bench": "MT-Bench",
    "mt_bench_pairwise": "MT-Bench, pairs",
    "human_eval": "HumanEval",
    "human_eval_prefill": "HumanEval, prefilled",
    "mbpp": "MBPP",
    "truthful_qa": "TruthfulQA",
    "truthful_qa_generation": "TruthfulQA, written",
    "truthful_qa_binary": "TruthfulQA, binary",
    "gsm8k": "GSM8K",
    "mmlu": "MMLU",
    "arc_challenge": "ARC-Challenge",
}
HELD_OUT = "held_out_reward"
_METRICS = {
    "length_controlled_winrate": "LC win rate, %",
    "win_rate": "win rate, %",
    "pass@1": "pass@1, %",
    "mc1": "MC1, %",
    "mc2": "MC2, %",
    "reward": "mean reward",
    "style_controlled_score": "style control, %",
    "avg_length": "mean characters",
    "plus_pass@1": "pass@1 with added tests, %",
    "exact_match_strict": "strict match, %",
    "acc": "accuracy, %",
}
SECOND = {
    "alpaca_eval": ("win_rate", "avg_length"),
    "arena_hard": ("style_controlled_score",),
    "arena_hard_v2": ("style_controlled_score",),
    "human_eval": ("plus_pass@1",),
    "mbpp": ("plus_pass@1",),
    "truthful_qa": ("mc1",),
    "gsm8k": ("exact_match_strict",),
    "arc_challenge": ("acc",),
}
"""benchmark -> metrics that may stand beside its headline, in columns named `benchmark/metric`."""
BESIDE = ("alpaca_eval/win_rate", "truthful_qa/mc1")
"""Those of them that stand there unless a reader chooses otherwise: papers report both figures."""
PARTS = {"categories": "category", "subcategories": "subcategory", "clusters": "cluster", "subjects": "subject"}
"""Kinds of parts of a benchmark, as `db.samples.breakdowns` names them -> one of them, in words."""
TESTED = {("alpaca_eval", "length_controlled_winrate"): "raw win rate"}
"""(benchmark, headline metric) -> what is paired and tested instead, where a single question has no such metric."""
RATED = ("mt_bench", HELD_OUT)
"""Benchmarks whose verdicts are ratings or rewards: no verdict is a win or a loss by itself."""
STYLED = ("arena_hard", "arena_hard_v2")
_SCORES = {"arena_hard": "score, %", "mt_bench": "score, 1 to 10"}
# How an answer that nobody judges is found right or wrong; by its log-likelihood where nothing is said here.
_UNJUDGED = {"gsm8k": "exact match", "truthful_qa_generation": "overlap with references"}
# Percentages carry one decimal: the intervals are several points wide. Scales of a few units need two, characters none.
_DECIMALS = {"mt_bench": 2, HELD_OUT: 2, "alpaca_eval/avg_length": 0}
_KINDS = {
    "base": "base",
    "sft": "SFT",
    "third_party": "third-party",
    "published": "published",
    "canary": "canary",
}


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the characters that turn the reading direction."""


@lru_cache(50_000)
def plain(text: str) -> str:
    """`text` on one line with control, bidirectional and unassigned characters shown as U+FFFD.

    Names come from checkpoints of strangers: an escape sequence must not reach a terminal, nor an override reorder a row.
    """
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") else c for c in text)


def visible(text: str) -> str:
    """Text of several lines with what would move the cursor, a terminal or the reading direction written out, as `⟨U+202E⟩`.

    For evidence: every other character stays as it was, joiners of emoji and scripts included.
    """
    return "".join(f"⟨U+{ord(c):04X}⟩" if _moves(c) else c for c in text)


def words(text: str) -> str:
    """Letters, digits and the plainest marks of `text`: for the few places where Streamlit takes a text for Markdown."""
    return re.sub(r"[^\w\s,.%-]", " ", plain(text))


def _moves(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS


def order_benchmarks(names: set[str]) -> list[str]:
    """Benchmarks in the order of their columns."""
    known = list(_LABELS)

    def place(name: str) -> tuple[bool, int, str]:
        benchmark = of(name)
        return benchmark == HELD_OUT, known.index(benchmark) if benchmark in known else len(known), name

    return sorted(names, key=place)


def of(column: str) -> str:
    """The benchmark of a column: `benchmark`, its headline, or `benchmark/metric`."""
    return column.partition("/")[0]


def benchmark_label(column: str) -> str:
    name = of(column)
    return _LABELS.get(name) or plain(name).replace("_", " ").capitalize().replace("Held out", "Held-out")


def metric_label(benchmark: str, metric: str) -> str:
    """Metric with its unit."""
    known = _METRICS.get(metric) or (_SCORES.get(of(benchmark)) if metric == "score" else None)
    return known or plain(metric).replace("_", " ")


def number(benchmark: str, value: float | None) -> str:
    """A score in its benchmark's decimals."""
    return decimal(value, _DECIMALS.get(benchmark, 1))


def decimal(value: float | None, decimals: int) -> str:
    """A number with a true minus sign and no negative zero."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def interval(cell: Cell) -> str:
    """`[low, high]`, or nothing when the score has no interval."""
    if cell.value is None or cell.low is None or cell.high is None:
        return ""
    return f"[{number(cell.benchmark, cell.low)}, {number(cell.benchmark, cell.high)}]"


def score(cell: Cell | None) -> str:
    """`value [low, high]` on one line; `withheld` where too many items failed."""
    if cell is None:
        return ABSENT
    if cell.value is None:
        return f"withheld ({cell.n_failed} failed)"
    return " ".join(part for part in (number(cell.benchmark, cell.value), interval(cell)) if part)


def signed(benchmark: str, value: float) -> str:
    """A difference of scores: the benchmark's decimals, with its sign."""
    text = number(benchmark, value)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def change(cell: Cell) -> str:
    """Difference from the parent, marked only where the paired test is significant: `▲ +3.1`, `+0.4`; `+0.4 raw` where it is of
    raw win rates."""
    if cell.change is None or cell.value is None:
        return ""
    mark = {"IMPROVED": "▲ ", "REGRESSED": "▼ "}.get(cell.change.verdict, "")
    tested = TESTED.get((of(cell.benchmark), cell.metric), "").partition(" ")[0]
    return " ".join(filter(None, (mark + signed(cell.benchmark, cell.change.value), tested)))


def describe(cell: Cell) -> str:
    """What a cell does not show itself, for its tooltip: how it was computed, from how much, by whom."""
    parts = [metric_label(cell.benchmark, cell.metric)]
    if cell.value is None:
        bounds = " to ".join(number(cell.benchmark, bound) for bound in (cell.worst, cell.best))
        parts = [f"withheld, {cell.n_failed} of {cell.n + cell.n_failed} failed; it lies within {bounds}"]
    # Some published tables do not say of how many questions they are.
    parts += [
        *([f"n = {cell.n}, {cell.n_failed} failed"] if cell.n or cell.n_failed else []),
        *([] if cell.complete else ["evaluation not complete"]),
    ]
    parts += [plain(cell.method), f"judge: {judge(cell)}"]
    parts += [f"flagged: {plain(flag['reason'])}" for flag in cell.flags]
    if change(cell):
        test = f"paired over {cell.change.n} questions, p {p_value(cell.change.p)} adjusted, {cell.change.verdict.lower()}"
        tested = TESTED.get((of(cell.benchmark), cell.metric))
        difference = f"{signed(cell.benchmark, cell.change.value)}{f' {tested}' if tested else ''}"
        parts.append(f"against {plain(cell.change.against)}: {difference}, {test}")
    return "; ".join(parts)


def judge(cell: Cell | Group) -> str:
    """Who gave the verdicts, in words."""
    if cell.judge_kind == "none":
        return f"none, {_UNJUDGED.get(of(cell.benchmark), 'log-likelihood')}"
    return "sandbox, code was run" if cell.judge_kind == "sandbox" else plain(cell.judge)


def trust(known: Trust | None) -> list[str]:
    """What is known of a judge, in short: agreement with people, pull of the position and of the length."""
    if known is None:
        return []
    parts = []
    if known.agreement:
        parts.append(f"agrees with people on {_share(known.agreement)} of {known.agreement['n']}")
    for metric, words in (
        ("flip_rate", "changes its verdict with the order in"),
        ("first_preference", "gives the answer shown first"),
        ("longer_preference", "gives the longer answer"),
    ):
        if metric in known.bias:
            parts.append(f"{words} {_share(known.bias[metric])}")
    return parts


def _share(statistic: Mapping[str, Any]) -> str:
    """`61 % [58, 64]`."""
    ends = [statistic["low"], statistic["high"]]
    interval = "" if None in ends else f" [{', '.join(decimal(100 * end, 0) for end in ends)}]"
    return f"{decimal(100 * statistic['value'], 0)} %{interval}"


def is_starter(version: str) -> bool:
    """Whether this is the small set that ships with the harness and stands for no published benchmark."""
    return version.startswith("starter")


def data_version(version: str) -> str:
    return STARTER if is_starter(version) else plain(version)


def kind(row: Row) -> str:
    """What the checkpoint is, e.g. `SFT` or `iteration 2`."""
    if row.kind == "iteration" and row.iteration is not None:
        return f"iteration {row.iteration}"
    return _KINDS.get(row.kind) or plain(row.kind)


def p_value(p: float) -> str:
    """Three decimals; no test by resampling shows a p of zero."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def distinct(names: Mapping[str, str]) -> dict[str, str]:
    """Fingerprint -> name to show, with the start of the fingerprint where several share the name."""
    shown = {key: plain(name) for key, name in names.items()}
    counts = Counter(shown.values())
    return {key: f"{name} ({key[:8]})" if counts[name] > 1 else name for key, name in shown.items()}


def rank(bounds: tuple[int, int] | None) -> str:
    """A range of ranks: `1`, `2–4`, or a dash."""
    if bounds is None:
        return ABSENT
    best, worst = bounds
    return str(best) if best == worst else f"{best}–{worst}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return ABSENT if value is None else f"{value:,.0f}".replace(",", "\u2009")


def rate(each_second: float, unit: str) -> str:
    """`40.0 steps/s`; what takes longer than a second each by the minute, else by the hour."""
    seconds, name = next((span for span in ((1, "s"), (60, "min")) if each_second * span[0] >= 1), (3600, "h"))
    return f"{decimal(each_second * seconds, 1)} {unit}/{name}"


def plural(n: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: `48 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    if seconds is None:
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def size(count_of_bytes: int | None) -> str:
    """Bytes in binary units."""
    if count_of_bytes is None:
        return ABSENT
    value, units = float(count_of_bytes), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.1f} {unit}"


def dollars(micro_dollars: float) -> str:
    """Money, to the cent where there is a cent."""
    value = micro_dollars / 1e6
    return ABSENT if not value else f"${value:,.2f}" if value >= 0.1 else f"${value:.4f}"


def day(value: datetime | None) -> str:
    """Date in UTC."""
    return ABSENT if value is None else f"{value:%Y-%m-%d}"


def moment(value: datetime | None) -> str:
    """Date and time in UTC, to the minute."""
    return ABSENT if value is None else f"{value:%Y-%m-%d %H:%M}"
