"""Losses of policy-gradient methods in torch: pure functions of tensors of one shape [...].

`weight` [...] says how much each entry counts: 0 for dead agents, summing to 1, so that a weighted sum is the
mean over what can be learned from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class SurrogateLoss(NamedTuple):
    """The clipped surrogate, and the ratio for whoever wants to look at it."""

    loss: Tensor
    log_ratio: Tensor
    """[...] log pi_new / pi_old."""


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    *,
    clip_eps: float,
) -> SurrogateLoss:
    """PPO's pessimistic surrogate, negated: a loss to minimise.

    Args:
        log_prob: [...] of the policy that learns.
        old_log_prob: [...] of the policy it must stay close to: the one that acted or, decoupled, the one
            before this update; then the advantage carries the importance weight between those two.
        advantage: [...].
        weight: [...].
        clip_eps: epsilon.

    Reference:
        Schulman et al. 2017, equation 7: https://arxiv.org/abs/1707.06347.
        Decoupled: Hilton et al. 2022, equation 2: https://arxiv.org/abs/2110.00641
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + clip_eps)
    return SurrogateLoss(-(weight * torch.minimum(ratio * advantage, clipped * advantage)).sum(), log_ratio)


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor,
    weight: Tensor,
    *,
    form: Literal["mse", "huber"],
    huber_delta: float,
    clip_eps: float | None,
) -> Tensor:
    """Return half the squared error (or Huber's version of it) of the value.

    Args:
        value: [...] what the critic says.
        target: [...] what it should say.
        old_value: [...] what it said before this update.
        weight: [...].
        form: mse: e^2 / 2; huber: that up to |e| = huber_delta, a straight line beyond.
        huber_delta: where the line begins.
        clip_eps: take the larger of this loss and that of a value kept within clip_eps of the old one.
    """
    loss = _regression(value, target, form, huber_delta)
    if clip_eps is not None:
        clipped = old_value + (value - old_value).clamp(-clip_eps, clip_eps)
        loss = torch.maximum(loss, _regression(clipped, target, form, huber_delta))
    return (weight * loss).sum()


def _regression(value: Tensor, target: Tensor, form: str, huber_delta: float) -> Tensor:
    if form == "huber":
        return functional.huber_loss(value, target, reduction="none", delta=huber_delta)
    return 0.5 * (value - target).square()
