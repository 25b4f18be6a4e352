"""DPO losses by name: trl's as weighted sums, our own and other packages' as functions of a `PairBatch`.

    dpo_losses("sigmoid", 0.1)        # trl's loss types and weights
    dpo_losses("sigmoid", 0.0, {"sft": 1.0})   # (["sigmoid", "sft"], [1.0, 1.0])
    find_loss("simpo").options        # {"simpo_gamma": 1.375}: its recipe keys and their defaults
    default_beta("simpo")             # 2.5: beta where the recipe sets none

A loss of your own is a `PairLoss` declared under the entry-point group `harness.losses`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import RecipeError
from train import preference_losses as ours
from train.plugins import find_plugin

# The names that trl 1.16's DPOTrainer computes (trl/trainer/dpo_trainer.py, `_compute_loss`).
TRL_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
# Those of them that read label_smoothing themselves; for sigmoid see `dpo_losses`.
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
# Those of them that every f-divergence leaves defined; in the others a log Z does not cancel (trl/trainer/dpo_trainer.py).
_ANY_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
# Those of them whose reference is the policy that answered: SPPO with preferences that are certain (arXiv 2405.00675).
_ON_POLICY = ("sppo_hard",)

DPO_BETA = 0.1
"""beta of RLHF Workflow (section 3.3) and of trl's DPOConfig, whichever loss it computes."""

NEEDS = ("rewards", "win_rates", "previous", "weights")
"""What a loss may ask for beyond log-probabilities and lengths: fields of `PairBatch`."""


@dataclass(frozen=True)
class PairLoss:
    """A loss `function(batch: PairBatch, *, beta, **options) -> Tensor [n]`, averaged over the pairs of a batch."""

    function: Callable[..., Any]
    options: Mapping[str, float | None] = field(default_factory=dict)
    """Keyword -> default; None where the recipe must say. Our own are keys of `dpo`, others' of `dpo.loss_options`."""
    needs: frozenset[str] = frozenset()
    """A subset of `NEEDS`."""
    on_policy: bool = False
    """Whether its log-ratio is to the policy that answered: then `reference.policy` must be `previous`."""
    beta: float = DPO_BETA
    """Where the recipe sets none."""


LOSSES: dict[str, PairLoss] = {
    # beta 2.5 and gamma / beta = 0.55: princeton-nlp/SimPO, README, Llama-3-Instruct.
    "simpo": PairLoss(ours.simpo, {"simpo_gamma": 1.375}, beta=2.5),
    # The paper and its successors tune alpha from 0.005 to 1: there is no default to rely on.
    "rdpo": PairLoss(ours.rdpo, {"rdpo_alpha": None}),
    # alpha = 1 and beta = 0.1 in the experiments of arXiv 2404.19733.
    "dpo_nll": PairLoss(ours.dpo_nll, {"nll_weight": 1.0}),
    # eta = 1000 in the experiments of arXiv 2405.00675.
    "sppo": PairLoss(ours.sppo, needs=frozenset({"win_rates"}), on_policy=True, beta=0.001),
    # tau = eta / 3 in the experiments of arXiv 2407.00617, with eta = beta = 0.005.
    "inpo": PairLoss(ours.inpo, {"inpo_ratio": 1 / 3}, frozenset({"previous"}), beta=0.005),
    # eta = 1 with FsfairX's rewards (ZhaolinGao/REBEL, src/ultrafeedback/rebel.py); 1e6 with ArmoRM's, whose unit is another.
    "rebel": PairLoss(ours.rebel, needs=frozenset({"rewards"}), on_policy=True, beta=1.0),
    # beta = 0.01 in the experiments of arXiv 2406.11827.
    "wpo": PairLoss(ours.wpo, needs=frozenset({"weights"}), beta=0.01),
}


def find_loss(name: str) -> PairLoss | None:
    """The loss called `name`, or None for one of trl's. Raises RecipeError with all known names."""
    if name in TRL_LOSSES:
        return None
    table = dict.fromkeys(TRL_LOSSES) | LOSSES
    found = find_plugin(name, table, "harness.losses")
    if not isinstance(found, PairLoss):
        raise RecipeError(f"The entry point {name} of harness.losses is no train.losses.PairLoss; wrap its function in one.")
    unknown = found.needs - set(NEEDS)
    if unknown:
        raise RecipeError(f"The loss {name} needs {', '.join(sorted(unknown))}; a PairLoss may need {', '.join(NEEDS)}.")
    return found


def default_beta(name: str) -> float:
    """beta that the loss `name` runs with where the recipe sets none: as published with it, see `LOSSES`."""
    loss = find_loss(name)
    return DPO_BETA if loss is None else loss.beta


def learns_from_the_current_policy(name: str) -> bool:
    """Whether the loss `name` supposes that the policy which is improved gave all the answers itself."""
    loss = find_loss(name)
    return name in _ON_POLICY if loss is None else loss.on_policy or "previous" in loss.needs


