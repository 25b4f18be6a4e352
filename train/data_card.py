"""What became of every row, for machines (card.json) and for people (README.md beside it).

card: {"sources": {name: {use, reader, filters, read, dropped {rule: rows}, kept, statistics}},
"files": {file: {rows, prompts, sha256, by_source}}, "contamination": {"action", "benchmarks": {...}},
"near_duplicates": {...}, "statistics_in": what tokens are counted by}. Everything in it follows from the stage's settings and
inputs; what a catalogue says of a source's origin is added where the page is printed (`render`, `origins`).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from train.mixing import prompt_digest, prompt_of

Row = dict[str, Any]
CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English, used only where no tokenizer is given; the card says so."""


STATISTICS_ROWS = 10_000
"""Mean lengths are taken over so many rows of a source: counting the tokens of all would take longer than all the rest."""


def count_by_characters(text: str) -> int:
    """Tokens of a text, estimated."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def statistics(rows: list[Row], count_tokens: Callable[[str], int]) -> dict[str, float]:
    """Different prompts; mean characters and tokens of prompt and replies (`chosen`, `rejected`, or `reply`) of the first
    STATISTICS_ROWS rows."""
    if not rows:
        return {"prompts": 0}
    lengths: dict[str, list[tuple[int, int]]] = {}
    for row in rows[:STATISTICS_ROWS]:
        parts = {"prompt": "\n".join(message["content"] for message in prompt_of(row))}
        if "chosen" in row:
            parts |= {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
        elif row["messages"][-1]["role"] == "assistant":
            parts["reply"] = row["messages"][-1]["content"]
        for part, text in parts.items():
            lengths.setdefault(part, []).append((len(text), count_tokens(text)))
    means: dict[str, float] = {"prompts": len({prompt_digest(row) for row in rows})}
    for part, found in lengths.items():
        for unit, values in zip(("characters", "tokens"), zip(*found, strict=True), strict=True):
            means[f"{part}_{unit}"] = round(sum(values) / len(values), 1)
    return means


def describe_file(rows: list[Row], sha256: str) -> dict[str, Any]:
    """The entry of one written file."""
    by_source = dict(Counter(row["source"] for row in rows if "source" in row))
    return {"rows": len(rows), "prompts": len({prompt_digest(row) for row in rows}), "sha256": sha256, "by_source": by_source}


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """The card without its lists of ids: what the registry keeps of it, and the dashboard shows."""
    told = card["contamination"]
    benchmarks = {
        name: {
            "questions": found["questions"],
            "by_source": {source: counts for source, counts in found["by_source"].items() if counts["rows"]},
        }
        for name, found in told["benchmarks"].items()
    }
    kept = ("use", "read", "dropped", "kept", "filters")
    sources = {name: {key: source[key] for key in kept} for name, source in card["sources"].items()}
    alike = {key: value for key, value in card["near_duplicates"].items() if key not in ("examples", "by_source")}
    files = {name: {key: about[key] for key in ("rows", "prompts", "sha256")} for name, about in card["files"].items()}
    contamination = {"action": told["action"], "benchmarks": benchmarks}
    return {"sources": sources, "files": files, "contamination": contamination, "near_duplicates": alike}


def render(card: dict[str, Any], title: str, description: str = "", origins: list[list[str]] | None = None) -> str:
    """The card as Markdown. Texts of the data are not in it: only names, ids and counts.

    `origins`: rows (source, licence, from, note) that somebody who knows them adds.
    """
    parts = [f"# {title}", description, *_sources(card["sources"])]
    if origins:
        parts += ["## Where they come from", _table(["source", "licence", "from", "note"], origins)]
    parts += _files(card["files"]) + _contamination(card["contamination"]) + _near_duplicates(card["near_duplicates"])
    parts += _lengths(card["sources"], card["statistics_in"])
    return "\n\n".join(part for part in parts if part) + "\n"


def _sources(sources: dict[str, Any]) -> list[str]:
    counts = [[name, s["use"], s["read"], s["kept"], s["statistics"]["prompts"]] for name, s in sources.items()]
    drops = [[name, rule, n] for name, s in sources.items() for rule, n in sorted(s["dropped"].items(), key=lambda one: -one[1])]
    filters = [[name, ", ".join(f"{key} {value}" for key, value in s["filters"].items())] for name, s in sources.items()]
    given = [row for row in filters if row[1]]
    parts = ["## Sources", "Every row that was read is kept or stands below under the rule that dropped it."]
    parts += [_table(["source", "use", "read", "kept", "prompts"], counts)]
    parts += [_table(["source", "dropped because of", "rows"], drops) if drops else "No row was dropped."]
    parts += [_table(["source", "thresholds"], given)] if given else []
    warned = [f"`{name}` is made of the questions of {s['contaminates']}." for name, s in sources.items() if "contaminates" in s]
    return parts + warned


def _lengths(sources: dict[str, Any], unit: str) -> list[str]:
    rows = []
    for name, source in sources.items():
        for part in ("prompt", "chosen", "rejected", "reply"):
            if f"{part}_tokens" in source["statistics"]:
                rows.append([name, part, source["statistics"][f"{part}_characters"], source["statistics"][f"{part}_tokens"]])
    if not rows:
        return []
    text = f"Means of what was kept (of at most {STATISTICS_ROWS} rows of a source); tokens are {unit}."
    return ["## Lengths", text, _table(["source", "part", "characters", "tokens"], rows)]


def _files(files: dict[str, Any]) -> list[str]:
    rows = [[f"`{name}`", f["rows"], f["prompts"], f"`{f['sha256']}`"] for name, f in files.items()]
    return ["## Files", _table(["file", "rows", "prompts", "sha256"], rows)]


def _contamination(told: dict[str, Any]) -> list[str]:
    if told["action"] == "off":
        return ["## Contamination", "Not checked: `decontaminate` is false."]
    if not told["benchmarks"]:
        return ["## Contamination", "Not checked: no benchmark's questions were given."]
    rows = []
    for benchmark, found in told["benchmarks"].items():
        for source, counts in found["by_source"].items():
            if counts["rows"]:
                share = f"{100 * counts['share']:.1f} %" + (" **flagged**" if counts["flagged"] else "")
                rows.append([benchmark, source, counts["rows"], f"{counts['questions']} of {found['questions']}", share])
    checked = ", ".join(
        f"{name} ({found['questions']} questions, sha256 {found['sha256'][:12]})" for name, found in told["benchmarks"].items()
    )
    what = "The rows below were removed." if told["removed"] else "The rows below were **kept**: `decontaminate` is report."
    text = (
        "Tulu 3's rule: a question is seen when more than half of its tokens lie in 8-grams that it shares with one prompt; a "
        f"source is flagged when it holds more than 2 % of a benchmark. {what if rows else 'No row was found.'} card.json has "
        f"the ids. Checked against: {checked}."
    )
    return ["## Contamination", text, _table(["benchmark", "source", "rows", "questions seen", "share"], rows) if rows else ""]


def _near_duplicates(told: dict[str, Any]) -> list[str]:
    text = f"{told['prompts']} prompts differ in more than case, punctuation and spacing"
    if told["threshold"] is None:
        text += "; prompts that are merely alike were not looked for (`near_duplicates` is null). "
    else:
        text += (
            f" and form {told['groups']} groups of like ones: word 5-grams of Jaccard similarity {told['threshold']:g} or more, "
            f"found by MinHash; {told['rows']} rows have a prompt that is like an earlier one. Every training prompt was then "
            f"compared with every held-out one exactly, which dropped {told['like_held_out']} more. card.json has ids. "
        )
    verified = (
        "Verified after the splits were made: no prompt and no group is in two of the files of pairs and prompts, and no "
        "demonstration (sft.jsonl) has a held-out one."
    )
    return ["## Duplicates", text + verified]


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
