"""Keys of `dpo` and `reference`: the training of each iteration."""

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.recipe.sections import Fraction, NonNegative, Positive, Section
from harness.recipe.training import Training
from train.losses import LOSSES, dpo_losses, loss_options

LOSS_KEYS = tuple(key for loss in LOSSES.values() for key in loss.options)
"""Keys of `dpo` that belong to one loss each."""


class Reference(Section):
    policy: Literal["initial", "previous", "every_k"] = "initial"
    """`initial` is pi_0 in every iteration (paper section 3.3); `previous` is the last iterate (released code); `every_k` is
    the iterate of every k-th iteration, kept until the next."""
    k: Positive | None = None
    """Iterations that an every_k reference stays; 1 would be `previous`."""

    @model_validator(mode="after")
    def _k_with_every_k(self) -> "Reference":
        if (self.policy == "every_k") != (self.k is not None):
            raise ValueError("policy every_k needs k, the iterations between refreshes, and no other takes one; set both or none")
        return self


class DPO(Training):
    loss: str = "sigmoid"
    """A loss of trl's DPOTrainer (sigmoid, hinge, ipo, ...), one of ours (simpo, rdpo, dpo_nll, sppo, inpo, rebel, wpo), or
    one that a package declares (`harness.losses`)."""
    beta: float = Field(0.1, gt=0)
    """Multiplies the log-ratio to the reference; 1 / eta in the papers of sppo (there 0.001) and rebel, eta in inpo's (0.005)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    simpo_gamma: NonNegative | None = None
    """simpo: the margin that is asked for; 1.375 unless set (beta 2.5 x 0.55)."""
    rdpo_alpha: NonNegative | None = None
    """rdpo: reward taken off per token of length; it has no default."""
    nll_weight: NonNegative | None = None
    """dpo_nll: weight of the chosen answer's mean negative log-likelihood; 1 unless set."""
    inpo_ratio: Fraction | None = None
    """inpo: tau / eta, the reference's share of the anchor against the last iterate's; 1/3 unless set."""
    loss_options: dict[str, Any] = {}
    """Options of a loss that another package declares."""
    held_out_pairs: int = Field(256, ge=0)
    """At most so many held-out pairs on which the implicit reward is measured after each epoch; 0 leaves it out."""
    data: Literal["current", "all"] = "current"
    """Pairs of this iteration only (released code), or of all iterations so far (paper Algorithm 2)."""
    start: Literal["previous", "initial"] = "previous"
    """Continue from the last iterate, or from pi_0 each time."""

    @model_validator(mode="after")
    def _loss_takes_its_keys(self) -> "DPO":
        dpo_losses(self.loss, self.label_smoothing)
        self.resolved_options()
        return self

    def resolved_options(self) -> dict[str, Any]:
        """What the loss runs with, its defaults filled in. Raises RecipeError (a ValueError) for a key it does not use."""
        given = {key: value for key in LOSS_KEYS if (value := getattr(self, key)) is not None}
        return loss_options(self.loss, given, self.loss_options)
