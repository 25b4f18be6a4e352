"""A DPO training that does not move: when it is said, and when nothing may be said."""

import math

import pytest

from tests.training import RESOURCES, dpo_settings, make_pairs, read_events
from train.losses import TRL_LOSSES, dpo_losses
from train.preference_losses import PairBatch, dpo
from train.standstill import AT_ZERO_MARGIN, standstill

LOG_2 = math.log(2)


def history(losses: list[float], accuracy: float = 0.5) -> list[dict[str, float]]:
    return [{"step": k + 1, "loss": loss, "rewards/accuracies": accuracy} for k, loss in enumerate(losses)]


def noisy(n: int, begin: float, end: float, noise: float = 0.002) -> list[float]:
    """A straight line with an alternating error."""
    return [begin + (end - begin) * k / (n - 1) + noise * (-1) ** k for k in range(n)]


STILL = noisy(40, LOG_2, LOG_2)


def test_a_loss_that_does_not_move_is_said_with_its_likely_causes():
    said = standstill(history(STILL), dpo_settings(learning_rate=1e-9))
    assert said is not None and said.count(". ") == 0 and said.endswith(".")
    for part in ("0.6931", "50%", "last 10 steps", "learning_rate 1e-09", "precision: bf16", "template"):
        assert part in said
    assert standstill(history([LOG_2] * 40, accuracy=0.0), dpo_settings()), "margins of exactly 0 count as wrong, not as half"
    assert standstill(history([1.0] * 40), dpo_settings(loss="hinge"))
    assert standstill(history([25.0] * 40), dpo_settings(loss="ipo", beta=0.1))


@pytest.mark.parametrize(
    ("entries", "changes"),
    [
        (history(noisy(40, LOG_2, 0.6)), {}),  # it falls
        (history(noisy(40, LOG_2, 0.75)), {}),  # it rises
        (history(noisy(40, LOG_2, 0.6895, noise=0.0005)), {}),  # by half a per cent, which its noise cannot do
        (history(noisy(40, 0.6, 0.6)), {}),  # it stands elsewhere: the policy began away from the reference
        (history(STILL, accuracy=0.7), {"batch_size": 8}),  # 80 pairs: 0.5 + 2 x 0.056 is below it
        (history(STILL[:7]), {}),  # too few steps to tell
        (history(STILL), {"loss": "simpo"}),
        (history(STILL), {"loss": "nca_pair"}),
        (history(STILL), {"loss": "hinge"}),  # 0.693 is no zero margin of this one
    ],
)
def test_nothing_is_said_of_one_that_moves_or_that_nothing_is_known_of(entries, changes):
    assert standstill(entries, dpo_settings(**changes)) is None


def test_the_accuracy_of_few_pairs_is_within_its_error():
    entries = history(STILL, accuracy=0.6)
    assert standstill(entries, dpo_settings(batch_size=8)), "80 pairs: within 2 x 0.056"
    assert standstill(entries, dpo_settings(batch_size=80)) is None, "800 pairs: 2 x 0.018"


@pytest.mark.parametrize("name", sorted(AT_ZERO_MARGIN))
def test_the_value_at_margin_zero_is_what_trl_computes_there(name, tiny_llama, make_spec):
    """One step from a policy that is the reference, so that every margin is 0."""
    from transformers import AutoModelForCausalLM

    from core.stage import Spec, Stage
    from train.chat import load_tokenizer
    from train.dpo import make_trainer
    from train.logprobs import response_logprobs

    model, sides = AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), {"chosen": [7, 8, 9], "rejected": [9, 10]}
    own = {side: response_logprobs(model, [[5, 6]], [ids]).item() for side, ids in sides.items()}
    row = {"prompt_ids": [5, 6], "length": 5} | {f"{side}_ids": ids for side, ids in sides.items()}
    row |= {f"ref_{side}_logps": own[side] for side in sides}
    smoothing = 0.1 if name in ("sigmoid", "robust", "exo_pair", "aot") else 0.0
    settings = dpo_settings(loss=name, label_smoothing=smoothing, max_steps=1)
    stage = Stage(Spec.load(make_spec("dpo", settings, {"policy": tiny_llama}, resources=RESOURCES)))
    types, weights = dpo_losses(name, smoothing)
    trainer = make_trainer(stage, tiny_llama, load_tokenizer(tiny_llama), [row] * 4, loss_type=types, loss_weights=weights)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(AT_ZERO_MARGIN[name](0.1, smoothing), rel=1e-4)


def test_the_losses_are_trls_and_dpo_is_log_2():
    import torch

    assert set(AT_ZERO_MARGIN) <= set(TRL_LOSSES)
    zero = PairBatch(*(torch.zeros(1, dtype=torch.float64) for _ in range(4)), torch.ones(1), torch.ones(1))
    assert AT_ZERO_MARGIN["sigmoid"](0.3, 0.0) == pytest.approx(dpo(zero, beta=0.3).item(), abs=1e-12)


def test_the_stage_says_it(tiny_llama, run_stage, tmp_path):
    pairs = make_pairs(tiny_llama, tmp_path / "pairs", 16)
    cached = run_stage(
        "train.reference", "reference", {"max_length": 128, "precision": "fp32"}, {"reference": tiny_llama, "pairs": pairs}
    )
    inputs = {"policy": tiny_llama, "pairs": pairs, "reference": cached.path}
    said = {}
    for rate in (1e-3, 1e-12):
        events = tmp_path / f"{rate}.ndjson"
        settings = dpo_settings(epochs=3, learning_rate=rate)
        run_stage("train.dpo", f"dpo-{rate}", settings, inputs, resources=RESOURCES, events=str(events))
        said[rate] = [event["text"] for event in read_events(events, "message")]
    assert said[1e-3] == [] and len(said[1e-12]) == 1 and "learning_rate 1e-12" in said[1e-12][0]
