"""The actor's forward pass in torch: for images, large networks and GPUs; `NumpyActor`'s interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.errors import WorkerError
from hpc_marl.policies.act_rows import ActRows
from hpc_marl.policies.actor_critic import ActorCritic
from hpc_marl.policies.exchange import DeviceExchange, HostExchange
from hpc_marl.policies.numpy_actor import check_weights
from hpc_marl.policies.precision import use_device
from hpc_marl.policies.spec import ActResult, PolicySpec

Array = NDArray[np.float32]


class TorchActor:
    """A policy on any torch device: `load` weights, then `act`.

    Args:
        spec: the policy.
        device: `cpu`, `cuda` or `cuda:N`.
    """

    def __init__(self, spec: PolicySpec, device: str = "cpu") -> None:
        self.spec = spec
        self.policy_version = -1
        self._device = torch.device(device)
        use_device(self._device, "float32")  # what the learner compares with
        self._model = ActorCritic(spec).to(self._device)
        self._exchange = HostExchange() if self._device.type == "cpu" else DeviceExchange(self._device)

    def load(self, weights: Mapping[str, NDArray[Any]], policy_version: int) -> None:
        """Copy new weights in; see `NumpyActor.load`."""
        check_weights(self.spec, weights)
        for name, own in self._model.actor.state_dict().items():
            own.copy_(torch.from_numpy(np.array(weights[name], np.float32)))
        self.policy_version = policy_version

    def act_rows(self, rows: ActRows, greedy: bool = False) -> None:
        """Choose actions and write them into `rows`; see `NumpyActor.act_rows`."""
        agents, env = self.spec.env.num_agents, self.spec.env

        def by_agent(array: NDArray[Any] | None) -> Any:
            return None if array is None else array.reshape(-1, agents, *array.shape[1:])

        noise = by_agent(rows.noise)
        result = self.act(
            by_agent(rows.observation),
            by_agent(rows.action_mask),
            by_agent(rows.memory),
            noise if env.is_continuous else noise[..., None],
            greedy,
        )
        rows.action[...] = result.action.reshape(rows.action.shape)
        rows.log_prob[...] = result.log_prob.reshape(-1)
        if rows.memory is not None and result.memory is not None:
            rows.memory[...] = result.memory.reshape(rows.memory.shape)

    @torch.inference_mode()
    def act(
        self,
        observation: NDArray[Any],
        action_mask: NDArray[np.bool_] | None,
        memory: Array | None,
        noise: Array,
        greedy: bool = False,
    ) -> ActResult:
        """Choose actions; see `NumpyActor.act`."""
        if self.policy_version < 0:
            raise WorkerError("this policy has no weights yet; call load() before act()")
        send = self._exchange.send
        inputs = self._model.inputs(
            send("observation", observation),
            action_mask=None if action_mask is None else send("action_mask", action_mask),
            memory=None if memory is None else send("memory", memory),
        )
        if self.spec.memory_size:  # a sequence of one step per environment
            inputs = inputs.map(lambda tensor: tensor if tensor is inputs.memory else tensor.unsqueeze(1))
        features, memories = self._model.core(inputs)
        output = self._model.policy_output(features, inputs.action_mask)
        if memories is not None:
            output = output.squeeze(1)
        action = self._sample(output, send("noise", noise), greedy)
        log_prob, _ = self._model.log_prob_entropy(output, action)
        if not self.spec.env.is_continuous:
            action = action.to(torch.int32)
        answer = {} if memories is None else {"memory": memories[:, -1]}
        found = self._exchange.fetch(action=action, log_prob=log_prob, **answer)
        return ActResult(found["action"], found["log_prob"], found.get("memory"), self.policy_version)

    def _sample(self, output: torch.Tensor, noise: torch.Tensor, greedy: bool) -> torch.Tensor:
        log_std = self._model.actor.log_std
        if log_std is not None:
            return output if greedy else output + noise * torch.exp(log_std)
        if greedy:
            return output.argmax(dim=-1)
        cdf = torch.exp(output - output.amax(dim=-1, keepdim=True)).cumsum(dim=-1)
        return (cdf <= noise * cdf[..., -1:]).sum(dim=-1)
