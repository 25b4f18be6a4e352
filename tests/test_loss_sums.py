"""Sums of trl's losses and its f-divergences, by the value of a trainer's first step and by what a recipe refuses."""

import math
from typing import Any

import pytest

from core.errors import RecipeError
from core.stage import Spec, Stage
from harness.plan import Inputs, Ref, build_plan
from harness.recipe_file import load_recipe
from tests.training import RESOURCES, dpo_settings, loss_rows
from train.chat import load_tokenizer
from train.losses import dpo_losses

BETA = 0.1
CHOSEN, REJECTED = 0.5, -0.25
"""Log-ratios that the rows of these tests have at the first step."""


@pytest.fixture(scope="module")
def rows(tiny_llama, tmp_path_factory) -> list[dict[str, Any]]:
    rows = loss_rows(tiny_llama, tmp_path_factory.mktemp("pairs"), frozenset())
    for row in rows:
        row["ref_chosen_logps"] -= CHOSEN
        row["ref_rejected_logps"] -= REJECTED
    return [{key: value for key, value in row.items() if "previous" not in key} for row in rows]


@pytest.fixture
def first_loss(tiny_llama, rows, make_spec):
    """The loss of one step on all rows, under settings of `dpo`."""

    def value(**changes: Any) -> float:
        from train.dpo import make_trainer

        settings = dpo_settings(beta=BETA, max_steps=1) | changes
        resources = RESOURCES | {"micro_batch_size": 4}
        stage = Stage(Spec.load(make_spec("dpo", settings, {"policy": tiny_llama}, resources=resources)))
        types, weights = dpo_losses(settings["loss"], settings["label_smoothing"], settings.get("added_losses"))
        trainer = make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), rows, loss_type=types, loss_weights=weights)
        trainer.train()
        return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)

    return value


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("divergence", "f_prime"),
    [
        # f'(u) of arXiv 2309.16240, table 1, at u = exp(log-ratio).
        ({"f_divergence": "reverse_kl"}, lambda u: math.log(u) + 1),
        ({"f_divergence": "forward_kl"}, lambda u: -1 / u),
        ({"f_divergence": "js_divergence"}, lambda u: math.log(2 * u / (1 + u))),
        ({"f_divergence": "alpha_divergence"}, lambda u: (1 - u**-0.5) / 0.5),
        ({"f_divergence": "alpha_divergence", "f_alpha": 0.25}, lambda u: (1 - u**-0.75) / 0.75),
    ],
)
def test_an_f_divergence_compares_its_derivatives(divergence, f_prime, first_loss):
    difference = f_prime(math.exp(CHOSEN)) - f_prime(math.exp(REJECTED))
    assert first_loss(**divergence) == pytest.approx(minus_log_sigmoid(BETA * difference), rel=1e-4)


def test_the_temperature_of_discopop_is_its_own(first_loss):
    x = BETA * (CHOSEN - REJECTED)
    for tau, settings in ((0.05, {}), (0.5, {"discopop_tau": 0.5})):
        share = 1 / (1 + math.exp(-x / tau))
        expected = (1 - share) * minus_log_sigmoid(x) + share * math.exp(-x)
        assert first_loss(loss="discopop", **settings) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "added", "smoothing"),
    [("sigmoid", {"sft": 1.0}, 0.0), ("sigmoid", {"bco_pair": 0.25, "sft": 1.25}, 0.0), ("sigmoid", {"robust": 0.5}, 0.1)],
)
def test_a_sum_is_the_sum_of_its_losses(loss, added, smoothing, first_loss):
    parts = [first_loss(loss=loss, label_smoothing=smoothing)]
    for name, weight in added.items():
        parts.append(weight * first_loss(loss=name, label_smoothing=smoothing if name == "robust" else 0.0))
    summed = first_loss(loss=loss, added_losses=added, label_smoothing=smoothing)
    assert summed == pytest.approx(sum(parts), rel=1e-4)
    assert abs(summed - parts[0]) > 0.01


def test_a_loss_of_ours_takes_added_ones_too(first_loss):
    options = {"loss_options": {"simpo_gamma": 1.375}, "loss": "simpo"}
    assert first_loss(**options, added_losses={"sft": 0.5, "sigmoid": 2.0}) == pytest.approx(
        first_loss(**options) + 0.5 * first_loss(loss="sft") + 2 * first_loss(), rel=1e-4
    )


def test_weights_of_the_sums():
    assert dpo_losses("hinge", 0.0, {"sft": 0.5}) == (["hinge", "sft"], [1.0, 0.5])
    assert dpo_losses("sppo_hard", 0.0, {"sft": 0.5}) == (["sppo_hard", "sft"], [1.0, 0.5])
    assert dpo_losses("rdpo", 0.0, {"sigmoid": 2.0}) == (["sigmoid"], [2.0])
    names, weights = dpo_losses("sigmoid", 0.1, {"robust": 1.0})
    assert names == ["sigmoid", "robust"] and weights == pytest.approx([1.8, 0.2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dpo.added_losses={stf: 1.0}"], "added_losses names stf; only losses of trl"),
        (["dpo.added_losses={simpo: 1.0}"], "added_losses names simpo"),
        (["dpo.added_losses={sigmoid: 1.0}"], "repeats sigmoid"),
        (["dpo.added_losses={sppo_hard: 1.0}"], "make it dpo.loss"),
        (["dpo.added_losses={exo_pair: 1.0}"], "exo_pair loss is undefined without label smoothing"),
        (["dpo.loss=wpo", "dpo.added_losses={sft: 1.0}"], "wpo loss weighs its pairs"),
        (["dpo.loss=hinge", "dpo.label_smoothing=0.1", "dpo.added_losses={robust: 1}"], "hinge loss has no label smoothing"),
        (["dpo.loss=apo_zero", "dpo.f_divergence=forward_kl"], "apo_zero loss is defined for f_divergence reverse_kl only"),
        (["dpo.loss=simpo", "dpo.f_divergence=js_divergence"], "simpo loss is defined for f_divergence reverse_kl only"),
        (["dpo.added_losses={nca_pair: 1}", "dpo.f_divergence=js_divergence"], "nca_pair loss is defined for"),
        (["dpo.f_divergence=kl"], "reverse_kl"),
        (["dpo.f_alpha=0.5"], "f_alpha belongs to f_divergence alpha_divergence, not to reverse_kl"),
        (["dpo.discopop_tau=0.1"], "discopop_tau belongs to the loss discopop, not to sigmoid"),
    ],
)
def test_what_cannot_be_summed_is_refused_with_the_recipe(overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("quickstart", overrides)


def test_recipes_that_set_none_of_it_keep_their_stages():
    """Their settings are left out at their defaults, so that policies trained before they existed are found again."""

    def dpo_settings_of(*overrides: str) -> dict[str, Any]:
        inputs = Inputs(base=Ref(path="/base", fingerprint="base"), sources=[], benchmarks=[])
        return build_plan(load_recipe("quickstart", list(overrides)), inputs).nodes["dpo[1]"].settings

    new = {"added_losses", "f_divergence", "f_alpha", "discopop_tau"}
    assert not new & set(dpo_settings_of())
    told = ["dpo.added_losses={sft: 0.2}", "dpo.f_divergence=alpha_divergence", "dpo.f_alpha=0.3"]
    settings = dpo_settings_of(*told)
    assert (settings["added_losses"], settings["f_divergence"], settings["f_alpha"]) == ({"sft": 0.2}, "alpha_divergence", 0.3)
