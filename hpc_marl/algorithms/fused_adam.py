"""FusedAdam: torch's fused Adam kernel, without torch.optim, and with steps that may be called off on the device.

torch.optim.Adam loads torch._dynamo when it is made, which takes a trainer more than a second; the kernel is the same,
and tests hold the two to each other bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BETA1, _BETA2 = 0.9, 0.999
_KERNEL: Any = torch._fused_adam_


class FusedAdam:
    """Adam (Kingma & Ba 2015) over named parameters. All its state stays at its place, as CUDA graphs need it.

    Args:
        parameters: on one device, by name.
        eps: Adam's epsilon.
    """

    def __init__(self, parameters: Mapping[str, Tensor], eps: float) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._eps = eps
        device = self._parameters[0].device
        self._state = {
            "step": [torch.zeros((), device=device) for _ in self._parameters],
            "exp_avg": [torch.zeros_like(parameter).detach() for parameter in self._parameters],
            "exp_avg_sq": [torch.zeros_like(parameter).detach() for parameter in self._parameters],
        }
        # a GPU reads the rate when the step is made, not when it was recorded; the CPU takes it in double precision
        self._rate: Tensor | float = torch.zeros((), device=device) if device.type == "cuda" else 0.0
        self._last_rate = 0.0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Let steps from now on be of this size."""
        if learning_rate == self._last_rate:
            return
        self._last_rate = learning_rate
        if isinstance(self._rate, Tensor):
            self._rate.fill_(learning_rate)
        else:
            self._rate = learning_rate

    @torch.no_grad()
    def step(self, called_off: Tensor) -> None:
        """Make a step along the parameters' gradients.

        Args:
            called_off: [] float32, on the device: 1 leaves parameters and state as they are; else 0.
        """
        steps = self._state["step"]
        torch._foreach_add_(steps, 1)
        _KERNEL(
            self._parameters,
            [_gradient(parameter) for parameter in self._parameters],
            self._state["exp_avg"],
            self._state["exp_avg_sq"],
            [],
            steps,
            lr=self._rate,
            beta1=_BETA1,
            beta2=_BETA2,
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            found_inf=called_off,
        )
        torch._foreach_sub_(steps, [called_off] * len(steps))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of `step`, `exp_avg` and `exp_avg_sq` `.NAME` of each parameter; {} before the first step."""
        if not any(self._state["step"]):
            return {}
        return {
            f"{key}.{name}": tensor.cpu().numpy().copy()
            for key, tensors in self._state.items()
            for name, tensor in zip(self._names, tensors, strict=True)
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned; what is not there begins at 0, other names are ignored."""
        for key, tensors in self._state.items():
            for name, tensor in zip(self._names, tensors, strict=True):
                found = state.get(f"{key}.{name}")
                if found is None:
                    tensor.zero_()
                else:
                    tensor.copy_(torch.from_numpy(np.array(found)))


def _gradient(parameter: Tensor) -> Tensor | None:
    """Return the gradient as the parameter lies in memory, number for number.

    Of axes of length 1, such as a kernel's of 1 x 1, the gradient of a convolution may have other strides. They mean
    nothing, but before torch 2.5 the kernel for GPUs refuses them.
    """
    gradient = parameter.grad
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return gradient.as_strided(parameter.shape, parameter.stride())
