"""A judge's card: calibration, leanings, canaries, and what to type where one of them is missing."""

import pytest
from sqlalchemy import select

from core.fingerprint import digest
from db.judges import identity, judge_names
from db.models import Calibration, Evaluation, Judge
from db.registry import Registry
from tests.sample_registry import Sample, fill
from tests.test_dashboard import app, shown, words  # noqa: F401  (app is a fixture)

AGREEMENT = {"value": 0.61, "low": 0.58, "high": 0.64, "n": 999}
LEANING = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}


@pytest.fixture
def known(registry: Registry) -> Registry:
    """A run judged by a reward model that leans to the longer answer, calibrated, with one canary."""
    sample = fill(registry)
    canary = sample.checkpoint("canary: constant", "canary")
    sample.score(canary, "alpaca_eval", 3.25)
    with registry.write() as session:
        for evaluation in session.scalars(select(Evaluation)):
            evaluation.statistics = {"bias": {"longer_preference": LEANING}} if evaluation.judge_id == 1 else {}
            if evaluation.answer_set.checkpoint_id == canary:
                evaluation.flags = [{"flag": "canary", "reason": "one constant sentence"}]
        key = identity("reward_model", "gold reward model", {})
        row = {"judge_key": key, "judge_name": "gold reward model", "judge_kind": "reward_model", "dataset": "pandalm"}
        statistics = {
            "agreement": AGREEMENT,
            "kappa": {"value": 0.2, "low": 0.1, "high": 0.3, "n": 999},
            "maths:agreement": AGREEMENT,
        }
        session.add(Calibration(**row, version="v1", n=999, n_failed=2, statistics=statistics))
    return registry


def test_the_card_has_agreement_leanings_and_canaries(app, known: Registry) -> None:  # noqa: F811
    said = words(shown(app("judges", known)))
    assert "61.0 % of 999" in said and "61.0\u2009%" in said and "2 failed" in said
    assert "agrees, maths" in said and "Cohen's kappa" in said
    assert "70.0 % leans [60.0, 80.0]" in " ".join(said.split()), "an interval without one half is marked"
    assert "canary: constant" in said and "3.2" in said and "one constant sentence" in said


def test_what_is_not_known_says_what_to_type(app, registry: Registry) -> None:  # noqa: F811
    sample = Sample(registry)
    sample.score(sample.checkpoint("a", "third_party"), "mt_bench", 4.0, judge="gpt")
    sample.checkpoint("quickstart/gold_reward", "gold_reward")
    start = digest("quickstart/gold_reward")[:8]
    with registry.write() as session:
        session.get_one(Judge, sample.judges["gold"]).name = f"reward-model:{start}"
    sample.score(sample.checkpoint("b", "third_party"), "mt_bench", 4.0, judge="gold")
    test = app("judges", registry)
    typed = [code.value for code in test.selectbox(key="judge").set_value("gpt-4.1").run().code]
    assert "harness judge calibrate openai:gpt-4.1" in typed
    assert "harness judge canaries --benchmark mt_bench --judge openai:gpt-4.1" in typed
    typed = [code.value for code in test.selectbox(key="judge").set_value(f"reward-model:{start}").run().code]
    assert "harness judge calibrate quickstart/gold_reward" in typed


def test_judges_are_listed_by_how_much_they_judge_and_the_sandbox_is_none(known: Registry) -> None:
    sample = Sample.__new__(Sample)
    sample.registry, sample.judges = known, {"gpt": 4}
    sample.score(sample.checkpoint("other", "third_party"), "mt_bench", 4.0, judge="gpt")
    row = {"judge_key": "s", "judge_name": "saved one", "judge_kind": "saved", "dataset": "d", "version": "v"}
    with known.write() as session:
        session.add(Calibration(**row, n=1, n_failed=0, statistics={}))
    with known.read() as session:
        assert judge_names(session) == ["gold reward model", "gpt-4.1", "saved one"]
