"""The compare page: what differs in the settings, length against outcome, parts, and two answers, marked where they differ."""

import re
from html import unescape

import pytest
from sqlalchemy import select

from core.fingerprint import digest
from dashboard import length_outcome
from dashboard.comparison_table import EXPLAINED, NOTHING_SHARED, comparison_table, verdict_scale
from dashboard.text_diff import WORDS, side_by_side
from db import samples
from db.differences import Differs, differences, evaluated_differently, made_differently
from db.models import Answer, AnswerSet, Checkpoint, Evaluation, Judgment, now
from db.registry import Registry
from evals.benchmark import BENCHMARKS
from evals.comparison import compare
from evals.paired import Compared, compare_categories
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
    drawn = length_outcome.length_outcome(pairs, "a", "verdict, 0 to 1")["layer"][0]["data"]["values"]
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


def said_by(test) -> str:
    """The page's words, blanks as one."""
    return " ".join(words(shown(test)).split())


def address(test) -> dict[str, str]:
    """The page's query, one value a name."""
    return {name: value if isinstance(value, str) else value[-1] for name, value in test.query_params.items()}


def shown_pair(test) -> tuple[str, str]:
    """(first, second) by fingerprint, as the widgets show them; the address must say the same."""
    pair = tuple(test.selectbox(key=side).value for side in "ab")
    assert pair == tuple(address(test)[side] for side in "ab")
    return pair


def keys(*names: str) -> tuple[str, ...]:
    return tuple(digest(f"quickstart/{name}") for name in names)


def namesake(sample: Sample, name: str) -> str:
    """Another checkpoint of that name, evaluated; its fingerprint."""
    row = sample.checkpoint(f"{name} to be", "third_party")
    sample.score(row, "alpaca_eval", 50.0)
    with sample.registry.write() as session:
        session.get_one(Checkpoint, row).name = name
    return digest(f"{name} to be")


def test_two_without_a_benchmark_in_common_say_so(app, registry: Registry) -> None:  # noqa: F811
    sample = Sample(registry)
    parent = sample.checkpoint("old", "base")
    sample.score(parent, "alpaca_eval", 40.0)
    sample.score(sample.checkpoint("new", "sft", parent_id=parent), "alpaca_eval", 40.0, complete=False)
    test = app("compare", registry)
    assert NOTHING_SHARED[0] in words(shown(test))
    assert "harness eval CHECKPOINT --benchmarks BENCHMARK" in [code.value for code in test.code]
    assert not test.header and EXPLAINED not in [caption.value for caption in test.caption]
    assert "Settings that differ (0)" in [expander.label for expander in test.expander]
    assert NOTHING_SHARED[0] in comparison_table(Compared("a", "b", [], {})), "in the exported file too"


def test_the_address_holds_fingerprints_also_of_the_pair_that_nobody_chose(app, registry: Registry) -> None:  # noqa: F811
    sample = fill(registry)
    test = app("compare", registry)
    assert shown_pair(test) == keys("iter-2", "iter-1")
    copied = {side: address(test)[side] for side in "ab"}
    namesake(sample, "quickstart/iter-2")
    test = app("compare", registry, **copied)
    assert shown_pair(test) == keys("iter-2", "iter-1"), "another of the same name changes nothing"


def test_names_in_the_address_become_fingerprints(app, registry: Registry) -> None:  # noqa: F811
    sample = fill(registry)
    assert shown_pair(app("compare", registry, a="quickstart/iter-1")) == keys("iter-1", "sft")
    assert shown_pair(app("compare", registry, a="quickstart/iter-2", b="quickstart/sft")) == keys("iter-2", "sft")
    assert shown_pair(app("compare", registry, b="quickstart/iter-2")) == keys("iter-1", "iter-2"), "not with itself"
    other = namesake(sample, "quickstart/iter-2")
    label = f"quickstart/iter-2 ({other[:8]})"
    assert shown_pair(app("compare", registry, a=label)) == (other, *keys("iter-2")), "as the leaderboard's link gives it"


def test_a_name_of_several_or_of_none_is_not_guessed(app, registry: Registry) -> None:  # noqa: F811
    sample = fill(registry)
    namesake(sample, "quickstart/iter-2")
    for asked, told in (
        ("quickstart/iter-2", "2 checkpoints are called quickstart/iter-2; choose one above."),
        (HOSTILE[0], f"There is no evaluated checkpoint {HOSTILE[0]}; choose one above."),
    ):
        test = app("compare", registry, a=asked, b=keys("sft")[0])
        assert told in said_by(test) and "<script" not in shown(test)
        assert "is not compared" not in shown(test) and address(test)["a"] == asked
        assert test.selectbox(key="a").value is None and test.selectbox(key="b").value == keys("sft")[0]
        test.selectbox(key="a").set_value(keys("iter-1")[0]).run()
        assert shown_pair(test) == keys("iter-1", "sft") and "is not compared" in shown(test)
    test = app("compare", registry, a="quickstart/iter-1", b="gone")
    assert "There is no evaluated checkpoint gone" in said_by(test) and test.selectbox(key="a").value == keys("iter-1")[0]
    test = app("compare", registry, a="quickstart/iter-1", b="quickstart/iter-1")
    assert "Both are the same checkpoint" in said_by(test)


def test_another_first_checkpoint_is_compared_with_its_own_parent(app, registry: Registry) -> None:  # noqa: F811
    fill(registry)
    test = app("compare", registry)
    test.selectbox(key="b").set_value(keys("base")[0]).run()
    assert shown_pair(test) == keys("iter-2", "base")
    assert shown_pair(test.run()) == keys("iter-2", "base"), "a choice stays"
    test.selectbox(key="a").set_value(keys("iter-1")[0]).run()
    assert shown_pair(test) == keys("iter-1", "sft")
    test.selectbox(key="a").set_value(keys("sft")[0]).run()
    assert shown_pair(test) == keys("sft", "base")


