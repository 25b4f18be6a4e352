"""Keys of `dpo` and `reference`: the training of each iteration."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.recipe.sections import Fraction, NonNegative, Positive, Section
from harness.recipe.training import Training
from train.losses import LOSSES, default_beta, dpo_losses, find_loss, loss_options, require_divergence

LOSS_KEYS = tuple(key for loss in LOSSES.values() for key in loss.options)
"""Keys of `dpo` that belong to one loss each."""


class Reference(Section):
    policy: Literal["initial", "previous", "every_k"] = "initial"
    """`initial` is pi_0 in every iteration (paper section 3.3); `previous` is the last iterate (released code); `every_k` is
    the iterate of every k-th iteration, kept until the next."""
    k: Positive | None = None
    """Iterations that an every_k reference stays; 1 would be `previous`."""
    batch_tokens: Positive | None = None
    """Padded tokens of a forward pass for its log-probabilities; None is 4096."""
    processes: Positive = 1
    """Processes that share the pairs out, each with the reference on a GPU of its own; none of its numbers depends on theirs."""

    @model_validator(mode="after")
    def _k_with_every_k(self) -> "Reference":
        if (self.policy == "every_k") != (self.k is not None):
            raise ValueError("policy every_k needs k, the iterations between refreshes, and no other takes one; set both or none")
        return self


class DPO(Training):
    loss: str = "sigmoid"
    """A loss of trl's DPOTrainer (sigmoid, hinge, ipo, ...), one of ours (simpo, rdpo, dpo_nll, sppo, inpo, rebel, wpo), or
    one that a package declares (`harness.losses`). rebel and sppo learn from the scores by which pairs are chosen, the length
    penalty taken off; sppo's win rates are what a scorer that compares measured, where it compared every two answers and
    nothing was taken off, else the logistic function of score differences, which takes scores for a reward model's logits."""
    beta: float | None = Field(None, gt=0, validate_default=True)
    """Multiplies the log-ratio to the reference; 1 / eta in the papers of sppo and rebel, eta in inpo's. null is what was
    published with the loss: 0.1; 2.5 of simpo, 1 of rebel, 0.01 of wpo, 0.005 of inpo, 0.001 of sppo."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    simpo_gamma: NonNegative | None = None
    """simpo: the margin that is asked for; 1.375 unless set (0.55 times a beta of 2.5)."""
    rdpo_alpha: NonNegative | None = None
    """rdpo: reward taken off per token of length; it has no default."""
    nll_weight: NonNegative | None = None
    """dpo_nll: weight of the chosen answer's mean negative log-likelihood; 1 unless set."""
    inpo_ratio: Fraction | None = None
    """inpo: tau / eta, the reference's share of the anchor against the last iterate's; 1/3 unless set."""
    loss_options: dict[str, Any] = {}
    """Options of a loss that another package declares."""
    added_losses: dict[str, float] = {}
    """Losses of trl summed with `loss`, by their weights beside its 1: {sft: 1.0} keeps the chosen answers likely (RPO),
    {bco_pair: 0.25, sft: 1.25} is MPO's 0.8, 0.2 and 1 (arXiv 2411.10442) divided by 0.8."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy near the reference (f-DPO, arXiv 2309.16240); reverse_kl is DPO. For losses of trl that compare two
    answers by their difference: sigmoid, sigmoid_norm, hinge, ipo, exo_pair, robust, discopop, sft."""
    f_alpha: float | None = Field(None, gt=0)
    """alpha_divergence: its alpha; 0.5 unless set. 1 is the reverse KL."""
    discopop_tau: float | None = Field(None, gt=0)
    """discopop: the temperature of its mixture; 0.05 unless set (arXiv 2406.08414)."""
    held_out_pairs: int = Field(256, ge=0)
    """At most so many held-out pairs on which the implicit reward is measured after each epoch; 0 leaves it out."""
    data: Literal["current", "all"] = "current"
    """Pairs of this iteration only (released code), or of all iterations so far (paper Algorithm 2)."""
    start: Literal["previous", "initial"] = "previous"
    """Continue from the last iterate, or from pi_0 each time."""

    @field_validator("loss")
    @classmethod
    def _loss_is_known(cls, loss: str) -> str:
        find_loss(loss)
        return loss

    @field_validator("beta")
    @classmethod
    def _beta_is_a_number(cls, beta: float | None, fields: ValidationInfo) -> float | None:
        """Resolved here, so that a recipe, its plan and its stages hold the number itself."""
        return default_beta(fields.data["loss"]) if beta is None and "loss" in fields.data else beta

    @model_validator(mode="after")
    def _loss_takes_its_keys(self) -> "DPO":
        dpo_losses(self.loss, self.label_smoothing, self.added_losses)
        require_divergence(self.loss, self.added_losses, self.f_divergence)
        if self.f_alpha is not None and self.f_divergence != "alpha_divergence":
            raise ValueError(f"f_alpha belongs to f_divergence alpha_divergence, not to {self.f_divergence}; remove it")
        if self.discopop_tau is not None and "discopop" not in (self.loss, *self.added_losses):
            raise ValueError(f"discopop_tau belongs to the loss discopop, not to {self.loss}; remove it")
        self.resolved_options()
        return self

    def resolved_options(self) -> dict[str, Any]:
        """What the loss runs with, its defaults filled in. Raises RecipeError (a ValueError) for a key it does not use."""
        given = {key: value for key in LOSS_KEYS if (value := getattr(self, key)) is not None}
        return loss_options(self.loss, given, self.loss_options)
