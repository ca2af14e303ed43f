"""Log-probabilities and entropies of actions, without the overhead of torch.distributions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hpc_marl.policies.spec import MASKED_LOGIT


def mask_logits(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    """Make forbidden actions impossible.

    Args:
        logits: [..., A].
        action_mask: [..., A] True where allowed; None allows all.
    """
    return logits if action_mask is None else logits.masked_fill(~action_mask, MASKED_LOGIT)


def categorical(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability [...] of `action` [...] int64, and entropy [...], under `logits` [..., A]."""
    log_probs = functional.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    return chosen, -(log_probs.exp() * log_probs).sum(dim=-1)


def gaussian(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probability [...] of `action` [..., A] and entropy [...] of independent normals.

    Args:
        mean: [..., A].
        log_std: [A].
        action: [..., A].
    """
    size, sum_log_std = log_std.numel(), log_std.sum()
    normal = (action - mean) * torch.exp(-log_std)
    log_prob = -0.5 * normal.square().sum(dim=-1) - (sum_log_std + 0.5 * size * math.log(2 * math.pi))
    entropy = sum_log_std + 0.5 * size * (1 + math.log(2 * math.pi))
    return log_prob, entropy.expand_as(log_prob)
