"""Losses by independent formulas, by limits, by the sign of their gradients, and by one real step each."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RecipeError
from harness.recipe_file import load_recipe, shipped
from tests.training import RESOURCES, dpo_settings, loss_rows
from train.losses import LOSSES, NEEDS, TRL_LOSSES, PairLoss, default_beta, dpo_losses, find_loss, loss_options
from train.preference_losses import PairBatch, dpo, dpo_nll, inpo, on_policy_weight, rdpo, rebel, simpo, sppo, wpo

# One pair: D(y_w) = 2, D(y_l) = -3, so h = 5; lengths 4 and 10.
NUMBERS = {
    "chosen_logps": -10.0,
    "rejected_logps": -30.0,
    "ref_chosen_logps": -12.0,
    "ref_rejected_logps": -27.0,
    "chosen_tokens": 4.0,
    "rejected_tokens": 10.0,
    "chosen_rewards": 1.5,
    "rejected_rewards": -0.5,
    "chosen_win_rates": 0.8,
    "rejected_win_rates": 0.1,
    "previous_chosen_logps": -11.0,
    "previous_rejected_logps": -29.0,
    "chosen_weights": 0.5,
    "rejected_weights": 0.25,
}


def batch(**changes: float) -> PairBatch:
    return PairBatch(**{k: torch.tensor([v], dtype=torch.float64) for k, v in (NUMBERS | changes).items()})


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (partial(dpo, beta=0.1), minus_log_sigmoid(0.5)),
        # Means over tokens: -2.5 and -3; the reference plays no part.
        (partial(simpo, beta=2.0, simpo_gamma=0.3), minus_log_sigmoid(2 * 0.5 - 0.3)),
        # The chosen answer is 6 tokens shorter: the term lowers the argument, so the pair teaches more.
        (partial(rdpo, beta=0.1, rdpo_alpha=0.02), minus_log_sigmoid(0.5 - 0.12)),
        (partial(dpo_nll, beta=0.1, nll_weight=3.0), minus_log_sigmoid(0.5) + 3 * 10 / 4),
        # Targets 0.3 / 0.01 = 30 and -0.4 / 0.01 = -40.
        (partial(sppo, beta=0.01), (2 - 30) ** 2 + (-3 + 40) ** 2),
        # Policy 20, reference 15, pi_t 18: 20 - 15 / 4 - 18 * 3 / 4 = 2.75 against 1 / (2 * 0.1) = 5.
        (partial(inpo, beta=0.1, inpo_ratio=0.25), (2.75 - 5) ** 2),
        (partial(rebel, beta=0.1), (0.5 - 2.0) ** 2),
        (partial(wpo, beta=0.1), 0.125 * minus_log_sigmoid(0.5)),
    ],
)
def test_values_by_hand(loss, expected):
    value = loss(batch())
    assert value.shape == (1,) and value.item() == pytest.approx(expected, abs=1e-12)


logps = st.floats(-60, -0.5)


@given(logps, logps, logps, logps)
def test_limits_and_kinship_of_the_losses(chosen, rejected, ref_chosen, ref_rejected):
    pair = batch(chosen_logps=chosen, rejected_logps=rejected, ref_chosen_logps=ref_chosen, ref_rejected_logps=ref_rejected)
    plain = dpo(pair, beta=0.1)
    assert torch.equal(rdpo(pair, beta=0.1, rdpo_alpha=0.0), plain)
    assert torch.equal(dpo_nll(pair, beta=0.1, nll_weight=0.0), plain)
    # Without a reference and with one token a side, SimPO without margin is DPO.
    bare = batch(
        chosen_logps=chosen, rejected_logps=rejected, ref_chosen_logps=0, ref_rejected_logps=0, chosen_tokens=1, rejected_tokens=1
    )
    assert torch.allclose(simpo(bare, beta=0.1, simpo_gamma=0.0), dpo(bare, beta=0.1))
    # All of the anchor on the reference: IPO's regression of h (trl averages over tokens; here every length is 1).
    assert torch.allclose(inpo(pair, beta=0.1, inpo_ratio=1.0), (pair.margin - 5) ** 2)
    # Sure preferences: sppo_hard of trl, (D_w - 1/2b)^2 + (D_l + 1/2b)^2.
    sure = batch(
        chosen_logps=chosen, rejected_logps=rejected, ref_chosen_logps=ref_chosen, ref_rejected_logps=ref_rejected,
        chosen_win_rates=1.0, rejected_win_rates=0.0,
    )  # fmt: skip
    hard = (chosen - ref_chosen - 5) ** 2 + (rejected - ref_rejected + 5) ** 2
    assert sppo(sure, beta=0.1).item() == pytest.approx(hard, rel=1e-9)


def gradients(loss, **changes: float) -> tuple[float, float]:
    pair = batch(**changes)
    pair.chosen_logps.requires_grad_()
    pair.rejected_logps.requires_grad_()
    loss(pair).sum().backward()
    return pair.chosen_logps.grad.item(), pair.rejected_logps.grad.item()


OPTIONS = {"rdpo_alpha": 0.01}
BOUND = {
    name: partial(loss.function, beta=0.1, **{k: OPTIONS.get(k, v) for k, v in loss.options.items()})
    for name, loss in LOSSES.items()
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_down_the_gradient_raises_the_chosen_and_lowers_the_rejected(name):
    start = {"chosen_logps": -12.0, "rejected_logps": -27.0, "previous_chosen_logps": -12.0, "previous_rejected_logps": -27.0}
    chosen, rejected = gradients(BOUND[name], **start)  # the policy still is the reference
    assert chosen < 0 < rejected


def test_the_length_term_of_rdpo_weakens_pairs_whose_chosen_answer_is_longer():
    """RLHFlow's first release had the other sign: a 100-token gap at alpha 0.02 weighed .88 there and .12 here."""
    at_reference = {"chosen_logps": -12.0, "rejected_logps": -27.0, "rejected_tokens": 10.0}
    weight = [
        -gradients(partial(rdpo, beta=0.1, rdpo_alpha=0.02), **at_reference, chosen_tokens=n)[0] / 0.1 for n in (110.0, 10.0)
    ]
    assert weight == pytest.approx([1 / (1 + math.exp(2)), 0.5]) and weight[0] == pytest.approx(0.12, abs=0.001)


