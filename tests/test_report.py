"""The leaderboard outside the browser: ranking, terminal tables, CSV, Markdown, JSON."""

import csv
import io
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dashboard import format as f
from dashboard import markup
from dashboard.export import footnotes, to_latex
from dashboard.ranking import board, comparable, letters
from db import views
from db.leaderboard import Row
from db.models import Evaluation, Score
from db.registry import Registry
from evals.comparison import compare
from evals.paired import Compared
from harness import comparing, report
from harness.console import BarReporter, Reporter
from tests.sample_registry import SCORES, STARTER, Sample, fill

HOSTILE = "=cmd|' /C calc'!A0 \x1b[31mred\u202e<img src=x onerror=alert(1)> ![x](http://evil.example/a) | `b` \n# head"


def read(registry: Registry, run: str | None = None) -> list[Row]:
    with registry.read() as session:
        return views.leaderboard(session, run=run)


def printed(renderable: object, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_table_shows_every_score_with_its_interval(registry: Registry, width: int) -> None:
    fill(registry)
    rows = read(registry)
    text = printed(report.Leaderboard(board(rows)), width)
    assert [row.kind for row in rows] == ["base", "sft", "iteration", "iteration"]
    for row in rows:
        for name, cell in row.cells.items():
            assert f.number(name, cell.value) in text
            assert f.interval(cell) in text, "never broken over two lines"
    assert max(len(line) for line in text.splitlines()) <= width
    assert "starter, not the benchmark" in " ".join(text.split())


def test_no_name_reaches_the_terminal_with_its_control_characters(registry: Registry) -> None:
    sample = Sample(registry)
    run = sample.run(HOSTILE)
    checkpoint = sample.checkpoint(HOSTILE, "third_party")
    sample.score(checkpoint, "human_eval", 12.5, version=HOSTILE)
    sample.stage(run, HOSTILE, "failed", error=HOSTILE, log=HOSTILE)
    with registry.read() as session:
        state = views.run_status(session, HOSTILE)
    text = printed(report.Leaderboard(board(read(registry)))) + printed(report.status_table(state))
    assert "calc" in text
    assert not {"\x1b", "\u202e", "\r"} & set(text)


@pytest.mark.parametrize("name", ["org/model[/x]", "run[sft]", ":smile:", HOSTILE])
def test_a_comparison_prints_names_as_they_are(name: str) -> None:
    values = {"1": 1.0, "2": 0.0}
    found = Compared(name, "b", compare({name: (values, values)}, {name: "percent"}), {f"{name} too": name})
    text = printed(comparing.as_table(found), 400)
    assert f.plain(f"{name} against b") in text and text.count(f.plain(name)) == 4
    assert not {"\x1b", "\u202e"} & set(text)


def test_a_stage_is_reported_under_its_whole_name(capsys: pytest.CaptureFixture[str]) -> None:
    node = SimpleNamespace(name="answer[sft]")
    reporter = Reporter()
    reporter.plan(SimpleNamespace(title="x[/y] :smile:", nodes={"a": node}))
    reporter.started(node)
    reporter.progress(node, 1, 2, "[/x]")
    reporter.failed(node, "")
    plan, started, progress, failed = capsys.readouterr().out.splitlines()
    assert plan == "x[/y] :smile:: 1 stages"
    assert (started, progress, failed) == ("  answer[sft] ...", "  answer[sft]: 1/2 [/x]", "  answer[sft]: failed")


def test_a_bar_stands_under_the_stage_s_whole_name() -> None:
    node, reporter = SimpleNamespace(name="answer[sft]"), BarReporter()
    try:
        reporter.started(node)
        reporter.progress(node, 1, 2, "[/x]")
        text = printed(reporter._bars.get_renderable())
    finally:
        reporter.close()
    assert "answer[sft]" in text and "1/2 [/x]" in text


def test_csv_keeps_numbers_and_disarms_formulas(registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint(HOSTILE, "third_party"), "human_eval", 12.5, version="@SUM(A1)")
    rows = read(registry)
    lines = rows_of(report.to_csv(board(rows)))
    assert [float(line["held_out_reward"]) for line in lines[:4]] == list(SCORES["held_out_reward"][-1])
    assert lines[0]["held_out_reward"] == "-0.61"
    assert lines[-1]["checkpoint"] == "'" + HOSTILE
    assert lines[-1]["human_eval_version"] == "'@SUM(A1)"
    for line in lines:
        for value in line.values():
            assert not value.startswith(("=", "+", "@")) and (not value.startswith("-") or float(value) < 0)


def test_csv_of_an_absent_or_withheld_score_is_empty(registry: Registry) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint("a", "base"), "human_eval", None, n_failed=3)
    sample.score(sample.checkpoint("b", "base"), "truthful_qa", 40.0)
    first, second = rows_of(report.to_csv(board(read(registry))))
    assert (first["human_eval"], first["human_eval_n_failed"], first["truthful_qa"]) == ("", "3", "")
    assert (second["human_eval"], second["truthful_qa"]) == ("", "40.0")


