"""A checkpoint's card: lineage to the base, every metric, the command that repeats an evaluation."""

import json

import pytest

from core.errors import RegistryError
from core.fingerprint import digest
from dashboard import format as f
from dashboard.export import file_part
from db.card import card
from db.models import Answer, AnswerSet, Checkpoint, Conversation, Evaluation, Judgment, Run, StageRun
from db.registry import Registry
from harness.console import Reporter
from harness.data_build import build_data, plan_data
from tests.sample_registry import SCORES, Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)
from tests.test_screens_leaderboard import files  # noqa: F401
from train.data_card import summary


def test_the_line_leads_back_to_the_base_and_a_loop_ends(registry: Registry):
    sample = fill(registry)
    with registry.read() as session:
        found = card(session, digest("quickstart/iter-2"))
    assert [one.name.split("/")[1] for one in found.ancestors] == ["iter-2", "iter-1", "sft", "base"]
    assert {one.cells[0].benchmark for one in found.measured} == set(SCORES)
    assert (found.run, found.recipe) == ("quickstart", "quickstart")
    child = sample.checkpoint("child", "third_party")
    with registry.write() as session:
        session.get_one(Checkpoint, child).parent_id = child
    with registry.read() as session:
        assert len(card(session, digest("child")).ancestors) == 1
        with pytest.raises(RegistryError, match="no checkpoint 0000"):
            card(session, "0000")


def test_the_page_gives_the_command_that_repeats_each_evaluation(app, registry: Registry):  # noqa: F811
    sample = Sample(registry)
    mine = sample.checkpoint("my model", "third_party", path="/models/my model", source="imported")
    sample.score(mine, "alpaca_eval", 40.0, judge="gpt", version="official@abc", limit=50)
    sample.score(mine, "truthful_qa", 41.0)
    with registry.write() as session:
        answers = session.query(AnswerSet).filter_by(benchmark="alpaca_eval").one()
        answers.settings = answers.settings | {"max_model_len": 2048}
    published = sample.checkpoint("theirs", "published", source="published")
    sample.score(published, "mt_bench", 8.0)
    test = app("checkpoint", registry, fingerprint=digest("my model"))
    typed = [code.value for code in test.code]
    assert (
        "harness eval '/models/my model' --benchmarks alpaca_eval --limit 50 --max-model-len 2048 --judge openai:gpt-4.1" in typed
    )
    assert "harness eval '/models/my model' --benchmarks truthful_qa --variant starter" in typed
    assert "harness export 'my model' --benchmark alpaca_eval" in typed
    assert not [
        c for c in (code.value for code in app("checkpoint", registry, fingerprint=digest("theirs")).code) if "harness" in c
    ]


def test_two_checkpoints_of_one_name_are_told_apart(app, registry: Registry):  # noqa: F811
    """The same name trained twice: the fingerprint in the URL decides, and the list shows which is which."""
    sample = Sample(registry)
    for name, value in (("a", 1.0), ("b", 2.0)):
        sample.score(sample.checkpoint(name, "third_party"), "mt_bench", value)
    with registry.write() as session:
        for row in session.query(Checkpoint):
            row.name = "same"
    for name, value in (("a", "1.00"), ("b", "2.00")):
        test = app("checkpoint", registry, fingerprint=digest(name))
        typed = [code.value for code in test.code]
        assert f"harness export {digest(name)[:16]} --benchmark mt_bench" in typed
        assert f"harness export model {digest(name)[:16]} --to out/model" in typed
        assert [line for line in typed if line.startswith("harness eval CHECKPOINT --benchmarks mt_bench")], (
            "its folder is not known"
        )
        assert value in words(shown(test)) and digest(name)[:8] in test.selectbox[0].format_func(digest(name))


def test_an_imported_evaluation_names_its_source(app, registry: Registry):  # noqa: F811
    sample = Sample(registry)
    sample.score(sample.checkpoint("theirs", "third_party", source="imported"), "alpaca_eval", 40.0)
    with registry.write() as session:
        session.get_one(Evaluation, 1).provenance = {"source": "a paper", "files": [{"name": "a.json", "sha256": "00"}]}
    seen = words(shown(app("checkpoint", registry)))
    assert "imported from a paper" in seen