def test_by_default_a_policy_and_its_parent_stand_there(app, registry: Registry) -> None:  # noqa: F811
    sample = fill(registry)
    unmeasured = sample.checkpoint("unmeasured", "base")
    for name, kind, fields in (
        ("orphan", "third_party", {"parent_id": unmeasured}),
        ("published", "published", {"source": "published"}),
        ("canary: constant", "canary", {}),
    ):
        sample.score(sample.checkpoint(name, kind, **fields), "alpaca_eval", 50.0)
    assert shown_pair(app("compare", registry)) == keys("iter-2", "iter-1")


def test_without_a_measured_parent_published_rows_and_canaries_come_last(app, registry: Registry) -> None:  # noqa: F811
    sample = Sample(registry)
    for name, kind, source in (
        ("one", "third_party", "trained"),
        ("two", "third_party", "imported"),
        ("published", "base", "published"),
        ("canary", "canary", "trained"),
    ):
        sample.score(sample.checkpoint(name, kind, source=source), "alpaca_eval", 50.0)
    assert shown_pair(app("compare", registry)) == (digest("two"), digest("one"))
    assert shown_pair(app("compare", registry, a="published")) == (digest("published"), digest("two"))


def test_the_unit_of_a_verdict_is_said(app, judged: Registry) -> None:  # noqa: F811
    test = app("compare", judged)
    assert "Question quickstart/iter-2 (verdict, 0 to 1) quickstart/iter-1 (verdict, 0 to 1) Difference" in said_by(test)
    (chart,) = [*test.get("vega_lite_chart"), *test.get("arrow_vega_lite_chart")]
    assert "difference, 0 to 1" in chart.proto.spec
    units = ("mt_bench", "held_out_reward", "human_eval")
    assert [verdict_scale(BENCHMARKS[name].unit) for name in units] == ["rating, 1 to 10", "reward", "verdict, 0 to 1"]
    assert verdict_scale("unknown") == "verdict"


def add_answers(registry: Registry, at: int, answers: dict[tuple[int, int], str]) -> None:
    """Further answers to the question that differs most: {(turn, sample): text}."""
    with registry.write() as session:
        for (turn, draw), text in answers.items():
            row = {"answer_set_id": at, "question_id": "q9", "turn": turn, "sample": draw, "prompt": "Well?"}
            session.add(Answer(**row, text=text))


def test_answers_stand_beside_those_of_their_own_turn_and_sample(app, judged: Registry) -> None:  # noqa: F811
    add_answers(judged, 19, {(1, 1): "ours again", (2, 0): "ours then"})
    add_answers(judged, 13, {(2, 0): "theirs then", (2, 1): "theirs last"})
    test = app("compare", judged)
    test.toggle(key="diff").set_value(False).run()
    ours, theirs = "quickstart/iter-2", "quickstart/iter-1"
    said = said_by(test)
    assert f"{ours}, sample 1 0 tokens" in said and f"{theirs}, sample 1 no such answer" in said
    assert f"{ours}, turn 2, sample 1 no such answer" in said and f"{theirs}, turn 2, sample 1 0 tokens" in said
    assert f"{ours}, turn 2 0 tokens" in said and f"{theirs}, turn 2 0 tokens" in said
    texts = [code.value for code in test.code]
    assert [text for text in texts if text.startswith(("ours", "theirs"))] == [
        "ours again",
        "ours then",
        "theirs then",
        "theirs last",
    ]


def test_a_verdict_without_its_answer_is_shown_without_a_link(app, judged: Registry) -> None:  # noqa: F811
    with judged.write() as session:
        for answer in session.scalars(select(Answer).where(Answer.answer_set_id == 13, Answer.question_id == "q9")):
            session.delete(answer)
    test = app("compare", judged)
    assert "quickstart/iter-1 no such answer" in said_by(test) and "q9 0.65 0.20 +0.45" in said_by(test)


def test_answers_too_long_to_be_marked_are_called_so(app, judged: Registry) -> None:  # noqa: F811
    told = "These answers are too long for what differs to be marked."
    test = app("compare", judged)
    assert told not in [caption.value for caption in test.caption]
    with judged.write() as session:
        for answer in session.scalars(select(Answer).where(Answer.question_id == "q9")):
            answer.text = "word " * WORDS
    assert told in [caption.value for caption in test.run().caption]
    test.toggle(key="diff").set_value(False).run()
    assert told not in [caption.value for caption in test.caption]


def test_what_is_tested_is_named_where_it_is_not_the_headline() -> None:
    values = {"1": 1.0, "2": 0.0}
    names = ("alpaca_eval", "arena_hard")
    found = Compared("a", "b", compare({name: (values, values) for name in names}, dict.fromkeys(names, "percent")), {})
    assert "AlpacaEval 2<small>raw win rate, not length-controlled</small>" in comparison_table(found)
    assert comparison_table(found).count("raw win rate") == 1


def test_two_of_one_name_are_told_apart_in_the_tables(app, judged: Registry) -> None:  # noqa: F811
    with judged.write() as session:
        for row in session.scalars(select(Checkpoint)):
            row.name = "same"
    labels = [f"same ({key[:8]})" for key in keys("iter-2", "iter-1")]
    said = said_by(app("compare", judged))
    assert all(f"{label} (verdict, 0 to 1)" in said for label in labels)
