"""Answers with their verdicts: pages of them, one in full, and the pages that show them; model text stays text."""

import hashlib
import re

import pytest
from sqlalchemy import delete, select, text, update

from core.errors import RegistryError
from db import samples
from db.models import Answer, AnswerSet, Checkpoint, Conversation, Evaluation, Judge, Judgment, now
from db.registry import VERSION_TABLE, Registry, head
from tests.sample_registry import Sample, fill
from tests.test_dashboard import HOSTILE, TAGS, app, shown, words  # noqa: F401  (app is a fixture)

VERDICTS = [1.0, 0.5, 0.0, None] * 30


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """A run whose AlpacaEval evaluations (ids 1, 7, 13, 19 of 24) hold 120 answers each; some cut, some hostile."""
    fill(registry)
    with registry.write() as session:
        for evaluation in (1, 7, 13, 19):
            for i, value in enumerate(VERDICTS):
                text = HOSTILE[i % len(HOSTILE)] if i % 3 else f"Answer {i} with 100%_done\n\nand a second line"
                session.add(
                    Answer(
                        answer_set_id=evaluation,
                        question_id=f"q{i}",
                        prompt=f"<|user|>\nQuestion {i}",
                        text=text,
                        finish_reason="length" if i % 10 == 0 else "stop",
                        output_tokens=i,
                    )
                )
                raw = {"replies": [{"text": f"{HOSTILE[0]} I choose", "top_logprobs": {"m": -0.1}}], "switched": True}
                shifted = None if value is None else value if evaluation < 19 else 1.0
                session.add(
                    Judgment(
                        evaluation_id=evaluation, question_id=f"q{i}", value=shifted, raw=raw, error=None if value else "why"
                    )
                )
    return registry


def ids(found: list[samples.Line]) -> list[str]:
    return [line.question_id for line in found]


def test_keyset_pages_cover_every_answer_once(filled: Registry):
    with filled.read() as session:
        seen, after = [], 0
        while page := samples.lines(session, 7, after=after, limit=50):
            seen += ids(page)
            after = page[-1].answer_id
    assert seen == [f"q{i}" for i in range(120)]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [("better", 0), ("even", 1), ("worse", 2), ("failed", 3)],
)
def test_outcomes_are_those_of_the_mean_verdict(filled: Registry, outcome, expected: int):
    with filled.read() as session:
        found = samples.lines(session, 1, outcome, limit=200)
    assert ids(found) == [f"q{i}" for i in range(120) if i % 4 == expected]
    assert all((line.failed, line.verdicts) == ((1, 1) if outcome == "failed" else (0, 1)) for line in found)


def test_cut_answers_and_a_search_whose_wildcards_are_plain_text(filled: Registry):
    with filled.read() as session:
        assert ids(samples.lines(session, 1, "cut", limit=200)) == [f"q{i}" for i in range(0, 120, 10)]
        assert ids(samples.lines(session, 1, search="100%_DONE", limit=200)) == [f"q{i}" for i in range(0, 120, 3)]
        assert samples.lines(session, 1, search="100_%done") == []
        assert ids(samples.lines(session, 1, search="question 119")) == ["q119"]


def test_answers_of_a_length(filled: Registry):
    with filled.read() as session:
        every = {line.question_id: line.length for line in samples.lines(session, 1, limit=200)}
        found = samples.lines(session, 1, limit=200, characters=(30, 60))
        assert {line.question_id for line in found} == {q for q, length in every.items() if 30 <= length <= 60} != set()
        assert len(samples.lines(session, 1, limit=200, characters=(None, 0))) == 0


def test_several_verdicts_are_shown_by_their_mean_and_published_scores_as_such(app, filled: Registry):  # noqa: F811
    with filled.write() as session:
        session.add(Judgment(evaluation_id=1, question_id="q0", game=2, value=0.0, raw={}))
        session.execute(update(Answer).where(Answer.question_id == "q0").values(output_tokens=0, prompt_tokens=0))
    said = " ".join(words(shown(app("samples", filled, evaluation="1", sample="1"))).split())
    assert "Verdict 0.50 mean of 1.00 and 0.00" in said and "Tokens – prompt –" in said
    with filled.write() as session:
        session.execute(update(Judge).values(kind="published"))
        session.execute(delete(Answer).where(Answer.answer_set_id == 1))
    assert "Only the score was published" in words(shown(app("samples", filled, evaluation="1")))