def test_a_name_cannot_break_out_of_its_markdown_cell(registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint(HOSTILE, "third_party"), "human_eval", 12.5)
    table = report.to_markdown(board(read(registry))).split("\n\n")[0].splitlines()
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert len(table) == 2 + 5 and len(set(bars)) == 1
    assert r"\<img" in table[-1] and r"\!\[x\](" in table[-1] and "\x1b" not in table[-1]


def test_json_holds_every_cell_and_says_what_it_is(registry: Registry) -> None:
    fill(registry)
    rows = read(registry)
    found = json.loads(json.dumps(report.to_json(board(rows))))
    assert [row["checkpoint"] for row in found] == [row.name for row in rows]
    for row, record in zip(rows, found, strict=True):
        assert set(record["scores"]) == set(row.cells) == set(SCORES)
        for name, cell in row.cells.items():
            score = record["scores"][name]
            assert (score["value"], score["low"], score["high"], score["n"]) == (cell.value, cell.low, cell.high, cell.n)
            assert score["starter"] and score["judge"] == cell.judge


def test_no_rows_give_an_empty_export_with_its_header() -> None:
    assert report.to_json(board([])) == []
    assert report.to_csv(board([])).startswith("checkpoint,rank_low,rank_high,section,kind,")
    assert report.to_markdown(board([])).startswith("| Checkpoint |")


def test_scores_of_different_judge_data_or_settings_are_never_ranked_together(registry: Registry) -> None:
    sample = fill(registry)
    for index, fields in enumerate(({"judge": "gpt"}, {"version": "official@abc"}, {"limit": 4}, {})):
        sample.score(sample.checkpoint(f"other-{index}", "third_party"), "alpaca_eval", 50.0, **fields)
    sample.checkpoint("never evaluated", "third_party")
    table = board(read(registry), "alpaca_eval")
    together = [
        {(line.cells["alpaca_eval"].group, line.cells["alpaca_eval"].metric) for line in s.lines} for s in table.sections[:-1]
    ]
    assert all(len(kinds) == 1 for kinds in together) and len(together) == 4
    assert [len(section.lines) for section in table.sections] == [1, 5, 1, 1, 1]
    assert table.sections[0].group.version == "official@abc", "the real benchmark stands before the starter set"
    assert table.sections[-1].group is None and table.sections[-1].lines[0].rank is None
    assert {table.letter(line.cells["alpaca_eval"]) for line in table.lines if line.cells} == {"a", "b", "c", "d"}


def test_what_is_said_of_columns_that_are_left_out_is_left_out_too(registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint("other", "third_party"), "alpaca_eval", 50.0, judge="gpt")
    with registry.write() as session:
        session.get_one(Evaluation, 1).flags = [{"flag": "canary", "reason": "constant"}]
    rows = read(registry)
    whole, part = board(rows), board(rows, columns=["mt_bench"])
    for said in ("different letters", "flagged", "AlpacaEval"):
        assert said in report.to_markdown(whole) and said not in report.to_markdown(part)
    assert {name for record in report.to_json(part) for name in record["scores"]} == {"mt_bench"}


