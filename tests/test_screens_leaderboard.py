"""The leaderboard's controls: each narrows or rearranges the table, and each stands in the URL."""

import csv
import io
import json
import re

import pytest
from sqlalchemy import select

from core.fingerprint import digest
from db.models import AnswerSet, Judge, Score
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)


def table(test) -> str:
    """The leaderboard alone, without what stands below it."""
    html = shown(test)
    start = html.index('<table class="board"')
    return html[start : html.index("</table>", start)]


def heads(html: str) -> list[str]:
    """Titles of the columns with their metric."""
    return [words(cell).strip() for cell in re.findall(r"<th scope=\"col\".*?</th>", html)]


def names(html: str) -> list[str]:
    return re.findall(r'class="name"><a[^>]*>([^<]*)</a>', html)


def beside(registry: Registry, evaluation: int, metric: str, value: float) -> None:
    """A second metric of an evaluation."""
    with registry.write() as session:
        row = Score(evaluation_id=evaluation, metric=metric, value=value, low=value - 2, high=value + 2, n=16, n_failed=0)
        row.method = "percentile bootstrap over questions"
        session.add(row)


def again(registry: Registry) -> Sample:
    """A writer for a registry whose judges are there already."""
    sample = Sample.__new__(Sample)
    sample.registry, sample.judges = registry, {"gold": 1, "gpt": 4}
    return sample


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Label, and key, of a download button -> the function that makes its file, as the last page gave it to the button."""
    streamlit, found = pytest.importorskip("streamlit", reason="streamlit is not installed"), {}
    button = streamlit.download_button

    def kept(label, data, *arguments, **options):
        found[label] = found[options["key"]] = data
        return button(label, data, *arguments, **options)

    monkeypatch.setattr(streamlit, "download_button", kept)
    return found


@pytest.fixture
def filled(registry: Registry) -> Registry:
    fill(registry)
    return registry


def test_search_finds_names_bases_and_fingerprints(app, filled: Registry) -> None:  # noqa: F811
    assert len(names(shown(app("leaderboard", filled)))) == 4
    assert names(shown(app("leaderboard", filled, q="ITER-2"))) == ["quickstart/iter-2"]
    assert len(names(shown(app("leaderboard", filled, q="quickstart/base")))) == 4, "the base of a line finds all of it"
    assert "No checkpoint matches" in words(shown(app("leaderboard", filled, q="nothing of this name")))


def test_a_row_says_its_base_and_the_columns_can_be_chosen(app, filled: Registry) -> None:  # noqa: F811
    test = app("leaderboard", filled, columns=["TruthfulQA", "MT-Bench"])
    html = table(test)
    assert "iteration 2 from quickstart/base" in words(html)
    assert [head.split()[0] for head in heads(html)[2:4]] == ["MT-Bench", "TruthfulQA"], "in the columns' own order"
    assert "AlpacaEval" not in html


def test_the_figures_that_papers_report_stand_beside_the_headlines(app, filled: Registry) -> None:  # noqa: F811
    beside(filled, 5, "mc1", 33.3)
    beside(filled, 1, "avg_length", 1234.0)
    html = table(app("leaderboard", filled))
    assert any("MC1" in head for head in heads(html)) and "33.3" in html
    assert "1234" not in html
    assert "1234" in table(app("leaderboard", filled, columns=["AlpacaEval 2, mean characters"]))


def test_style_control_takes_the_place_of_the_plain_score(app, filled: Registry) -> None:  # noqa: F811
    beside(filled, 2, "style_controlled_score", 22.2)
    assert "22.2" not in table(app("leaderboard", filled))
    html = table(app("leaderboard", filled, style="true"))
    arena = [head for head in heads(html) if head.startswith("Arena-Hard")]
    assert len(arena) == 1 and "style control" in arena[0] and "22.2" in html


def test_one_judge_and_only_what_can_be_compared(app, filled: Registry) -> None:  # noqa: F811
    sample = again(filled)
    sample.score(sample.checkpoint("other/model", "third_party"), "alpaca_eval", 50.0, judge="gpt")
    every = shown(app("leaderboard", filled))
    assert "Not ranked with those above: another judge." in words(every)
    test = app("leaderboard", filled, comparable="true")
    assert "other/model" not in names(shown(test)) and len(names(shown(test))) == 4
    assert any("1 checkpoint hidden" in caption.value for caption in test.caption)
    only = table(app("leaderboard", filled, judge="gpt-4.1"))
    assert "50.0" in only and "41.9" not in only, "no score of the other judge"
    assert "12.5" in only, "what no judge judged stands"


def test_two_ticked_rows_lead_to_their_comparison(app, filled: Registry) -> None:  # noqa: F811
    assert not app("leaderboard", filled, tick=["quickstart/iter-2"]).get("page_link")
    (link,) = app("leaderboard", filled, tick=["quickstart/iter-2", "quickstart/sft"]).get("page_link")
    assert (
        link.proto.page.endswith("compare")
        and link.proto.query_string == f"a={digest('quickstart/iter-2')}&b={digest('quickstart/sft')}"
    )


def test_the_link_to_copy_holds_every_filter(app, filled: Registry) -> None:  # noqa: F811
    test = app("leaderboard", filled, q="iter", by="MT-Bench")
    assert any("q=iter" in code.value and "by=MT-Bench" in code.value for code in test.code)


def test_the_notes_lead_to_the_judges_and_not_to_the_sandbox(app, filled: Registry) -> None:  # noqa: F811
    links = re.findall(r'href="judges\?judge=([^"]*)"', shown(app("leaderboard", filled)))
    assert links == ["gold%20reward%20model"]


def test_what_is_downloaded_is_what_is_shown(app, filled: Registry, files: dict) -> None:  # noqa: F811
    sample = again(filled)
    other = sample.checkpoint("other/model", "third_party")
    sample.score(other, "alpaca_eval", 11.3)
    sample.score(other, "alpaca_eval", 93.7, judge="gpt", limit=4)
    sample.score(other, "mt_bench", 8.76, judge="gpt")
    test = app("leaderboard", filled, by="AlpacaEval 2")
    assert "11.3" in table(test) and "8.76" in table(test)
    select = test.selectbox(key="group-alpaca_eval")
    test = select.set_value(next(label for label in select.options if "gpt-4.1" in label)).run()
    html = table(test)
    assert names(html)[0] == "other/model" and "93.7" in html and "11.3" not in html
    lines = list(csv.DictReader(io.StringIO(files["CSV"]())))
    assert [line["checkpoint"] for line in lines] == names(html)
    assert (lines[0]["alpaca_eval"], lines[0]["alpaca_eval_judge"]) == ("93.7", "gpt-4.1")
    assert [row["checkpoint"] for row in json.loads(files["JSON"]())] == names(html)
    for file in files.values():
        assert "93.7" in file() and "11.3" not in file()

    html = table(app("leaderboard", filled, by="AlpacaEval 2", comparable="true"))
    assert "other/model" in html and "8.76" not in html
    for file in files.values():
        assert "11.3" in file() and "8.76" not in file()
    html = table(app("leaderboard", filled, columns=["AlpacaEval 2"]))
    assert "MT-Bench" not in html and set(json.loads(files["JSON"]())[0]["scores"]) == {"alpaca_eval"}


def test_groups_that_differ_in_the_judge_s_prompt_alone_can_each_be_chosen(app, filled: Registry) -> None:  # noqa: F811
    with filled.write() as session:
        twin = Judge(key="another prompt", name="gpt-4.1", kind="openai", config={})
        session.add(twin)
    sample = again(filled)
    sample.judges["twin"] = twin.id
    for name, judge in (("one/model", "gpt"), ("two/model", "twin")):
        sample.score(sample.checkpoint(name, "third_party"), "alpaca_eval", 50.0, judge=judge)
    test = app("leaderboard", filled, by="AlpacaEval 2")
    first = set()
    for label in test.selectbox(key="group-alpaca_eval").options:
        chosen = app("leaderboard", filled, **{"by": "AlpacaEval 2", "group-alpaca_eval": label})
        first.add(names(table(chosen))[0])
    assert first == {"quickstart/iter-2", "one/model", "two/model"}


def cells_of(html: str, name: str) -> list[tuple[str, str]]:
    """(tooltip, what is shown) of each score in the line of `name`."""
    line = html[html.index(f">{name}<") :].partition("</tr>")[0]
    return [(title, words(cell)) for title, cell in re.findall(r'<td title="([^"]*)">(.*?)</td>', line)]


def test_cells_of_different_numbers_of_questions_each_say_theirs(app, filled: Registry) -> None:  # noqa: F811
    assert "n 16" in heads(table(app("leaderboard", filled)))[2], "one number for all stands in the column's head"
    sample = again(filled)
    sample.score(sample.checkpoint("other/model", "third_party"), "alpaca_eval", 50.0, judge="gpt")
    with filled.write() as session:
        session.scalars(select(AnswerSet).order_by(AnswerSet.id.desc())).first().n_questions = 805
    html = table(app("leaderboard", filled))
    assert " n " not in heads(html)[2]
    assert cells_of(html, "other/model")[0][1].split()[-2:] == ["n", "805"]
    assert "n 16" in " ".join(cells_of(html, "quickstart/sft")[0][1].split())
    assert " n " not in cells_of(html, "quickstart/sft")[2][1], "MT-Bench: its head says it"


def test_a_published_score_without_an_interval_says_so(app, filled: Registry, files: dict) -> None:  # noqa: F811
    sample = again(filled)
    with filled.write() as session:
        theirs = Judge(key="published", name="gpt-4", kind="published", config={})
        session.add(theirs)
    sample.judges["theirs"] = theirs.id
    bare, whole = (sample.checkpoint(name, "published", source="published") for name in ("paper/bare", "paper/whole"))
    sample.score(bare, "mt_bench", 8.99, judge="theirs", low=None, high=None)
    sample.score(whole, "mt_bench", 7.93, judge="theirs")
    with filled.write() as session:
        session.scalars(select(AnswerSet).order_by(AnswerSet.id.desc())).first().n_questions = 0
    page = shown(app("leaderboard", filled, by="MT-Bench"))
    ((said, seen),) = cells_of(page, "paper/bare")
    assert "8.99" in seen and "[" not in seen and said.endswith("; no interval published")
    ((said, seen),) = cells_of(page, "paper/whole")
    assert "[7.03, 8.83]" in seen and "no interval" not in said
    assert "n 0" not in " ".join(seen.split()), "the table did not say of how many questions it is"
    assert "1 of 2 with no interval published" in words(page) and "1 of 2 with no interval published" in files["Markdown"]()