def test_what_was_only_published_is_never_what_a_page_opens_with(filled: Registry):
    with filled.write() as session:
        theirs = Checkpoint(fingerprint="f" * 64, name="theirs", kind="published", source="published")
        session.add(theirs)
        session.flush()
        held = {
            "benchmark": "mt_bench",
            "version": "v",
            "settings": {},
            "settings_hash": "h",
            "status": "complete",
            "n_questions": 1,
        }
        session.add(answers := AnswerSet(key="theirs", checkpoint_id=theirs.id, **held))
        session.flush()
        session.add(Evaluation(key="theirs", answer_set_id=answers.id, judge_id=1, status="complete"))
    with filled.read() as session:
        names = [name for _, name in samples.evaluated_checkpoints(session)]
    assert names[0] == "quickstart/iter-2" and names[-1] == "theirs"


def test_a_rating_is_no_win(app, registry: Registry):  # noqa: F811
    sample = Sample(registry)
    sample.score(sample.checkpoint("a", "third_party"), "mt_bench", 5.0)
    assert app("samples", registry).selectbox(key="outcome").options == ["All", "Without a verdict", "Cut at the token limit"]


def test_one_sample_holds_its_verdicts_and_no_other_evaluation_may_show_it(filled: Registry):
    with filled.read() as session:
        line = samples.lines(session, 7, search="Question 4")[0]
        one = samples.sample(session, 7, line.answer_id)
        assert one.answer.question_id == "q4" and [j.value for j in one.judgments] == [1.0]
        assert (one.evaluated.benchmark, one.evaluated.checkpoint) == ("alpaca_eval", "quickstart/sft")
        with pytest.raises(RegistryError, match="holds no answer"):
            samples.sample(session, 1, line.answer_id)
        with pytest.raises(RegistryError, match="no evaluation 99"):
            samples.evaluated(session, 99)


def test_the_samples_page_lists_and_opens_answers(app, filled: Registry):  # noqa: F811
    listed = app("samples", filled, evaluation="1")
    html = shown(listed)
    assert "Answer 0 with 100%_done and a second line" in words(html)
    assert 'href="samples?evaluation=1&amp;sample=1"' in html and "q49" in words(html) and "q50" not in words(html)
    few = words(shown(app("samples", filled, evaluation="1", least="43", most="43")))
    assert "q99" in few and "q1 " not in few
    opened = app("samples", filled, evaluation="1", sample="2")
    text = [code.value for code in opened.code]
    assert hashlib.sha256(HOSTILE[1].encode()).hexdigest()[:16] in shown(opened)
    assert any(value.endswith("/samples?evaluation=1&sample=2") or "evaluation=1&sample=2" in value for value in text)
    assert HOSTILE[1] in text and f"{HOSTILE[0]} I choose" in text and "<|user|>\nQuestion 1" in text
    assert "was compared with" not in words(shown(opened))
    asked = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": HOSTILE[0]}]
    with filled.write() as session:
        session.add(Conversation(key="c" * 64, messages=asked))
        session.execute(update(Judgment).where(Judgment.question_id == "q1").values(shown="c" * 64))
    opened = app("samples", filled, evaluation="1", sample="2")
    assert f"system: Be fair.\n\nuser: {HOSTILE[0]}" in [code.value for code in opened.code]
    assert "What it was compared with" in words(shown(opened))
    with filled.write() as session:
        session.execute(update(Judge).values(kind="openai"))
    assert "Prompt of the judge" in words(shown(app("samples", filled, evaluation="1", sample="2")))
    assert "There is no evaluation 99" in words(shown(app("samples", filled, evaluation="99")))
    behind = app("samples", filled, evaluation="1", after="99999")
    assert "No more answers" in words(shown(behind)) and "q0 " in words(shown(behind.button[0].click().run()))
    gone = app("samples", filled, evaluation="1", sample="99999")
    assert "holds no answer" in words(shown(gone)) and "q0 " in words(shown(gone.button[0].click().run()))


def test_answers_of_a_registry_without_categories_are_kept(filled: Registry):
    with filled.write() as session:
        session.execute(text("ALTER TABLE answer DROP COLUMN category"))
        session.execute(text("ALTER TABLE judgment DROP COLUMN shown"))
        session.execute(text("DROP TABLE conversation"))
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0002'"))
    with pytest.raises(RegistryError, match="schema 0002 .*`harness db upgrade`"):
        Registry.open(filled.url)
    assert filled.upgrade() == ("0002", head())
    with filled.read() as session:
        listed = samples.lines(session, 1, limit=200)
        assert len(listed) == 120 and samples.sample(session, 1, listed[0].answer_id).shown == {}
        assert samples.question_categories(session, 1) == {}
    with filled.write() as session:
        first = session.scalars(select(Answer).where(Answer.answer_set_id == 1).order_by(Answer.id)).first()
        first.category = "maths"
    with filled.read() as session:
        assert samples.question_categories(session, 1) == {"q0": "maths"}
        assert ids(samples.lines(session, 1, category="maths")) == ["q0"]


