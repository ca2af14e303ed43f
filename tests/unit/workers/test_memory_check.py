"""Networks that are larger than a machine."""

from __future__ import annotations

import pytest

from hpc_marl.config import PolicyConfig
from hpc_marl.data import EnvSpec
from hpc_marl.errors import ConfigError
from hpc_marl.policies.spec import PolicySpec
from hpc_marl.workers.memory_check import check_fits_memory


def test_a_network_larger_than_the_machine_is_refused_with_what_would_fit() -> None:
    env = EnvSpec(agent_names=("agent_0",), observation_size=9, num_actions=1)
    spec = PolicySpec(env=env, policy=PolicyConfig(hidden_sizes=(100,)))
    weights = 9 * 100 + 100 + 100 + 1
    check_fits_memory(spec, 16 * weights)
    check_fits_memory(spec)
    with pytest.raises(
        ConfigError, match=rf"hidden_sizes=\[100\].*{weights:,} weights.* at most {weights - 1:,}"
    ):
        check_fits_memory(spec, 16 * weights - 1)