def test_simpo_asks_for_its_margin_and_no_more_than_beta_says():
    """At a margin of gamma the loss is log 2, whatever the lengths."""
    at_margin = batch(chosen_logps=-4.0, rejected_logps=-20.0)  # means -1 and -2
    assert simpo(at_margin, beta=2.5, simpo_gamma=2.5).item() == pytest.approx(math.log(2))


def test_regressions_are_least_where_their_papers_say():
    for loss, minimum in (
        (partial(rebel, beta=0.1), {"chosen_logps": -12.0 + 20.0, "rejected_logps": -27.0}),  # h = 2.0 / 0.1
        (partial(sppo, beta=0.01), {"chosen_logps": -12.0 + 30.0, "rejected_logps": -27.0 - 40.0}),
        (partial(inpo, beta=0.1, inpo_ratio=0.0), {"chosen_logps": -11.0 + 5.0, "rejected_logps": -29.0}),
    ):
        assert loss(batch(**minimum)).item() == pytest.approx(0, abs=1e-12)
        assert gradients(loss, **minimum) == pytest.approx((0, 0), abs=1e-9)


def test_wpo_weighs_an_answer_by_how_likely_the_policy_is_to_sample_it():
    """Of two tokens at p = (.8, .2), sum of squares .68, the likely one gives min(1, .8 / .68) = 1, the other .2 / .68."""
    likely, unlikely, both = math.log(0.8), math.log(0.2), math.log(0.68)
    tokens = torch.tensor([[likely, likely, 0.0], [unlikely, unlikely, unlikely], [likely, unlikely, 0.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0]])
    weights = on_policy_weight(tokens, torch.full((3, 3), both), mask)
    assert weights.tolist() == pytest.approx([1.0, 0.2 / 0.68, math.sqrt(0.8 * 0.2) / 0.68])
    assert not weights.requires_grad
    chosen, _ = gradients(partial(wpo, beta=0.1))
    assert chosen == pytest.approx(0.125 * gradients(partial(dpo, beta=0.1))[0])