def test_two_metrics_of_one_group_are_ranked_apart(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint("raw", "base"), "alpaca_eval", 30.0)
    monkeypatch.setitem(SCORES, "alpaca_eval", ("length_controlled_winrate", *SCORES["alpaca_eval"][1:]))
    sample.score(sample.checkpoint("controlled", "base"), "alpaca_eval", 20.0)
    sections = board(read(registry), "alpaca_eval").sections
    assert [[line.row.name for line in section.lines] for section in sections] == [["controlled"], ["raw"]]
    assert {line.rank for section in sections for line in section.lines} == {(1, 1)}
    # Where another column sorts, the two stand in one section: they have letters, scales and notes of their own.
    for name in ("raw", "controlled"):
        row = next(row for row in read(registry) if row.name == name)
        sample.score(row.checkpoint_id, "mt_bench", 5.0)
    table = board(read(registry), "mt_bench")
    assert sorted(table.letter(line.cells["alpaca_eval"]) for line in table.lines) == ["a", "b"]
    assert {metric for _, _, metric in markup._scales(table)} == {"score"}, "one cell each: nothing to compare"
    (note,) = [note for note in footnotes(table) if note.startswith("AlpacaEval 2 (a)")]
    assert "LC win rate" in note and "differ in judge, data, settings or metric" in footnotes(table)[-1]
    kept = [line.cells["alpaca_eval"] for line in comparable(table).lines if "alpaca_eval" in line.cells]
    assert len(kept) == 1 and len(comparable(table).kinds["alpaca_eval"]) == 1


def test_bars_of_two_metrics_of_one_group_have_scales_of_their_own(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(registry)
    for value in (30.0, 40.0):
        sample.score(sample.checkpoint(f"raw {value}", "base"), "alpaca_eval", value)
    monkeypatch.setitem(SCORES, "alpaca_eval", ("length_controlled_winrate", *SCORES["alpaca_eval"][1:]))
    for value in (60.0, 75.0):
        sample.score(sample.checkpoint(f"controlled {value}", "base"), "alpaca_eval", value)
    html = markup.leaderboard(board(read(registry), "alpaca_eval"), "alpaca_eval")
    bars = re.findall(r'class="bar" style="--l:(\d+)%', html)
    assert bars == ["26", "0", "19", "0"], "from the lowest end of its own metric to the highest"


def test_downloads_have_the_ranks_and_sections_of_the_page(registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint("judged_by & another", "third_party"), "alpaca_eval", 99.0, judge="gpt", n_failed=1)
    sample.score(sample.checkpoint("unscored", "third_party"), "mt_bench", 5.0)
    table = board(read(registry), "alpaca_eval")
    lines = rows_of(report.to_csv(table))
    assert [(line["rank_low"], line["rank_high"]) for line in lines] == [("1", "4")] * 4 + [("1", "1"), ("", "")]
    assert len({line["section"] for line in lines}) == 3
    assert lines[4]["section"].startswith("Ranked together: AlpacaEval 2") and "another judge" in lines[4]["section"]
    assert lines[5]["section"] == "Not ranked: no AlpacaEval 2 score"
    assert lines[0]["alpaca_eval_complete"] == "True" and lines[0]["alpaca_eval_method"] == "percentile bootstrap over questions"
    last = report.to_json(table)[5]
    assert (last["rank_low"], last["rank_high"], last["section"]) == (None, None, lines[5]["section"])
    markdown = report.to_markdown(table).split("\n\n")[0].splitlines()
    assert len(markdown) == 2 + 6 + 3 and markdown[0].startswith("| Checkpoint | Rank | Kind |")
    assert [line for line in markdown if "Not ranked: no AlpacaEval 2 score" in line] == [markdown[-2]]
    assert " 1–4 |" in markdown[3] and "1 failed" in markdown[8] and "Date |" in markdown[0]
    latex = to_latex(table)
    assert latex.count("\\multicolumn{11}{l}") == 3 and latex.count("\\midrule") == 3 and "judged\\_by \\& another" in latex
    widths = {
        line.count(" & ") for line in latex.splitlines() if " & " in line and "multicolumn" not in line and "% " not in line
    }
    assert widths == {10}
    sample.checkpoint("*starred", "third_party")
    one = board(read(registry))
    assert "{*}starred" in to_latex(one), "or the line's end would take it for its own star"
    assert {line["section"] for line in rows_of(report.to_csv(one))} == {""} and "multicolumn" not in to_latex(one)


def test_markdown_has_the_columns_and_failures_of_the_page_each_once(registry: Registry) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint("some failed", "base"), "alpaca_eval", 30.0, n_failed=1)
    sample.score(sample.checkpoint("too many failed", "base"), "alpaca_eval", None, n_failed=3)
    with registry.write() as session:
        second = Score(evaluation_id=1, metric="avg_length", value=1234.0, n=16, n_failed=0, method="mean")
        session.add(second)
    with registry.read() as session:
        rows = views.leaderboard(session, metrics=["alpaca_eval/avg_length"])
    head, _, some, many = report.to_markdown(board(rows)).split("\n\n")[0].splitlines()
    assert "| AlpacaEval 2 (starter" in head and "| AlpacaEval 2, mean characters (starter" in head, "told apart by its metric"
    assert some.count("failed") == 2 and "; 1 failed |" in some, "in the name and in the cell"
    assert "| withheld (3 failed) |" in many, "not said twice"
    assert "Dollars" not in head and "| Date |" in head, "nothing was paid: the page has no such column either"
    rows[0].micro_dollars = 5_000_000
    head, rule, some, many = report.to_markdown(board(rows)).split("\n\n")[0].splitlines()
    assert "| Dollars | Date |" in head and "| $5.00 |" in some
    assert len({line.count(" |") for line in (head, rule, some, many)}) == 1


