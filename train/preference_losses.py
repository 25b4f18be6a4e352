"""Preference losses that trl does not have: pure functions of log-probabilities, one value a pair.

Notation of the docstrings: pi the policy, ref the reference, pi_t the policy that answered; y_w chosen, y_l rejected;
D(y) = log pi(y|x) - log ref(y|x); h = D(y_w) - D(y_l); |y| tokens; s the logistic function. `beta` multiplies the
log-ratio in every loss, so it is 1 / eta where a paper (SPPO, REBEL) writes eta for the step size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """A batch of n pairs; every tensor has shape [n]. Log-probabilities (nats) are sums over the answer's tokens."""

    chosen_logps: "Tensor"
    rejected_logps: "Tensor"
    """Of the policy; these carry the gradient."""
    ref_chosen_logps: "Tensor"
    ref_rejected_logps: "Tensor"
    chosen_tokens: "Tensor"
    rejected_tokens: "Tensor"
    """Answer lengths, the turn-end token included."""
    chosen_rewards: "Tensor | None" = None
    rejected_rewards: "Tensor | None" = None
    """The scores by which the pair was chosen: rewards less what the length penalty takes off. Where a loss needs "rewards"."""
    chosen_win_rates: "Tensor | None" = None
    rejected_win_rates: "Tensor | None" = None
    """Probability in [0, 1] of beating an answer of pi_t (`train.selection.win_rates`). Where a loss needs "win_rates"."""
    previous_chosen_logps: "Tensor | None" = None
    previous_rejected_logps: "Tensor | None" = None
    """Of pi_t. Where a loss needs "previous"."""
    chosen_weights: "Tensor | None" = None
    rejected_weights: "Tensor | None" = None
    """`on_policy_weight` of each answer, without gradient. Where a loss needs "weights"."""

    @property
    def chosen_log_ratio(self) -> "Tensor":
        """D(y_w)."""
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_log_ratio(self) -> "Tensor":
        """D(y_l)."""
        return self.rejected_logps - self.ref_rejected_logps

    @property
    def margin(self) -> "Tensor":
        """h."""
        return self.chosen_log_ratio - self.rejected_log_ratio


def dpo(batch: PairBatch, *, beta: float) -> "Tensor":
    """-log s(beta h) (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7). [n]"""
    return _negative_log_sigmoid(beta * batch.margin)


def simpo(batch: PairBatch, *, beta: float, simpo_gamma: float) -> "Tensor":
    """-log s(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma): no reference, the reward a mean over tokens
    (Meng et al. 2024, arXiv 2405.14734, Eq. 6). [n]"""
    chosen = batch.chosen_logps / batch.chosen_tokens
    rejected = batch.rejected_logps / batch.rejected_tokens
    return _negative_log_sigmoid(beta * (chosen - rejected) - simpo_gamma)


def rdpo(batch: PairBatch, *, beta: float, rdpo_alpha: float) -> "Tensor":
    """-log s(beta h + alpha (|y_w| - |y_l|)) (Park et al. 2024, arXiv 2403.19159, section 3). [n]

    It follows from the reward r - alpha |y|: a longer chosen answer counts as won already, so that its length is not
    learned. The first release of RLHFlow/Online-RLHF (138f527, `len_penalty`) has the other sign, which rewards length.
    """
    return _negative_log_sigmoid(beta * batch.margin + rdpo_alpha * (batch.chosen_tokens - batch.rejected_tokens))


def dpo_nll(batch: PairBatch, *, beta: float, nll_weight: float) -> "Tensor":
    """-log s(beta h) - alpha log pi(y_w) / |y_w| (iterative RPO, Pang et al. 2024, arXiv 2404.19733, Eq. 1). [n]

    The mean is over each answer's own tokens; trl's `sft` takes it over all tokens of a batch.
    """
    return dpo(batch, beta=beta) - nll_weight * batch.chosen_logps / batch.chosen_tokens


def sppo(batch: PairBatch, *, beta: float) -> "Tensor":
    """Sum over both answers of (D_t(y) - (P(y beats pi_t) - 1/2) / beta)^2, D_t to pi_t
    (Wu et al. 2024, arXiv 2405.00675, Eq. 4.7, eta = 1 / beta; P estimated over the sampled answers, Algorithm 1). [n]

    It is symmetric in the two answers: their win rates say which is raised, and so must be those of the scores that chose.
    trl's `sppo_hard` is the same with P = 1 for the chosen and 0 for the rejected answer.
    """
    chosen = batch.chosen_log_ratio - (batch.chosen_win_rates - 0.5) / beta
    rejected = batch.rejected_log_ratio - (batch.rejected_win_rates - 0.5) / beta
    return chosen.square() + rejected.square()


def inpo(batch: PairBatch, *, beta: float, inpo_ratio: float) -> "Tensor":
    """(h_t - 1 / (2 eta))^2 with h_t = log pi(y_w) / pi(y_l) - (tau / eta) log ref(y_w) / ref(y_l)
    - ((eta - tau) / eta) log pi_t(y_w) / pi_t(y_l) (Zhang et al. 2024, arXiv 2407.00617, section 3). [n]

    beta is eta; inpo_ratio is tau / eta: 1 regresses on the reference alone, 0 on pi_t alone.
    """
    reference = batch.ref_chosen_logps - batch.ref_rejected_logps
    previous = batch.previous_chosen_logps - batch.previous_rejected_logps
    h = batch.chosen_logps - batch.rejected_logps - inpo_ratio * reference - (1 - inpo_ratio) * previous
    return (h - 0.5 / beta).square()


def rebel(batch: PairBatch, *, beta: float) -> "Tensor":
    """(beta h_t - (r(y_w) - r(y_l)))^2, h_t to pi_t (Gao et al. 2024, arXiv 2404.16767, Algorithm 1, eta = 1 / beta). [n]

    It is symmetric in the two answers: r says which is raised, and so must be the score that chose. beta has r's unit.
    """
    return (beta * batch.margin - (batch.chosen_rewards - batch.rejected_rewards)).square()


def wpo(batch: PairBatch, *, beta: float) -> "Tensor":
    """-w(y_w) w(y_l) log s(beta h) (Zhou et al. 2024, arXiv 2406.11827, section 3): pairs that the policy would not
    produce itself count less. [n]"""
    return batch.chosen_weights * batch.rejected_weights * dpo(batch, beta=beta)


def on_policy_weight(token_logps: "Tensor", log_sum_squares: "Tensor", mask: "Tensor") -> "Tensor":
    """WPO's w(y) = min(1, exp(mean over tokens of log pi(y_t) - log sum_v pi(v)^2)), without gradient.

    token_logps, log_sum_squares (log of the expected probability of a sampled token), mask (1 on the answer): [n, T].
    Returns [n] in (0, 1]; an answer sampled from the policy is 1 on average (sampled alignment, arXiv 2406.11827 section 3).
    """
    aligned = (token_logps.detach() - log_sum_squares.detach()) * mask
    return (aligned.sum(dim=1) / mask.sum(dim=1)).exp().clamp(max=1.0)


def _negative_log_sigmoid(x: "Tensor") -> "Tensor":
    from torch.nn.functional import logsigmoid  # the only need of torch: this module stays cheap to import

    return -logsigmoid(x)
