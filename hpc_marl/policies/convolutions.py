"""Convolutions for images, as in Mnih et al. 2015 ("Nature CNN"); https://doi.org/10.1038/nature14236."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_marl.policies.precision import computed_in
from hpc_marl.policies.spec import PolicySpec, conv_sizes

_MAX_PIXEL = 255.0
_IMAGES_AT_ONCE = 1024
"""Without gradients more images are convolved in parts: the first layer's output takes 50 KB of each."""


class Convolutions(nn.ModuleList):
    """Layers with ReLU after each: flat rows of bytes in, flat rows of features out.

    Args:
        spec: image shape and layers.
        generator: of the orthogonal weights; biases are 0.
    """

    def __init__(self, spec: PolicySpec, generator: torch.Generator) -> None:
        super().__init__()
        self.image_shape = spec.env.image_shape
        sizes = conv_sizes(spec.env, spec.policy)
        for index, (before, after) in enumerate(itertools.pairwise(sizes)):
            # nn.utils.skip_init would load sympy, which takes a trainer half a second.
            with torch.random.fork_rng(devices=()):
                layer = nn.Conv2d(
                    before[0],
                    after[0],
                    spec.policy.conv_kernels[index],
                    spec.policy.conv_strides[index],
                )
            rows = torch.empty(after[0], layer.weight[0].numel())
            nn.init.orthogonal_(rows, math.sqrt(2.0), generator=generator)
            layer.weight.data.copy_(rows.view_as(layer.weight))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.append(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [..., F] of `images` [..., C * H * W], 8-bit pixels that are scaled to [0, 1]."""
        rows = images.reshape(-1, *self.image_shape)
        if torch.is_grad_enabled() or len(rows) <= _IMAGES_AT_ONCE:
            features = self._convolve(rows)
        else:
            starts = range(0, len(rows), _IMAGES_AT_ONCE)
            features = torch.cat([self._convolve(rows[start : start + _IMAGES_AT_ONCE]) for start in starts])
        return features.view(*images.shape[:-1], features.shape[1])

    def _convolve(self, rows: Tensor) -> Tensor:
        dtype = computed_in(rows.device)
        if torch.is_grad_enabled() and (dtype == torch.float32 or rows.device.type != "cpu"):
            # a step takes a fifth less in this layout; acting, and bf16 on CPUs, does not
            rows = rows.contiguous(memory_format=torch.channels_last)
        features = rows.to(dtype)  # bytes are whole numbers in bf16, too
        first, *others = cast("Iterable[nn.Conv2d]", self)
        features = functional.conv2d(features, first.weight / _MAX_PIXEL, first.bias, first.stride)
        features = torch.relu_(features)
        for layer in others:
            features = torch.relu_(layer(features))
        return features.flatten(1)