def refers_to_the_answering_policy(name: str) -> bool:
    """Whether the log-ratio of the loss `name` is to the policy that answered."""
    loss = find_loss(name)
    return name in _ON_POLICY if loss is None else loss.on_policy


def loss_options(name: str, given: Mapping[str, float], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword -> value that the loss `name` runs with: its defaults, and what the recipe sets.

    `given`: the keys of `dpo` that belong to losses of ours, where they are set; `extra`: `dpo.loss_options`, for losses of
    other packages. Raises RecipeError for a key that this loss does not use, by name, and for one that it needs and lacks.
    """
    loss = find_loss(name)
    section = "dpo." if loss is None or name in LOSSES else "dpo.loss_options."
    options = {section + key: value for key, value in (loss.options if loss else {}).items()}
    told = {f"dpo.{key}": value for key, value in given.items()} | {f"dpo.loss_options.{k}": v for k, v in extra.items()}
    unused = [key for key in told if key not in options]
    if unused:
        raise RecipeError(
            f"The {name} loss does not use {', '.join(unused)} (keys of its own: {', '.join(options) or 'none'}); "
            "remove what it does not use."
        )
    options |= told
    missing = [key for key, value in options.items() if value is None]
    if missing:
        raise RecipeError(f"The {name} loss has no default for {', '.join(missing)}; set it in the recipe.")
    return {key.removeprefix(section): value for key, value in options.items()}


def dpo_losses(loss: str, label_smoothing: float, added: Mapping[str, float] | None = None) -> tuple[list[str], list[float]]:
    """trl's `loss_type` and `loss_weights` for a loss and a label smoothing e in [0, 0.5). Raises RecipeError.

    trl ignores label smoothing for the sigmoid loss. Conservative DPO (Mitchell 2023, "A note on DPO with noisy
    preferences") is (1 - e) A + e B with A = -log s(x), B = -log s(-x), x the scaled margin; as trl's robust loss is
    ((1 - e) A - e B) / (1 - 2e), it is exactly 2 (1 - e) sigmoid - (1 - 2e) robust.

    A loss that trl does not have is computed beside it: trl's own part then is sigmoid with weight 0. `added`: losses of trl
    by name -> weight beside the 1 of `loss`.
    """
    own = find_loss(loss)
    _require_addable(loss, own, added or {})
    if not 0 <= label_smoothing < 0.5:
        raise RecipeError(f"label_smoothing {label_smoothing} flips most preferences; set it in [0, 0.5).")
    if "exo_pair" in (loss, *(added or ())) and label_smoothing == 0:
        raise RecipeError("The exo_pair loss is undefined without label smoothing; set label_smoothing to 0.001.")
    if label_smoothing and loss not in ("sigmoid", *_SMOOTHED):
        raise RecipeError(f"The {loss} loss has no label smoothing; set label_smoothing to 0 or loss to sigmoid or robust.")
    if label_smoothing and loss == "sigmoid":
        weights = {"sigmoid": 2 * (1 - label_smoothing), "robust": -(1 - 2 * label_smoothing)}
    else:
        weights = {loss: 1.0} if own is None else {"sigmoid": 0.0}
    for name, weight in (added or {}).items():
        weights[name] = weights.get(name, 0.0) + weight
    return list(weights), list(weights.values())


def _require_addable(loss: str, own: PairLoss | None, added: Mapping[str, float]) -> None:
    """Raise RecipeError unless the losses `added` can be summed with `loss`."""
    if unknown := [name for name in added if name not in TRL_LOSSES]:
        raise RecipeError(f"added_losses names {', '.join(unknown)}; only losses of trl are added: {', '.join(TRL_LOSSES)}.")
    if loss in added:
        raise RecipeError(f"added_losses repeats {loss}, whose weight is 1; give the others' weights relative to it.")
    if tied := [name for name in added if name in _ON_POLICY]:
        raise RecipeError(f"{tied[0]} learns from the answers of its own reference; make it dpo.loss, and add the others to it.")
    if added and own is not None and "weights" in own.needs:
        raise RecipeError(
            f"The {loss} loss weighs its pairs, and trl would weigh what is added by them too; leave added_losses out."
        )


def require_divergence(loss: str, added: Mapping[str, float], divergence: str) -> None:
    """Raise RecipeError unless `loss` and the losses `added` are defined under that f-divergence (arXiv 2309.16240)."""
    if divergence != "reverse_kl" and (undefined := [name for name in (loss, *added) if name not in _ANY_DIVERGENCE]):
        defined = ", ".join(_ANY_DIVERGENCE)
        raise RecipeError(
            f"The {undefined[0]} loss is defined for f_divergence reverse_kl only; {divergence} goes with {defined}."
        )
