"""Losses of Bradley-Terry reward models: pure functions of the rewards of n pairs, one value a pair.

r_w, r_l: rewards of the chosen and the rejected answer; s the logistic function.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry(
    chosen: "Tensor", rejected: "Tensor", *, margin: "Tensor | None" = None, label_smoothing: float = 0.0
) -> "Tensor":
    """-(1 - e) log s(d) - e log s(-d) with d = r_w - r_l - margin. [n]

    Without the options the negative log-likelihood of Bradley and Terry (1952). The margin is that of Llama 2 (Touvron et
    al. 2023, arXiv 2307.09288, Eq. 2): how much better the chosen answer is said to be. `label_smoothing` e in [0, 0.5) is
    the share of labels taken to be flipped (Wang et al. 2024, arXiv 2401.06080; the same form as conservative DPO).
    """
    from torch.nn.functional import logsigmoid

    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -(1 - label_smoothing) * logsigmoid(difference)
    return loss - label_smoothing * logsigmoid(-difference) if label_smoothing else loss


def centring(chosen: "Tensor", rejected: "Tensor") -> "Tensor":
    """(r_w + r_l)^2, which a small multiple of draws rewards towards mean 0 (Eisenstein et al. 2023, arXiv 2312.09244). [n]"""
    return (chosen + rejected) ** 2


def reward_loss(
    chosen: "Tensor",
    rejected: "Tensor",
    *,
    margin: "Tensor | None" = None,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float | None = None,
) -> "Tensor":
    """`bradley_terry` + c `centring`, averaged over the pairs. Inputs [n], float32; a scalar."""
    loss = bradley_terry(chosen, rejected, margin=margin, label_smoothing=label_smoothing)
    if center_rewards_coefficient:
        loss = loss + center_rewards_coefficient * centring(chosen, rejected)
    return loss.mean()
