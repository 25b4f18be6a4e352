"""The leaderboard's controls: each narrows or rearranges the table, and each stands in the URL."""

import re

import pytest

from db.models import Score
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
    sample = Sample.__new__(Sample)
    sample.registry, sample.judges = filled, {"gpt": 4}
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
    assert link.proto.page.endswith("compare") and link.proto.query_string == "a=quickstart%2Fiter-2&b=quickstart%2Fsft"


def test_the_link_to_copy_holds_every_filter(app, filled: Registry) -> None:  # noqa: F811
    test = app("leaderboard", filled, q="iter", by="MT-Bench")
    assert any("q=iter" in code.value and "by=MT-Bench" in code.value for code in test.code)


def test_the_notes_lead_to_the_judges_and_not_to_the_sandbox(app, filled: Registry) -> None:  # noqa: F811
    links = re.findall(r'href="judges\?judge=([^"]*)"', shown(app("leaderboard", filled)))
    assert links == ["gold%20reward%20model"]
