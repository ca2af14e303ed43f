"""What numbers a GPU (or, for bf16, any device) multiplies in.

float32   as it says, also within convolutions, where torch left to itself takes TF32
tf32      matrix products and convolutions round their inputs to 10 bits; GPUs from Ampere on
bf16      networks compute in bfloat16; weights, gradients, the optimiser and the loss stay float32
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from hpc_marl.base.freed_memory import keep_freed_memory
from hpc_marl.config.workers import Precision


def use_device(device: torch.device, precision: Precision) -> None:
    """Make this process one that computes on `device`.

    A GPU becomes its own, whose streams, events and graphs are then meant, is allowed or forbidden TF32, and must sum
    in one order: of the ways to compute a convolution's gradient that cuDNN has, some do not. For the CPU's tensors it
    keeps its memory.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True


def computed_in(device: torch.device) -> torch.dtype:
    """Return the type that the layers of a network compute in, here and now."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def network_precision(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which networks are to be computed; their backward passes follow by themselves."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
