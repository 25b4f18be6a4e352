"""The compare page: what differs in the settings, length against outcome, parts, and two answers, marked where they differ."""

import re
from html import unescape

import pytest
from sqlalchemy import select

from dashboard import length_outcome
from dashboard.text_diff import WORDS, side_by_side
from db import samples
from db.differences import Differs, differences, evaluated_differently, made_differently
from db.models import Answer, AnswerSet, Checkpoint, Evaluation, Judgment, now
from db.registry import Registry
from evals.paired import compare_categories
from tests.sample_registry import Sample, fill
from tests.test_dashboard import HOSTILE, TAGS, app, shown, words  # noqa: F401  (app is a fixture)


@pytest.fixture
def judged(registry: Registry) -> Registry:
    """A run whose last two policies have ten AlpacaEval answers each, judged in two games, with different texts."""
    fill(registry)
    with registry.write() as session:
        for at, text in ((13, "the first says yes"), (19, "the second says yes and goes on")):
            for i in range(10):
                row = {"answer_set_id": at, "question_id": f"q{i}", "prompt": "Well?", "finish_reason": "stop"}
                session.add(Answer(**row, text=text * (1 + i)))
                for game in (1, 2):
                    value = 0.2 if at == 13 else 0.2 + 0.05 * i
                    raw = {"replies": [{"text": f"{HOSTILE[0]} game {game} of {at}"}]}
                    session.add(Judgment(evaluation_id=at, question_id=f"q{i}", game=game, value=value, raw=raw))
            evaluation = session.get_one(Evaluation, at)
            parts = {"maths": {"score": 10.0 + at, "prompts": 4}, "law": {"score": None, "prompts": 0}}
            evaluation.statistics = {"categories": parts}
        for row in session.scalars(select(Checkpoint)):
            row.provenance = {"program": "train.dpo", "settings": {"beta": 0.1, "seed": row.id}, "seconds": row.id}
    return registry


def test_the_page_tells_length_parts_and_both_orders(app, judged: Registry) -> None:  # noqa: F811
    test = app("compare", judged)
    html = shown(test)
    said = " ".join(words(html).split())
    assert "longer 10 9 1 0" in said, "every answer of the newer is longer, nine are better"
    assert "maths 29.0 23.0 +6.00 4" in said and "law" not in said
    assert "Settings that differ (1)" in [expander.label for expander in test.expander]
    assert "settings.seed 4 3" in said and "settings.beta" not in said
    assert re.search(r'<span class="only">second</span>', html) and '<span class="only">yes</span>' not in html
    judge = [code.value for code in test.code]
    assert [text for text in judge if "game 2 of" in text] == [f"{HOSTILE[0]} game 2 of 19", f"{HOSTILE[0]} game 2 of 13"]
    charts = [*test.get("vega_lite_chart"), *test.get("arrow_vega_lite_chart")]
    assert len(charts) == 1


def test_without_the_marks_the_texts_stand_as_they_are(app, judged: Registry) -> None:  # noqa: F811
    test = app("compare", judged)
    test.toggle(key="diff").set_value(False).run()
    assert 'class="only"' not in shown(test)
    assert any(code.value.startswith("the second says yes and goes on") for code in test.code)


def test_a_comparison_is_kept_until_one_of_the_two_is_judged_anew(app, judged: Registry) -> None:  # noqa: F811
    test = app("compare", judged)
    assert "+22.50" in words(shown(test))
    with judged.write() as session:
        for judgment in session.scalars(select(Judgment).where(Judgment.evaluation_id == 19)):
            judgment.value = 0.3
    assert "+22.50" in words(shown(test.run())), "what a comparison depends on has not changed its state"
    with judged.write() as session:
        session.get_one(Evaluation, 19).finished_at = now()
    assert "+10.00" in words(shown(test.run()))


def test_evaluations_that_may_not_be_compared_differ_in_named_keys(registry: Registry) -> None:
    sample = Sample(registry)
    a, b = sample.checkpoint("a", "third_party"), sample.checkpoint("b", "third_party")
    sample.score(a, "alpaca_eval", 40.0, judge="gpt", limit=50)
    sample.score(b, "alpaca_eval", 40.0)
    with registry.read() as session:
        keys = dict(session.execute(select(Checkpoint.name, Checkpoint.fingerprint)).tuples().all())
        found = evaluated_differently(session, keys["a"], keys["b"], "alpaca_eval")
        assert evaluated_differently(session, keys["a"], keys["b"], "mt_bench") == []
        assert made_differently(session, keys["a"], keys["b"]) == []
    assert [(one.key, one.first, one.second) for one in found] == [
        ("answers.limit", "50", "None"),
        ("judge.kind", "openai", "reward_model"),
        ("judge.name", "gpt-4.1", "gold reward model"),
    ]


