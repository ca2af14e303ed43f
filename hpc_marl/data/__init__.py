"""Arrays that travel: environment shapes and sample batches."""

from hpc_marl.data.samples import SampleBatch, SampleLayout, concatenate
from hpc_marl.data.spaces import EnvSpec

__all__ = ["EnvSpec", "SampleBatch", "SampleLayout", "concatenate"]
