"""Steps by torch's autograd: for recurrent networks, images and GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_marl.algorithms.losses import clipped_surrogate, value_loss
from hpc_marl.algorithms.minibatches import BatchTensors, TrainingRows
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.steps import Array, Found, Scalars, Steps
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.data.samples import SampleBatch
from hpc_marl.policies.actor_critic import ActorCritic, NetworkInputs


class AutogradSteps(Steps[TrainingRows]):
    """See Steps.

    Args:
        config: hyper-parameters.
        model: the networks, on their device.
        ranks: the trainers that learn together.
        num_threads: of no meaning here, as torch's threads are the process's.
    """

    def __init__(self, config: PPOConfig, model: ActorCritic, ranks: Ranks, num_threads: int = 1) -> None:
        super().__init__(config, ranks)
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._device = next(model.parameters()).device
        self._evaluation = ranks.wrap(_Evaluation(model))
        self._optimizer = torch.optim.Adam(
            self._parameters.values(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )
        self._tensors: BatchTensors | None = None
        self._inputs: NetworkInputs | None = None
        self._rows: TrainingRows | None = None

    def read(self, batch: SampleBatch) -> None:
        """See Steps."""
        self._tensors = BatchTensors(batch, self._model, self.config.memory_chunk_length, self._device)
        self._inputs = self._tensors.step_inputs()

    @torch.no_grad()
    def evaluate(self, *, with_log_prob: bool) -> tuple[Array, Array | None]:
        """See Steps."""
        assert self._tensors is not None and self._inputs is not None, "read() a batch first"
        tensors, inputs, log_prob = self._tensors, self._inputs, None
        if with_log_prob:
            features, memories = self._model.core(inputs)
            output = self._model.policy_output(features, inputs.action_mask)
            found, _ = self._model.log_prob_entropy(output, tensors.action())
            log_prob = tensors.restore(found).cpu().numpy()
            value = self._model.value(inputs, features, memories)
            memory = None if memories is None else memories[:, -1]
        else:
            value, memory = self._model.values(inputs)
        final, _ = self._model.values(tensors.final_inputs(memory))
        final = final.squeeze(1) if tensors.is_recurrent else final
        return torch.cat([tensors.restore(value), final.unsqueeze(0)]).cpu().numpy(), log_prob

    def state(self) -> dict[str, NDArray[Any]]:
        """See Steps."""
        return {
            f"{key}.{name}": tensor.cpu().numpy().copy()
            for name, parameter in self._parameters.items()
            for key, tensor in self._optimizer.state[parameter].items()
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Steps."""
        for name, parameter in self._parameters.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state]
            self._optimizer.state[parameter] = {
                key: torch.from_numpy(np.array(state[f"{key}.{name}"])).to(self._device) for key in keys
            }

    def _begin(self, scalars: Scalars) -> None:
        assert self._tensors is not None and self._inputs is not None, "read() a batch first"
        self._rows = self._tensors.rows(self._inputs, list(scalars))

    def _minibatches(self, generator: torch.Generator) -> Iterator[TrainingRows]:
        assert self._rows is not None
        return self._rows.minibatches(self.config.num_minibatches, generator, keep_empty=self.ranks.size > 1)

    def _gradient(self, minibatch: TrainingRows, watch: bool) -> Found:
        loss, found = self._loss(minibatch, watch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            list(self._parameters.values()), self.config.max_grad_norm, foreach=True
        )
        means = self.ranks.mean(torch.cat([loss.detach().unsqueeze(0), found]))
        return Found(*torch.cat([means, norm.unsqueeze(0)]).tolist())  # one wait for all

    def _descend(self, grad_norm: float, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def _loss(self, rows: TrainingRows, watch: bool) -> tuple[Tensor, Tensor]:
        """Return the loss, and what `Found` tells of it: three parts and the distance from the old policy.

        The ranks' weights sum to their number, so that the mean over the ranks is the mean over all entries.
        """
        config = self.config
        old_log_prob, advantage, target, old_value, alive = rows.scalars.unbind(0)
        weight = alive / (self.ranks.add(alive.sum()).clamp(min=1.0) / self.ranks.size)
        log_prob, entropies, value = self._evaluation(rows.inputs, rows.action)
        policy_loss, log_ratio = clipped_surrogate(
            log_prob, old_log_prob, advantage, weight, clip_eps=config.clip_eps
        )
        critic_loss = value_loss(
            value,
            target,
            old_value,
            weight,
            form=config.value_loss,
            huber_delta=config.huber_delta,
            clip_eps=config.value_clip_eps,
        )
        entropy = (weight * entropies).sum()
        loss = policy_loss + config.value_coef * critic_loss - config.entropy_coef * entropy
        distance = self._distance(log_ratio.detach(), weight) if watch else [torch.zeros_like(loss)] * 2
        return loss, torch.stack([policy_loss, critic_loss, entropy, *distance]).detach()

    def _distance(self, log_ratio: Tensor, weight: Tensor) -> list[Tensor]:
        """Return means of r - 1 - log r, and of whether |r - 1| is beyond the clip range."""
        change = log_ratio.exp() - 1.0
        kl = (weight * (change - log_ratio)).sum()
        return [kl, (weight * (change.abs() > self.config.clip_eps)).sum()]


class _Evaluation(nn.Module):
    """`evaluate_actions` as a forward pass, which is where several ranks begin to average gradients."""

    def __init__(self, model: ActorCritic) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: NetworkInputs, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value."""
        return self.model.evaluate_actions(inputs, action)