def test_nested_settings_differ_key_by_key() -> None:
    found = differences({"a": {"x": 1, "y": {}}, "b": 2}, {"a": {"x": 1.5, "y": {"z": 1}}, "b": 2, "c": None})
    assert found[:2] == [Differs("a.x", "1", "1.5"), Differs("a.y", "{}", "–")]
    assert found[2:] == [Differs("a.y.z", "–", "1"), Differs("c", "–", "None")]


@pytest.mark.parametrize("payload", HOSTILE)
def test_marked_texts_are_inert_and_whole(payload: str) -> None:
    left, right = side_by_side(f"same {payload} end", "same other end")
    for html in (left, right):
        assert set(re.findall(r"</?([a-z0-9]+)", html)) <= TAGS
        assert not re.search(r"[\x1b\u202a-\u202e]", html)
    assert unescape(re.sub(r"<[^>]*>", "", right)) == "same other end"
    assert side_by_side("word " * WORDS, "word") is None, "too long to be compared while someone waits"


def test_a_thousand_questions_are_thinned_and_told_in_words() -> None:
    lengths = ({str(i): float(i) for i in range(1300)}, {str(i): 650.0 for i in range(1299)})
    values = ({str(i): float(i % 2) for i in range(1300)}, dict.fromkeys(map(str, range(1300)), 0.0))
    pairs = length_outcome.paired(lengths, values)
    assert len(pairs) == 1299, "only what both have"
    drawn = length_outcome.length_outcome(pairs, "a")["layer"][0]["data"]["values"]
    assert len(drawn) <= length_outcome.POINTS
    told = length_outcome.in_words(pairs, "a")
    for part in ("longer: better on 324 of 648", "as long: better on 0 of 1", "shorter: better on 325 of 650"):
        assert part in told


def test_the_length_of_an_answer_is_that_of_its_turns_per_sample(registry: Registry) -> None:
    sample = Sample(registry)
    sample.score(sample.checkpoint("m", "base"), "mt_bench", 5.0)
    with registry.write() as session:
        at = session.scalar(select(AnswerSet.id))
        for turn, draw in ((1, 0), (2, 0), (1, 1), (2, 1)):
            row = {"answer_set_id": at, "question_id": "q", "turn": turn, "sample": draw, "prompt": ""}
            session.add(Answer(**row, text="x" * (10 + draw)))
    with registry.read() as session:
        assert samples.answer_lengths(session, 1) == {"q": 21.0}


@pytest.fixture
def categorised(judged: Registry) -> Registry:
    """The same, the odd questions stored as maths and the even ones as law."""
    with judged.write() as session:
        for answer in session.scalars(select(Answer)):
            answer.category = ("law", "maths")[int(answer.question_id[1:]) % 2]
    return judged


def test_categories_are_tested_each_by_itself(app, categorised: Registry) -> None:  # noqa: F811
    with categorised.read() as session:
        found = {one.benchmark: one for one in compare_categories(session, (19, 13), "alpaca_eval")}
    assert found["maths"].difference.value == pytest.approx(25.0) and found["law"].difference.value == pytest.approx(20.0)
    assert [(one.difference.n, one.wins, one.ties, one.losses) for one in found.values()] == [(5, 4, 1, 0), (5, 5, 0, 0)]
    said = " ".join(words(shown(app("compare", categorised))).split())
    assert "maths underpowered +25.00" in said and said.index("maths underpowered") < said.index("law underpowered +20.00")
    assert "29.0 23.0" not in said, "the untested table of parts stands aside"


def test_without_stored_categories_nothing_is_tested(judged: Registry) -> None:
    with judged.read() as session:
        assert compare_categories(session, (19, 13), "alpaca_eval") == []


def test_samples_of_one_category(app, categorised: Registry) -> None:  # noqa: F811
    test = app("samples", categorised, evaluation="19")
    assert test.selectbox(key="category").options == ["law", "maths"]
    test.selectbox(key="category").set_value("maths").run()
    assert re.findall(r">q(\d)</a>", shown(test)) == ["1", "3", "5", "7", "9"]
    test.selectbox(key="category").set_value(None).run()
    assert len(re.findall(r">q\d</a>", shown(test))) == 10