def test_the_card_says_what_it_learned_from_and_how_to_publish_it(app, registry: Registry):  # noqa: F811
    fill(registry)
    with registry.write() as session:
        sources = [{"name": "starter prompts", "use": "prompts", "limit": 1200}]
        session.get_one(Run, 1).recipe = {"name": "quickstart", "data": {"sources": sources}}
        session.query(StageRun).filter_by(name="data").one().metrics = {"sft": 105, "dropped": {"too long": 3}}
        row = session.query(Checkpoint).filter_by(name="quickstart/iter-2").one()
        settings = {"beta": 0.1, "loss_options": {"width": 2.0}, "max_steps": None}
        row.provenance = {"program": "train.dpo", "settings": settings, "environment": {"torch": "2.13.0", "machine": "x86_64"}}
        row.provenance |= {"chat_template": "{% for m in messages %}<|im_start|>"}
    test = app("checkpoint", registry, fingerprint=digest("quickstart/iter-2"))
    said = " ".join(words(shown(test)).split())
    assert "starter prompts prompts 1 200" in said and "Sft 105" in said
    assert "Preference pairs 44 of 48 prompts; 3 dropped" in said
    assert (
        "train.dpo on x86_64" in said and "loss_options.width 2.0" in said and "max_steps none" in said and "torch 2.13.0" in said
    )
    typed = [code.value for code in test.code]
    assert {"Recipe of the run", "Chat template"} <= {one.label for one in test.expander}
    assert "{% for m in messages %}<|im_start|>" in typed and any('"name": "starter prompts"' in value for value in typed)
    assert "harness export model quickstart/iter-2 --to out/model" in typed
    assert "harness export dataset quickstart --iteration 2 --to out/pairs" in typed


def test_the_card_of_the_data_is_the_one_that_the_stage_wrote(app, registry: Registry, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    built = build_data(plan_data("starter"), Reporter())[0]
    assert built.metrics["card"] == summary(json.loads((built.path / "card.json").read_text()))
    fill(registry)
    with registry.write() as session:
        session.query(StageRun).filter_by(name="data").one().metrics = built.metrics
    test = app("checkpoint", registry, fingerprint=digest("quickstart/iter-2"))
    said = " ".join(words(shown(test)).split())
    assert "starter_preferences preferences 250 250" in said and "starter_prompts prompts 150 150" in said
    assert "compared with" in said and "Groups of like prompts" in said
    assert built.metrics["card"]["files"]["reward_train.jsonl"]["sha256"] in said


def test_a_benchmark_s_name_is_no_markdown():
    """The label of an expander is the one text that Streamlit would render."""
    assert not set(f.words("![b](http://evil.example/x.png) :red[x] `c` $y$ <b> **d** _e_")) & set("![]()`$<>*:/")
    assert f.words("TruthfulQA, written") == "TruthfulQA, written"


def test_card_and_answers_are_files_for_whoever_wants_them(app, registry: Registry, files: dict):  # noqa: F811
    sample = fill(registry)
    sample.score(sample.checkpoint("reported", "published_reference", source="published"), "alpaca_eval", 40.0)
    asked = [{"role": "user", "content": "Which is better?"}]
    with registry.write() as session:
        session.add(Conversation(key="c" * 64, messages=asked))
        session.add_all(Answer(answer_set_id=1, question_id=f"q{i}", prompt="P", text=f"\u2028 {i}") for i in (2, 1))
        for game, value in ((2, None), (1, 0.5)):
            told = {"value": value, "raw": {"replies": [{"text": "m"}]}, "shown": "c" * 64 if game == 1 else None}
            session.add(Judgment(evaluation_id=1, question_id="q1", game=game, **told))
    app("checkpoint", registry, fingerprint=digest("quickstart/base"))
    rows = [json.loads(line) for line in files["answers-1"]().splitlines()]
    assert [(row["question_id"], row["text"]) for row in rows] == [("q2", "\u2028 2"), ("q1", "\u2028 1")]
    assert rows[0]["verdicts"] == [] and [one["value"] for one in rows[1]["verdicts"]] == [0.5, None]
    assert [one["shown"] for one in rows[1]["verdicts"]] == [asked, None]
    told = json.loads(files["This card, JSON"]())
    assert told["fingerprint"] == digest("quickstart/base") and told["lineage"][0]["name"] == "quickstart/base"
    scores = {score["benchmark"]: score for one in told["evaluations"] for score in one["scores"]}
    assert set(scores) == set(SCORES) and scores["alpaca_eval"]["low"] < scores["alpaca_eval"]["value"]
    files.clear()
    app("checkpoint", registry, fingerprint=digest("reported"))
    assert "card" in files and not any(name.startswith("answers-") for name in files), "a published row has no answers"


@pytest.mark.parametrize(
    ("name", "part"),
    [("run/iter-1", "run-iter-1"), ("../../etc", "etc"), ("\u202e=x\n", "x"), ("", "unnamed"), ("a.b_c", "a.b_c")],
)
def test_a_name_in_a_file_name_leads_nowhere(name: str, part: str):
    assert file_part(name) == part