def test_trl_losses_are_reached_by_name_and_unknown_ones_name_all():
    for name in TRL_LOSSES:
        smoothing = 0.1 if name == "exo_pair" else 0.0
        assert dpo_losses(name, smoothing) == ([name], [1.0]) and find_loss(name) is None
    with pytest.raises(RecipeError, match="sigmoid_norm, simpo.*wpo"):
        find_loss("dop")
    assert dpo_losses("simpo", 0.0) == (["sigmoid"], [0.0])
    assert all(loss.needs <= set(NEEDS) for loss in LOSSES.values())


def test_keys_that_the_loss_does_not_use_are_refused_by_name():
    for overrides, message in [
        (["dpo.simpo_gamma=1.0"], "sigmoid loss does not use dpo.simpo_gamma"),
        (["dpo.loss=simpo", "dpo.nll_weight=1", "dpo.rdpo_alpha=1"], "simpo loss does not use dpo.rdpo_alpha, dpo.nll_weight"),
        (["dpo.loss=simpo", "dpo.loss_options={x: 1}"], "does not use dpo.loss_options.x"),
        (["dpo.loss=simpo", "dpo.label_smoothing=0.1"], "simpo loss has no label smoothing"),
        (["dpo.loss=rdpo"], "rdpo loss has no default for dpo.rdpo_alpha"),
        (["dpo.loss=sppo"], "reference.policy: previous"),
        (["dpo.loss=inpo", "dpo.inpo_ratio=1.5"], "inpo_ratio"),
        (["dpo.loss=sgmoid"], "not known to harness.losses"),
    ]:
        with pytest.raises(RecipeError, match=message):
            load_recipe("quickstart", overrides)
    recipe = load_recipe("quickstart", ["dpo.loss=simpo", "dpo.beta=2.5", "dpo.simpo_gamma=1.0"])
    assert recipe.dpo.resolved_options() == {"simpo_gamma": 1.0}
    assert load_recipe("quickstart", ["dpo.loss=sppo", "reference.policy=previous"]).dpo.resolved_options() == {}


def test_a_beta_that_is_not_set_is_the_one_published_with_the_loss(tmp_path):
    """SimPO's gamma goes with a beta of 2.5: at 0.1 the margin that it asks for is 1.375 / 0.1 nats a token."""
    published = {"simpo": 2.5, "rdpo": 0.1, "dpo_nll": 0.1, "sppo": 0.001, "inpo": 0.005, "rebel": 1.0, "wpo": 0.01}
    assert {name: default_beta(name) for name in LOSSES} == published
    assert {default_beta(name) for name in TRL_LOSSES} == {0.1}
    text = shipped()["quickstart"].read_text()
    without = tmp_path / "without.yaml"
    without.write_text(re.sub(r"\n  beta: .*", "", text))
    for name, beta in published.items():
        overrides = [f"dpo.loss={name}", "reference.policy=previous", *(["dpo.rdpo_alpha=0.01"] if name == "rdpo" else [])]
        for recipe in (load_recipe(str(without), overrides), load_recipe("quickstart", [*overrides, "dpo.beta=null"])):
            assert recipe.dpo.beta == beta == recipe.model_dump()["dpo"]["beta"]
        assert load_recipe("quickstart", [*overrides, "dpo.beta=0.3"]).dpo.beta == 0.3
    assert load_recipe(str(without)).hash == load_recipe("quickstart").hash  # the number itself is in the recipe
    with pytest.raises(RecipeError, match="greater than 0"):
        load_recipe("quickstart", ["dpo.beta=0"])
    with pytest.raises(RecipeError, match="1 fault:.*\n.*dpo.loss.*not known to harness.losses"):
        load_recipe(str(without), ["dpo.loss=simpoo"])