def test_the_group_that_the_reader_names_comes_first(registry: Registry) -> None:
    sample = fill(registry)
    for row in read(registry):
        sample.score(row.checkpoint_id, "alpaca_eval", 10.0, judge="gpt", limit=8)
    several = views.groups(read(registry))["alpaca_eval"]
    for group in several:
        table = board(read(registry), "alpaca_eval", group.key)
        assert {line.cells["alpaca_eval"].group for line in table.lines} == {group.key}


def test_a_slice_keeps_the_ranks_of_the_whole(registry: Registry) -> None:
    sample = fill(registry)
    sample.score(sample.checkpoint("other", "third_party"), "alpaca_eval", 50.0, judge="gpt")
    table = board(read(registry), "alpaca_eval")
    parts = [table.slice(start, start + 2) for start in (0, 2, 4)]
    assert [line for part in parts for line in part.lines] == table.lines
    assert [len(part.lines) for part in parts] == [2, 2, 1]
    said = markup.leaderboard(parts[2], "alpaca_eval")
    assert "Not ranked with those above: another judge." in said, "also where the slice holds nothing else"
    assert "Ranked together" in markup.leaderboard(parts[1], "alpaca_eval")


def test_the_status_table_shows_state_progress_and_errors(registry: Registry) -> None:
    sample = fill(registry)
    run = sample.run("second", "failed")
    sample.stage(run, "generate[1]", "running", 1, done=32, total=48, unit="prompts")
    sample.stage(run, "annotate[1]", "failed", 1, attempts=3, error="CUDA out of memory\nTried to allocate", log="x.log")
    with registry.read() as session:
        text, finished = (printed(report.status_table(views.run_status(session, name))) for name in ("second", "quickstart"))
    assert "32 / 48 prompts" in text
    assert "CUDA out of memory" in text and "Tried to allocate" in text and "x.log" in text
    assert "dpo[2]" in finished, "square brackets are not taken for markup"
    assert "best checkpoint: quickstart/iter-2 (highest held_out_reward)" in finished
    assert "after iteration 2, keep_best: continue: iteration 2 leads" in finished


def test_starter_data_are_named_as_such() -> None:
    assert f.data_version(STARTER) == "starter, not the benchmark"
    assert f.data_version("v0.1@abc") == "v0.1@abc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.04, "0.0 s"), (9.94, "9.9 s"), (48, "48 s"), (119, "119 s"), (133, "2 min"), (7140, "119 min")]
    + [(7200, "2 h 00 min"), (11100, "3 h 05 min"), (187200, "2 d 04 h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert f.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (0, "0 B"), (1536, "1.5 KiB"), (3_221_225_472, "3.0 GiB")])
def test_sizes(count: int | None, text: str) -> None:
    assert f.size(count) == text


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_score_reads_as_the_number_it_rounds(value: float) -> None:
    text = f.number("alpaca_eval", value)
    if text == f.ABSENT:
        assert value != value or abs(value) == float("inf")
    else:
        assert float(text.replace("\u2212", "-")) == float(f"{value:.1f}") and text != "\u22120.0"


@given(st.text())
def test_plain_text_is_one_line_without_control_characters(text: str) -> None:
    plain = f.plain(text)
    assert len(plain) == len(text) and len(plain.splitlines()) <= 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain)


@given(st.integers(0, 2000))
def test_letters_are_distinct(index: int) -> None:
    assert letters(index) != letters(index + 1) and letters(index).isalpha()