def test_another_filter_starts_at_the_first_page(app, filled: Registry):  # noqa: F811
    later = app("samples", filled, evaluation="1", after="110")
    assert "q115" in words(shown(later)) and later.query_params["after"] == "110"
    won = later.selectbox(key="outcome").set_value("better").run()
    assert "q0 " in words(shown(won)) and "after" not in won.query_params


def test_the_compare_page_says_what_changed_and_where(app, filled: Registry):  # noqa: F811
    test = app("compare", filled)
    html = shown(test)
    seen = words(html)
    assert "improved" in seen and "+50.00" in seen and "60 / 30 / 0" in seen.replace("\xa0", " ")
    assert "MT-Bench is not compared" in seen
    assert 'href="samples?evaluation=19&amp;sample=' in html


def test_the_page_stays_with_the_evaluation_of_its_address(app, registry: Registry):  # noqa: F811
    """Two that differ in their settings, two in their judge's prompt: nothing that a reader sees of them differs."""
    sample = Sample(registry)
    checkpoint = sample.checkpoint("a", "third_party")
    for limit in (4, 5):
        sample.score(checkpoint, "alpaca_eval", 50.0, limit=limit)
    with registry.write() as session:
        twin = Judge(key="another prompt", name="gold reward model", kind="reward_model", config={})
        session.add(twin)
        session.flush()
        session.add(Evaluation(key="twin", answer_set_id=2, judge_id=twin.id, status="complete", finished_at=now()))
    for evaluation in ("1", "2", "3"):
        test = app("samples", registry, evaluation=evaluation)
        test.text_input(key="q").set_value("answer").run()
        assert test.query_params["evaluation"] == evaluation and test.query_params["q"] == "answer"
    options = test.selectbox[1].options
    assert len(set(options)) == 3
    test.selectbox[1].set_value(next(label for label in options if "#2" in label)).run()
    assert test.query_params["evaluation"] == "2" and not test.exception


def test_another_evaluation_keeps_the_filters_that_it_knows(app, filled: Registry):  # noqa: F811
    with filled.write() as session:
        for answer in session.scalars(select(Answer).where(Answer.answer_set_id == 1)):
            answer.category = "maths" if answer.id % 2 else "law"
    test = app("samples", filled, evaluation="1", after="10")
    test.selectbox(key="outcome").set_value("better").run()
    test.selectbox(key="category").set_value("law").run()
    test.text_input(key="q").set_value("answer").run()
    test.selectbox[1].set_value(next(label for label in test.selectbox[1].options if label.startswith("MT-Bench"))).run()
    assert not test.exception and "after" not in test.query_params and test.query_params["evaluation"] == "3"
    assert test.selectbox(key="outcome").value == "all" and test.text_input(key="q").value == "answer"


@pytest.mark.parametrize("typed", ["²", "-1", "1e3", "9" * 19])
def test_a_number_in_the_address_that_is_none_is_ignored(app, filled: Registry, typed: str):  # noqa: F811
    test = app("samples", filled, evaluation=typed, sample=typed, after=typed)
    assert test.query_params["evaluation"] == "19" and "q0 " in words(shown(test))


def test_hostile_answers_stay_text(app, registry: Registry):  # noqa: F811
    sample, everything = Sample(registry), " ".join(HOSTILE)
    for name in ("a", everything[:300]):
        sample.score(sample.checkpoint(name, "third_party"), "alpaca_eval", 50.0, version=HOSTILE[1])
    with registry.write() as session:
        for evaluation in (1, 2):
            for payload in (everything, *HOSTILE):
                session.add(Answer(answer_set_id=evaluation, question_id=payload[:200], prompt=payload, text=payload))
                raw = {"replies": [{"text": payload}], "code": payload, payload: payload}
                verdict = {"question_id": payload[:200], "value": float(evaluation - 1), "raw": raw, "error": payload}
                session.add(Judgment(evaluation_id=evaluation, **verdict))
    for page, query in (("samples", {}), ("samples", {"evaluation": "1", "sample": "1"}), ("compare", {})):
        html = shown(app(page, registry, **query))
        assert set(re.findall(r"</?([a-z0-9]+)", html)) <= TAGS
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e]", html)
