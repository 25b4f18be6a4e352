"""Arena-Hard's published leaderboards: the CSV files of v0.1, and the console tables in upstream's Markdown files."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from core.errors import MissingInput
from evals.benchmark import ScoreRow, read_text
from evals.chat.style_control import Version
from evals.formats.saved import PublishedScore

V01_JUDGE = "gpt-4-1106-preview"
_PROMPTS = {"v0.1": 500, "hard_prompt": 500, "creative_writing": 250}

# "model | score: 93.4 | 95% CI: (-1.1, 1.0) | average #tokens: 1217", printed by v0.1's show_result.py.
_V01_LINE = re.compile(
    r"^(?P<model>\S+)\s*\|\s*score:\s*(?P<score>[\d.]+)\s*\|\s*95% CI:\s*\(\s*(?P<down>[-+\d.]+),\s*(?P<up>[-+\d.]+)\)"
    r"(?:\s*\|\s*average #tokens:\s*(?P<tokens>[\d.]+))?"
)
# "0   o3-2025-04-16   85.9  (-0.8 / +0.9)", printed by v2.0's.
_V2_LINE = re.compile(r"^\d+\s+(?P<model>\S+)\s+(?P<score>[\d.]+)\s+\((?P<down>[-+][\d.]+) / (?P<up>[-+][\d.]+)?")


def read_leaderboards(path: Path, version: Version) -> list[PublishedScore]:
    """The published scores of `version` in a file. Raises MissingInput for a file that holds none of them."""
    found = list(_markdown(path, version) if ".md" in path.suffixes else _csv(path, version))
    if not found:
        raise MissingInput(
            f"{path} holds no published scores of Arena-Hard {version}; give a leaderboard CSV (model, score, rating_q025, "
            "rating_q975) or upstream's Markdown tables."
        )
    return found


def _csv(path: Path, version: Version) -> Iterator[PublishedScore]:
    table = csv.DictReader(io.StringIO(read_text(path)))
    if version != "v0.1" or not {"model", "score", "rating_q025", "rating_q975"} <= set(table.fieldnames or ()):
        return
    for row in table:
        when = f", {row['date']}" if row.get("date") else ""
        ends = float(row["rating_q025"]), float(row["rating_q975"])
        yield _score(
            row["model"], V01_JUDGE, "score", float(row["score"]), ends, f"published{when}; 100 resamples of battles", "v0.1"
        )
        if row.get("avg_tokens"):
            yield _tokens(row["model"], float(row["avg_tokens"]))


def _markdown(path: Path, version: Version) -> Iterator[PublishedScore]:
    heading = ""
    for line in read_text(path).split("\n"):
        old, new = _V01_LINE.match(line.strip()), _V2_LINE.match(line.strip())
        match = old or new
        if match is None:
            # The title of the fenced table that follows; a table without one has no heading.
            if line.strip() == "```":
                heading = ""
            elif line.strip() and not line.startswith("```") and "Scores (%)" not in line:
                heading = line
            continue
        if (version == "v0.1") != (old is not None):
            continue
        value = float(match["score"])
        ends = value + float(match["down"]), value + float(match["up"] or "nan")
        if old:
            metric = "style_controlled_score" if "style control" in heading.lower() else "score"
            yield _score(match["model"], V01_JUDGE, metric, value, ends, "published; 100 resamples of battles", "v0.1")
            if match["tokens"]:
                yield _tokens(match["model"], float(match["tokens"]))
        else:
            category = "creative_writing" if "creative writing" in heading.lower() else "hard_prompt"
            metric = "style_controlled_score" if "style control" in heading.lower() else "score"
            suffix = "_creative_writing" if category == "creative_writing" else ""
            method = "published; 100 resamples of battles, a 90 % interval"
            yield _score(match["model"], _v2_judge(heading), metric + suffix, value, ends, method, category)


def _v2_judge(heading: str) -> str:
    judges = [name for name in ("gpt-4.1", "gemini-2.5") if name.replace("-", " ") in heading.lower().replace("-", " ")]
    return "+".join(judges) or "unknown"


def _score(
    model: str, judge: str, metric: str, value: float, ends: tuple[float, float], method: str, questions: str
) -> PublishedScore:
    # One interval of upstream's file is cut off in mid-number.
    low, high = (end if end == end else None for end in ends)
    row = ScoreRow(
        metric, value, low, high if low is not None else None, method, _PROMPTS[questions], 0, headline=metric == "score"
    )
    return PublishedScore(model, row, judge)


def _tokens(model: str, tokens: float) -> PublishedScore:
    row = ScoreRow("avg_tokens", tokens, None, None, "published", _PROMPTS["v0.1"], 0, higher_is_better=None)
    return PublishedScore(model, row, V01_JUDGE)