@pytest.mark.parametrize("loss", ["sppo", "rebel", "sppo_hard", "inpo"])
def test_losses_of_the_answering_policy_refuse_what_others_answered(loss):
    previous = [f"dpo.loss={loss}", "reference.policy=previous"]
    assert load_recipe("quickstart", previous).dpo.loss == loss
    arms = "generate.arms=[{n: 2}, {n: 2, policy: initial}, {n: 1, policy: previous}]"
    for override, message in [
        ("dpo.data=all", f"dpo.loss {loss} learns from .*; set dpo.data: current"),
        (arms, "generate.arms.1.policy: initial, generate.arms.2.policy: previous; set current there"),
    ]:
        with pytest.raises(RecipeError, match=message):
            load_recipe("quickstart", [*previous, override])
        assert load_recipe("quickstart", [*previous, override, "iterations=1"])  # all of them are the first policy
        assert load_recipe("quickstart", [override])


@pytest.mark.parametrize("loss", ["sppo", "rebel", "sppo_hard"])
def test_losses_of_the_answering_policy_need_it_as_the_reference(loss):
    for reference in ([], ["reference.policy=every_k", "reference.k=2"]):
        with pytest.raises(RecipeError, match=f"dpo.loss {loss} .*; set reference.policy: previous"):
            load_recipe("quickstart", [f"dpo.loss={loss}", *reference])
    assert load_recipe("quickstart", [f"dpo.loss={loss}", "iterations=1"])
    with pytest.raises(RecipeError, match="offline_dpo has none of"):
        load_recipe("quickstart", [f"dpo.loss={loss}", "reference.policy=previous", "baseline=offline_dpo"])


def test_losses_that_read_scores_refuse_a_rule_that_does_not_choose_by_them():
    model = "preference={start: base, learning_rate: 1.0e-5, batch_size: 8, max_length: 512}"
    compares = ["annotate.scorer=pairwise", "annotate.tournament=knockout", model, "reference.policy=previous", "reward=null"]
    for loss in ("sppo", "rebel"):
        with pytest.raises(RecipeError, match=f"dpo.loss {loss} learns from scores.*; set pairs.rule: max_min"):
            load_recipe("quickstart", [*compares, f"dpo.loss={loss}", "pairs.rule=tournament"])
        assert load_recipe("quickstart", [*compares, f"dpo.loss={loss}"])
    assert load_recipe("quickstart", [*compares, "dpo.loss=sppo_hard", "pairs.rule=tournament"])


def half_hinge(pairs: PairBatch, *, beta: float, width: float):
    return (width - beta * pairs.margin).relu()


def entry_points(**named):
    class Point:
        def __init__(self, name, value):
            self.name, self.load = name, lambda: value

    return lambda group: [Point(*item) for item in named.items()] if group == "harness.losses" else []


def test_a_loss_of_another_package(monkeypatch):
    declared = entry_points(
        half_hinge=PairLoss(half_hinge, {"width": 1.0}), bare=half_hinge, greedy=PairLoss(half_hinge, needs=frozenset({"gold"}))
    )
    monkeypatch.setattr("train.plugins.entry_points", declared)
    assert loss_options("half_hinge", {}, {"width": 0.5}) == {"width": 0.5} and loss_options("half_hinge", {}, {}) == {
        "width": 1.0
    }
    assert load_recipe("quickstart", ["dpo.loss=half_hinge", "dpo.loss_options={width: 2.0}"]).dpo.loss_options == {"width": 2.0}
    for name, options, message in [
        ("half_hinge", ({"simpo_gamma": 1.0}, {}), "does not use dpo.simpo_gamma .*dpo.loss_options.width"),
        ("half_hinge", ({}, {"wdth": 1.0}), "does not use dpo.loss_options.wdth"),
        ("bare", ({}, {}), "no train.losses.PairLoss"),
        ("greedy", ({}, {}), "needs gold"),
    ]:
        with pytest.raises(RecipeError, match=message):
            loss_options(name, *options)


