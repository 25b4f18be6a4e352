"""Hooks decide from the history alone."""

import numpy as np
import pytest

from core.errors import RecipeError
from harness.hooking import iteration_record
from harness.recipe_file import load_recipe
from train.hooks import (
    PROXY,
    Budget,
    Decision,
    EarlyStop,
    History,
    KeepBest,
    OverOptimisation,
    Record,
    make_hook,
    paired_bootstrap,
)

METRIC = "held_out_reward"


def record(iteration: int, values) -> Record:
    return Record(iteration, f"weights-{iteration}", per_question={METRIC: {f"q{i}": float(v) for i, v in enumerate(values)}})


def noise(seed: int, n: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_a_clear_loss_rolls_back_to_the_best():
    base = noise(0)
    history = History((record(0, base), record(1, base + 0.5), record(2, base + 0.1 + 0.2 * noise(1))))
    decision = KeepBest().after_iteration(history)
    assert (decision.action, decision.checkpoint, decision.best) == ("roll_back", "weights-1", "weights-1")
    assert METRIC in decision.rule and "iteration 2 against iteration 1" in decision.reason


def test_a_gain_continues_and_becomes_the_best():
    base = noise(0)
    decision = KeepBest().after_iteration(History((record(0, base), record(1, base + 0.5))))
    assert (decision.action, decision.checkpoint, decision.best) == ("continue", None, "weights-1")


def test_a_loss_within_the_noise_continues_but_keeps_the_best():
    base = noise(0, 30)
    worse = base - 0.01 + noise(1, 30) - noise(1, 30).mean()
    decision = KeepBest().after_iteration(History((record(0, base), record(1, worse))))
    assert (decision.action, decision.best) == ("continue", "weights-0")


def test_equal_iterates_keep_the_earlier():
    base = noise(0)
    assert KeepBest().after_iteration(History((record(0, base), record(1, base)))).best == "weights-0"


def test_only_shared_questions_count():
    """An iterate that answered the easy half only must not win by that."""
    full, easy = (
        record(0, [0.0] * 50 + [10.0] * 50),
        Record(1, "weights-1", per_question={METRIC: {f"q{i}": 9.0 for i in range(50, 100)}}),
    )
    decision = KeepBest().after_iteration(History((full, easy)))
    assert decision.best == "weights-0" and decision.action == "roll_back" and "n = 50" in decision.reason


def test_without_values_the_run_goes_on_and_says_why():
    assert KeepBest().after_iteration(History((Record(0, "weights-0"),))).action == "continue"
    unevaluated = KeepBest().after_iteration(History((record(0, [1.0, 2.0]), Record(1, "weights-1"))))
    assert unevaluated.best == "weights-0" and "iteration 1 has no" in unevaluated.reason


def test_no_shared_question_is_an_error():
    other = Record(1, "weights-1", per_question={METRIC: {"x": 1.0}})
    with pytest.raises(RecipeError, match="same questions"):
        KeepBest().after_iteration(History((record(0, [1.0]), other)))


def test_paired_bootstrap_agrees_with_the_normal_interval():
    """For 2,000 differences the percentile interval is mean +- 1.96 standard errors to within 5 % of its width."""
    a, b = noise(1, 2000), noise(2, 2000)
    test = paired_bootstrap(dict(enumerate(map(float, a))) | {-1: 3.0}, dict(enumerate(map(float, b))) | {-2: 9.0})
    half = 1.96 * (a - b).std(ddof=1) / np.sqrt(2000)
    assert test.n == 2000 and test.difference == pytest.approx((a - b).mean())
    assert test.low == pytest.approx((a - b).mean() - half, abs=0.1 * half)
    assert test.high == pytest.approx((a - b).mean() + half, abs=0.1 * half)
    assert test == paired_bootstrap(dict(enumerate(map(float, a))), dict(enumerate(map(float, b))))


def test_coverage_of_the_paired_test():
    """Two equal iterates: the newest is rolled back in about 2.5 % of runs (300 draws, n = 100)."""
    wrong = 0
    for seed in range(300):
        difference = noise(seed, 100)
        wrong += paired_bootstrap(dict(enumerate(difference)), dict.fromkeys(range(100), 0.0), resamples=1000).high < 0
    assert wrong / 300 < 0.06


def test_hooks_by_name():
    assert make_hook("keep_best", metric="mt_bench") == KeepBest("mt_bench")
    with pytest.raises(RecipeError, match="keep_best"):
        make_hook("keep_worst")
    with pytest.raises(RecipeError, match="options"):
        make_hook("keep_best", metrics="typo")


def test_a_hook_of_another_package(monkeypatch):
    class Stop:
        def after_iteration(self, history):
            return Decision("stop", "enough")

    class Point:
        name = "mine"

        def load(self):
            return Stop

    monkeypatch.setattr("train.plugins.entry_points", lambda group: [Point()] if group == "harness.hooks" else [])
    assert make_hook("mine").after_iteration(History((record(0, [1.0]),))).action == "stop"


def test_the_interval_at_another_confidence_is_wider():
    a, b = dict(enumerate(noise(1))), dict(enumerate(noise(2)))
    shared, alone = paired_bootstrap(a, b, confidence=0.975), paired_bootstrap(a, b)
    assert shared.low < alone.low < alone.high < shared.high
    # z of 97.5 % two-sided is 2.2414, of 95 % 1.9600.
    assert (shared.high - shared.low) / (alone.high - alone.low) == pytest.approx(2.2414 / 1.96, rel=0.05)


# --- early stop ---


def gains(*means: float) -> History:
    """Iterates whose values are a common base, plus exactly these means, with noise of their own."""
    base, own = noise(0), [noise(10 + t) for t in range(len(means))]
    return History(tuple(record(t, base + mean + 0.2 * (own[t] - own[t].mean())) for t, mean in enumerate(means)))


def test_early_stop_waits_for_patience_and_then_stops():
    hook = EarlyStop(patience=2)
    assert hook.after_iteration(gains(0.0)).action == "continue"
    assert hook.after_iteration(gains(0.0, 0.0)).action == "continue"
    decision = hook.after_iteration(gains(0.0, 0.0, 0.0))
    assert decision.action == "stop" and "no evidence of improvement in 2 iterations against iteration 0" in decision.reason
    assert decision.best is None and decision.checkpoint is None


def test_one_shown_gain_within_the_patience_goes_on():
    assert EarlyStop(patience=2).after_iteration(gains(0.0, 0.5, 0.5)).action == "continue"
    assert EarlyStop(patience=2).after_iteration(gains(0.0, 0.5, 0.5, 0.4)).action == "stop"
    assert EarlyStop(patience=3).after_iteration(gains(0.0, 0.5, 0.5, 0.5)).action == "continue"
    assert EarlyStop(patience=1).after_iteration(gains(0.0, 0.5, 0.5)).action == "stop"


def test_early_stop_in_closed_form():
    """Every question gains exactly 0.25: the interval is that point, and only a gain above 0 is one."""
    base = np.arange(8.0)
    up, same = History((record(0, base), record(1, base + 0.25))), History((record(0, base), record(1, base)))
    hook = EarlyStop(patience=1)
    assert hook.after_iteration(up).action == "continue" and "+0.25 [+0.25, +0.25], n = 8" in hook.after_iteration(up).reason
    assert hook.after_iteration(same).action == "stop" and "+0 [+0, +0], n = 8" in hook.after_iteration(same).reason


# --- over-optimisation ---


def watched(*iterates: tuple[float, float, float]) -> History:
    """(mean gold, mean proxy, KL) of each iterate on 100 held-out prompts, with noise of its own."""
    base, records = noise(0, 100), []
    for t, (gold, proxy, kl) in enumerate(iterates):
        values = {METRIC: base + gold + 0.3 * noise(20 + t, 100), PROXY: base + proxy + 0.3 * noise(40 + t, 100)}
        named = {name: {f"q{i}": float(v) for i, v in enumerate(column)} for name, column in values.items()}
        records.append(Record(t, f"weights-{t}", per_question=named, kl=kl))
    return History(tuple(records))


def test_proxy_and_kl_up_while_gold_falls_is_over_optimisation():
    history = watched((0.0, 0.0, 0.0), (0.5, 1.0, 4.0), (-0.2, 2.0, 9.0))
    decision = OverOptimisation().after_iteration(history)
    assert (decision.action, decision.checkpoint) == ("roll_back", "weights-1")
    assert "iteration 2 over-optimises against iteration 1" in decision.reason and "KL +5" in decision.reason
    stopped = OverOptimisation(action="stop").after_iteration(history)
    assert (stopped.action, stopped.checkpoint) == ("stop", None)


@pytest.mark.parametrize(
    "newest",
    [
        (0.9, 2.0, 9.0),  # gold rises as well
        (-0.2, 0.5, 9.0),  # the proxy falls too: bad, but not by over-optimising it
        (-0.2, 2.0, 3.0),  # nearer to the first policy than the iterate before
        (0.45, 2.0, 9.0),  # a loss of gold within the noise
    ],
)
def test_without_one_of_its_signs_it_is_not_over_optimisation(newest):
    decision = OverOptimisation().after_iteration(watched((0.0, 0.0, 0.0), (0.5, 1.0, 4.0), newest))
    assert decision.action == "continue" and "no over-optimisation shown" in decision.reason


def test_a_falling_benchmark_counts_like_gold_and_the_tests_share_their_error():
    history = watched((0.0, 0.0, 0.0), (0.5, 1.0, 4.0), (0.9, 2.0, 9.0))
    values = {"mt_bench": {f"m{i}": 8.0 - 2.0 * (i % 2) for i in range(20)}}, {"mt_bench": {f"m{i}": 5.0 for i in range(20)}}
    first, second, third = history.records
    better, worse = (
        Record(r.iteration, r.checkpoint, per_question={**r.per_question, **v}, kl=r.kl)
        for r, v in zip((second, third), values, strict=True)
    )
    hook = OverOptimisation(watch=[METRIC, "mt_bench"])
    decision = hook.after_iteration(History((first, better, worse)))
    assert decision.action == "roll_back" and "mt_bench -2" in decision.reason
    assert OverOptimisation().after_iteration(History((first, better, worse))).action == "continue"
    assert "mt_bench is not there" in hook.after_iteration(history).reason


def test_without_kl_or_proxy_the_guard_says_so():
    assert "no KL" in OverOptimisation().after_iteration(History((Record(0, "weights-0"),))).reason
    assert "no proxy reward" in OverOptimisation().after_iteration(History((Record(0, "weights-0", kl=0.0),))).reason


# --- budget ---


def spent(*costs: tuple[float, float]) -> History:
    return History(tuple(Record(t, f"w{t}", gpu_hours=hours, dollars=dollars) for t, (hours, dollars) in enumerate(costs)))


def test_the_budget_stops_before_the_iteration_that_would_break_it():
    hook = Budget(gpu_hours=10.0)
    assert hook.after_iteration(spent((4.0, 0.0))).action == "continue"  # what came before the loop forecasts nothing
    assert hook.after_iteration(spent((4.0, 0.0), (2.9, 0.0))).action == "continue"  # 6.9 + 2.9 = 9.8
    decision = hook.after_iteration(spent((4.0, 0.0), (3.1, 0.0)))  # 7.1 + 3.1 = 10.2
    assert decision.action == "stop" and decision.reason == "7.10 of 10 GPU-hours spent, the next iteration about 3.10"
    assert hook.after_iteration(spent((10.0, 0.0))).action == "stop"


def test_gpu_time_has_a_price():
    history = spent((1.0, 5.0), (1.0, 5.0))
    assert Budget(dollars=20.0).after_iteration(history).action == "continue"  # 10 + 5
    assert Budget(dollars=20.0, dollars_per_gpu_hour=3.0).after_iteration(history).action == "stop"  # 16 + 8
    assert Budget(gpu_hours=100.0, dollars=12.0).after_iteration(history).action == "stop"


def test_hooks_are_refused_with_the_recipe_not_after_the_first_training():
    for hook, message in [
        ("{name: budget}", "no limit"),
        ("{name: early_stop, options: {patience: 0}}", "patience"),
        ("{name: early_stop, options: {patients: 2}}", "options it does not take"),
        ("{name: over_optimisation, options: {watch: held_out_reward}}", "watch is a list"),
        ("{name: over_optimisation, options: {action: panic}}", "roll_back or stop"),
        ("{name: keep_worst}", "keep_best, early_stop, over_optimisation, budget"),
    ]:
        with pytest.raises(RecipeError, match=message):
            load_recipe("quickstart", [f"hooks=[{hook}]"])
    assert len(load_recipe("quickstart", ["hooks=[{name: budget, options: {dollars: 3}}, {name: keep_best}]"]).hooks) == 2


# --- what the registry tells a hook ---


def test_a_record_holds_kl_proxy_rewards_and_costs_of_its_iteration(registry):
    from db import models

    with registry.write() as session:
        run = models.Run(name="r", recipe_name="x", recipe={}, recipe_hash="h", status="running")
        judge = models.Judge(key="j", name="reward-models", kind="reward_model", config={})
        weights = [models.Checkpoint(fingerprint=f"f{t}", name=f"p{t}", kind="iteration", source="trained") for t in (0, 1)]
        session.add_all([run, judge, *weights])
        session.flush()
        for t, role in enumerate(("base", "iteration")):
            session.add(models.RunCheckpoint(run_id=run.id, checkpoint_id=weights[t].id, role=role, iteration=t))
        for name, program, iteration, seconds, metrics in (
            ("reward", "train.reward", None, 1800.0, {}),
            ("judge[base]", "evals.judged", 0, 1800.0, {}),
            ("dpo[1]", "train.dpo", 1, 7200.0, {"kl": 1.0, "kl_first": 2.5}),
        ):
            stage = {"name": name, "program": program, "key": f"key-{name}", "iteration": iteration, "status": "done"}
            session.add(models.StageRun(run_id=run.id, seconds=seconds, metrics=metrics, **stage))
            session.add(models.Cost(scope="stage", scope_key=f"key-{name}", kind="gpu_seconds", amount=seconds))
        answers = {"benchmark": "held_out_reward", "version": "v", "settings": {}, "settings_hash": "s", "status": "complete"}
        answer_set = models.AnswerSet(key="a", checkpoint_id=weights[1].id, n_questions=2, **answers)
        session.add(answer_set)
        session.flush()
        evaluation = models.Evaluation(key="e", answer_set_id=answer_set.id, judge_id=judge.id, status="complete")
        session.add(evaluation)
        session.flush()
        for question, sample, gold, proxy in (("q1", 0, 1.0, 3.0), ("q1", 1, 2.0, 5.0), ("q2", 0, 0.0, -1.0)):
            raw = {"gold_reward": gold, "proxy_reward": proxy}
            row = {"evaluation_id": evaluation.id, "question_id": question, "sample": sample}
            session.add(models.Judgment(**row, value=gold, raw=raw))
        session.add(models.Cost(scope="evaluation", scope_key="e", kind="judge_tokens", amount=10, micro_dollars=2_500_000))
        run_id = run.id
    with registry.read() as session:
        before, after = (iteration_record(session, run_id, t) for t in (0, 1))
    assert (before.kl, before.gpu_hours, before.seconds, before.dollars) == (0.0, 1.0, 3600.0, 0.0)
    assert (after.kl, after.gpu_hours, after.seconds, after.dollars) == (2.5, 2.0, 7200.0, 2.5)
    assert after.per_question == {METRIC: {"q1": 1.5, "q2": 0.0}, PROXY: {"q1": 4.0, "q2": -1.0}}


def test_what_an_annotating_judge_was_paid_counts_for_the_budget_once(registry, tmp_path):
    from core.artifacts import Artifact
    from db import models
    from harness import record
    from harness.plan import Node

    run_id = record.start_run(registry, "r", "x", {})
    weights = record.checkpoint(registry, run_id, "iter-1", 1, "f" * 64, "", None, None, None, {"name": "r/iter-1"})
    node = Node("annotate[1]", "train.annotate", {}, {}, "k", iteration=1)
    metrics = {"samples": 8, "judge_tokens": 900, "judge_micro_dollars": 1_250_000}
    made = {"seconds": 10.0, "peak_rss_bytes": 1, "metrics": metrics, "fingerprint": "a"}
    for reused in (False, True):
        record.stage_done(registry, run_id, node, Artifact(tmp_path, made), reused)
    with registry.read() as session:
        found = iteration_record(session, run_id, 1)
        kinds = {cost.kind: cost.amount for cost in session.query(models.Cost)}
    assert weights and found.dollars == 1.25 and kinds == {"cpu_seconds": 10.0, "judge_tokens": 900.0}
    assert Budget(dollars=2.0).after_iteration(History((found,))).action == "stop"
