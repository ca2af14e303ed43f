"""Advantages and value targets of trajectories, in numpy: [T, ...] in, [T, ...] out.

Subscript t runs over the T steps; values have one more entry, that of what the agents see after the last
step. A trace may hold several episodes: where one ends at t, value[t + 1] is that of its final observation
(next-step autoreset, see `hpc_marl.data.samples`), the trace is cut, and the step after it, in which nobody
is alive, counts for nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Trajectory(NamedTuple):
    """What happened, and what the critic thought of it."""

    reward: Array
    """[T, ...] of the step from t to t + 1."""
    value: Array
    """[T + 1, ...] in reward units."""
    terminated: Mask
    """[T, ...] the episode ended for good: nothing is bootstrapped."""
    truncated: Mask
    """[T, ...] it was cut off: bootstrap from value[t + 1], but cut the trace."""
    alive: Mask
    """[T, ...] False where nobody acted."""


class Estimates(NamedTuple):
    """What the value function should have said, and how much better than expected each action was."""

    value_target: Array
    """[T, ...] in reward units."""
    advantage: Array
    """[T, ...] in reward units; 0 where nobody was alive."""


def gae(trajectory: Trajectory, *, discount: float, gae_lambda: float) -> Estimates:
    """Generalised advantage estimation.

    Args:
        trajectory: of the policy that is to be improved.
        discount: gamma.
        gae_lambda: lambda.

    Returns:
        Lambda-returns and advantages.

    Reference:
        Schulman et al. 2016, equation 16: https://arxiv.org/abs/1506.02438
    """
    error, trace = _errors(trajectory, discount, gae_lambda)
    advantage = _accumulate(error, trace)
    return Estimates(trajectory.value[:-1] + advantage, advantage)


def vtrace(
    trajectory: Trajectory,
    ratio: Array,
    *,
    discount: float,
    gae_lambda: float,
    rho_max: float,
    c_max: float,
) -> Estimates:
    """V-trace: lambda-returns corrected for a behaviour policy that is not the one to evaluate.

    Args:
        trajectory: of the behaviour policy mu.
        ratio: [T, ...] pi(action) / mu(action), pi being the policy to evaluate.
        discount: gamma.
        gae_lambda: lambda, which scales c (remark 2 of the paper).
        rho_max: clip of rho; decides between the value of mu (-> 0) and that of pi (-> infinity).
        c_max: clip of c; trades variance for speed of contraction.

    Returns:
        V-trace targets, and advantages still to be weighted by rho. With ratio 1 both are those of `gae`.

    Reference:
        Espeholt et al. 2018, equation 1 and section 4.2: https://arxiv.org/abs/1802.01561
    """
    error, trace = _errors(trajectory, discount, gae_lambda)
    rho = np.minimum(ratio, np.float32(rho_max))
    correction = _accumulate(rho * error, trace * np.minimum(ratio, np.float32(c_max)))
    later = np.zeros_like(correction)
    later[:-1] = correction[1:]
    return Estimates(trajectory.value[:-1] + correction, error + trace * later)


def _errors(trajectory: Trajectory, discount: float, gae_lambda: float) -> tuple[Array, Array]:
    """Return temporal-difference errors, and the factor by which later ones join; 0 where not alive."""
    reward, value, terminated, truncated, alive = trajectory
    # np.where, not a product: what is not to be looked at may be NaN
    next_value: Array = np.where(terminated | ~alive, np.float32(0), value[1:])
    error: Array = np.where(alive, reward + np.float32(discount) * next_value - value[:-1], np.float32(0))
    goes_on = alive & ~(terminated | truncated)
    trace: Array = np.where(goes_on, np.float32(discount * gae_lambda), np.float32(0))
    return error, trace


def _accumulate(error: Array, trace: Array) -> Array:
    """Return x with x_t = error_t + trace_t * x_{t+1}."""
    total: Array = error.copy()
    for t in range(len(total) - 2, -1, -1):
        total[t] += trace[t] * total[t + 1]
    return total