# --- one real step of each on a tiny Llama, through the stage's own trainer ---


@pytest.fixture(scope="module")
def rows(tiny_llama, tmp_path_factory):
    return loss_rows(tiny_llama, tmp_path_factory.mktemp("pairs"), frozenset(NEEDS))


BETAS = {"simpo": 2.5, "sppo": 0.1, "inpo": 0.1}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_lowers_the_loss_that_is_trained(name, tiny_llama, rows, make_spec):
    """Three steps on one batch: what the trainer logs first is our formula at the reference, and it falls."""
    from core.stage import Spec, Stage
    from train.chat import load_tokenizer
    from train.dpo import make_trainer

    beta, defaults = BETAS.get(name, 0.1), {k: OPTIONS.get(k, v) for k, v in LOSSES[name].options.items()}
    settings = dpo_settings(loss=name, beta=beta, loss_options=defaults, max_steps=3, learning_rate=3e-4)
    stage = Stage(Spec.load(make_spec("dpo", settings, {"policy": tiny_llama}, resources=RESOURCES | {"micro_batch_size": 4})))
    needs = {"rewards": "rewards", "win_rates": "win_rates", "previous": "previous"}
    unneeded = tuple(part for need, part in needs.items() if need not in LOSSES[name].needs)
    given_rows = [{k: v for k, v in row.items() if not any(part in k for part in unneeded)} for row in rows]
    types, weights = dpo_losses(name, 0.0)
    trainer = make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), given_rows, loss_type=types, loss_weights=weights)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in history] == [1, 2, 3]
    assert history[2]["loss"] < history[0]["loss"]
    assert history[0]["kl_first"] == pytest.approx(0, abs=1e-3)
    assert history[0]["tokens/chosen"] == sum(len(row["chosen_ids"]) for row in rows) / 4

    column = {k: torch.tensor([row[k] for row in rows]) for k in rows[0] if k.endswith(("_logps", "_rewards", "_win_rates"))}
    tokens = {side: torch.tensor([float(len(row[f"{side}_ids"])) for row in rows]) for side in ("chosen", "rejected")}
    named = {k: v for k, v in column.items() if not k.startswith(("ref", "first"))}
    at_start = PairBatch(
        column["ref_chosen_logps"],
        column["ref_rejected_logps"],
        column["ref_chosen_logps"],
        column["ref_rejected_logps"],
        tokens["chosen"],
        tokens["rejected"],
        **named,
        chosen_weights=torch.ones(4),
        rejected_weights=torch.ones(4),
    )
    expected = LOSSES[name].function(at_start, beta=beta, **defaults).mean().item()
    if name == "wpo":  # a random model's answers are off its own policy: the weights only lower it
        assert 0 < history[0]["loss"] < expected
    else:
        assert history[0]["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", TRL_LOSSES)
def test_every_loss_of_trl_trains(name, tiny_llama, rows, make_spec):
    """Two steps through the stage's trainer: a name that trl drops, or a loss that needs what our trainer withholds, fails."""
    from core.stage import Spec, Stage
    from train.chat import load_tokenizer
    from train.dpo import make_trainer

    smoothing = 0.001 if name == "exo_pair" else 0.0
    settings = dpo_settings(loss=name, label_smoothing=smoothing, beta=default_beta(name), max_steps=2)
    stage = Stage(Spec.load(make_spec("dpo", settings, {"policy": tiny_llama}, resources=RESOURCES)))
    types, weights = dpo_losses(name, smoothing)
    own = [{k: v for k, v in row.items() if not any(part in k for part in ("rewards", "win_rates", "previous"))} for row in rows]
    for row in own:  # away from the reference, where some losses have no gradient
        row["ref_chosen_logps"] -= 0.5
        row["ref_rejected_logps"] += 0.25
    trainer = make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), own, loss_type=types, loss_weights=weights)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())
