"""Proxy and gold reward over KL: from the policy that the loop starts from, in the loop's order."""

import pytest

from dashboard.over_optimisation import in_words, over_optimisation
from db.models import Score, StageRun
from db.registry import Registry
from db.rewards import reward_curve
from tests.sample_registry import fill
from tests.test_dashboard import app, drawn_rows  # noqa: F401  (app is a fixture)


@pytest.fixture
def rewarded(registry: Registry) -> Registry:
    """Gold reward falls in iteration 2 while the proxy rises; KL 3 and 9 nats."""
    fill(registry)
    with registry.write() as session:
        for stage in session.query(StageRun).filter(StageRun.name.like("dpo[%")):
            stage.program, stage.metrics = "train.dpo", {"kl": {1: 3.0, 2: 9.0}[stage.iteration]}
        # Held-out rewards are the last of the six evaluations of each of the four checkpoints.
        for evaluation, (proxy, gold) in {6: (0, 0), 12: (0.1, 0.1), 18: (0.5, 0.4), 24: (0.9, 0.2)}.items():
            for metric, value in (("proxy_reward", proxy), ("gold_reward", gold)):
                common = {"n": 24, "n_failed": 0, "method": "bootstrap", "low": value - 0.1, "high": value + 0.1}
                session.add(Score(evaluation_id=evaluation, metric=metric, value=value, **common))
    return registry


def test_the_curve_starts_at_the_loops_first_policy(rewarded: Registry):
    with rewarded.read() as session:
        points = reward_curve(session, "quickstart")
    assert [(p.role, p.iteration, p.kl) for p in points] == [("sft", 0, 0.0), ("iteration", 1, 3.0), ("iteration", 2, 9.0)]
    assert [p.gold.value for p in points] == [0.1, 0.4, 0.2] and [p.proxy.value for p in points] == [0.1, 0.5, 0.9]
    drawn = drawn_rows(over_optimisation(points), "kl")
    assert len(drawn) == 6 and {row["reward"] for row in drawn} == {"proxy, optimised", "gold, held out"}
    assert "iteration 2: KL 9.00, proxy 0.90 [0.80, 1.00], gold 0.20 [0.10, 0.30]" in in_words(points)


def test_the_distance_is_that_to_the_first_policy_where_the_training_told_it(rewarded: Registry):
    """With `reference.policy: previous` the KL to the reference starts anew in each iteration."""
    with rewarded.write() as session:
        for stage in session.query(StageRun).filter(StageRun.name.like("dpo[%")):
            stage.metrics = {"kl": 3.0, "kl_first": 3.0 * stage.iteration}
    with rewarded.read() as session:
        assert [point.kl for point in reward_curve(session, "quickstart")] == [0.0, 3.0, 6.0]


def test_the_page_shows_it_only_where_there_is_a_curve(app, rewarded: Registry):  # noqa: F811
    test = app("iterations", rewarded, run="quickstart")
    assert "Over-optimisation" in [header.value for header in test.header]
    with rewarded.write() as session:
        session.query(Score).filter(Score.metric == "gold_reward").delete()
    assert "Over-optimisation" not in [header.value for header in app("iterations", rewarded, run="quickstart").header]
