"""Steps by torch's autograd: for recurrent networks, images and GPUs.

    batch ──(copy stream)──► device: values ──► CPU: estimates ──► device: epochs x minibatches ──► what they were like
                                        wait                                  [CUDA graph]     wait

While the device makes an update's steps the CPU only launches them, and is free for the next batch when all are
launched. Whether a step may be made (loss and gradient are finite) is therefore decided on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_marl.algorithms.cuda_graphs import FixedMinibatch, StepGraph, record
from hpc_marl.algorithms.device_clock import DeviceClock
from hpc_marl.algorithms.fused_adam import FusedAdam
from hpc_marl.algorithms.losses import clipped_surrogate, value_loss
from hpc_marl.algorithms.minibatches import BatchTensors, TrainingRows
from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.algorithms.staging import Staging
from hpc_marl.algorithms.steps import Array, Found, Scalars, Steps
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.config.workers import Precision
from hpc_marl.data.samples import SampleBatch, concatenate
from hpc_marl.policies.actor_critic import ActorCritic, NetworkInputs
from hpc_marl.policies.precision import network_precision, use_device


class AutogradSteps(Steps[TrainingRows]):
    """See Steps.

    Args:
        config: hyper-parameters.
        model: the networks, on their device.
        ranks: the trainers that learn together.
        num_threads: of no meaning here, as torch's threads are the process's.
        precision: what networks are computed in.
        cuda_graph: whether a GPU gets each step in one launch; of no meaning elsewhere.
    """

    def __init__(
        self,
        config: PPOConfig,
        model: ActorCritic,
        ranks: Ranks,
        num_threads: int = 1,
        *,
        precision: Precision = "float32",
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(config, ranks)
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._device = next(model.parameters()).device
        self._precision = precision
        use_device(self._device, precision)
        self._evaluation = ranks.wrap(_Evaluation(model, self._device, precision))
        self._adam = FusedAdam(self._parameters, config.adam_eps)
        self._rehearses = torch.zeros((), device=self._device)
        """1: steps are computed, but not made."""
        is_gpu = self._device.type == "cuda"
        self._staging = Staging(self._device, torch.cuda) if is_gpu else None
        self._clock = DeviceClock(self._device)
        self._graph = StepGraph(self._learn, self._recorded) if is_gpu and cuda_graph else None
        self._fixed = FixedMinibatch()
        self._tensors: BatchTensors | None = None
        self._inputs: NetworkInputs | None = None
        self._rows: TrainingRows | None = None

    @property
    def copies_batches(self) -> bool:
        """See Steps."""
        return self._staging is not None

    def stage(self, batches: Sequence[SampleBatch]) -> SampleBatch:
        """See Steps."""
        return concatenate(batches) if self._staging is None else self._staging.stage(batches)

    def read(self, batch: SampleBatch) -> None:
        """See Steps."""
        self._clock.begin_update()
        on_device = {} if self._staging is None else self._staging.tensors(batch)
        self._clock.begin()
        self._tensors = BatchTensors(
            batch, self._model, self.config.memory_chunk_length, self._device, on_device
        )
        self._inputs = self._tensors.step_inputs()

    @torch.no_grad()
    def evaluate(self, *, with_log_prob: bool) -> tuple[Array, Array | None]:
        """See Steps."""
        assert self._tensors is not None and self._inputs is not None, "read() a batch first"
        model, tensors, inputs = self._model, self._tensors, self._inputs
        log_prob: list[Tensor] = []
        with network_precision(self._device, self._precision):
            if with_log_prob:
                features, memories = model.core(inputs)
                output = model.policy_output(features, inputs.action_mask)
                value = model.value(inputs, features, memories)
                memory = None if memories is None else memories[:, -1]
            else:
                value, memory = model.values(inputs)
            final, _ = model.values(tensors.final_inputs(memory))
        if with_log_prob:
            log_prob = [tensors.restore(model.log_prob_entropy(output.float(), tensors.action())[0])]
        final = final.squeeze(1) if tensors.is_recurrent else final
        values = [tensors.restore(value.float()), final.float().unsqueeze(0)]
        joined = torch.cat([*values, *log_prob])
        self._clock.end()
        with self._clock.wait():
            found = joined.cpu().numpy()
        steps = len(values[0])
        return found[: steps + 1], found[steps + 1 :] if with_log_prob else None

    def state(self) -> dict[str, NDArray[Any]]:
        """See Steps."""
        return self._adam.state()

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Steps."""
        self._adam.load(state)

    def device_metrics(self) -> dict[str, float]:
        """See Steps."""
        return self._clock.metrics()

    def _begin(self, scalars: Scalars) -> None:
        assert self._tensors is not None and self._inputs is not None, "read() a batch first"
        self._clock.begin()
        self._rows = self._tensors.rows(self._inputs, list(scalars))

    def _minibatches(self, generator: torch.Generator) -> Iterator[TrainingRows]:
        assert self._rows is not None and self._inputs is not None
        count = self.config.num_minibatches
        if self._graph is not None:
            return self._fixed.minibatches(self._rows, len(self._inputs.own), count, generator)
        return self._rows.minibatches(count, generator, keep_empty=self.ranks.size > 1)

    def _step(self, minibatch: TrainingRows, watch: bool, learning_rate: float) -> Tensor:
        """Launch a step; return [7] on the device: the fields of `Found`."""
        self._adam.set_learning_rate(learning_rate)
        return self._learn(minibatch) if self._graph is None else self._graph(minibatch)

    def _found(self, made: list[Tensor]) -> list[Found]:
        found = torch.stack(made) if made else torch.empty(0, len(Found._fields))
        self._clock.end()
        self.meanwhile()
        with self._clock.wait():
            return [Found(*values) for values in found.tolist()]

    def _recorded(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._rehearses.fill_(1.0)
        replay = record(step)
        self._rehearses.fill_(0.0)
        return replay

    def _learn(self, minibatch: TrainingRows) -> Tensor:
        """Compute loss and gradient and make a step, all on the device and without a look at the outcome."""
        loss, found = self._loss(minibatch)
        for parameter in self._parameters.values():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            list(self._parameters.values()), self.config.max_grad_norm, foreach=True
        )
        means = self.ranks.mean(torch.cat([loss.detach().unsqueeze(0), found]))
        is_finite = torch.isfinite(means[0]) & torch.isfinite(norm)
        self._adam.step(torch.maximum(self._rehearses, (~is_finite).to(torch.float32)))
        return torch.cat([means, norm.unsqueeze(0)])

    def _loss(self, rows: TrainingRows) -> tuple[Tensor, Tensor]:
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
        distance = self._distance(log_ratio.detach(), weight)
        return loss, torch.stack([policy_loss, critic_loss, entropy, *distance]).detach()

    def _distance(self, log_ratio: Tensor, weight: Tensor) -> list[Tensor]:
        """Return means of r - 1 - log r, and of whether |r - 1| is beyond the clip range."""
        change = log_ratio.exp() - 1.0
        kl = (weight * (change - log_ratio)).sum()
        return [kl, (weight * (change.abs() > self.config.clip_eps)).sum()]


class _Evaluation(nn.Module):
    """All that is learned as one forward pass, which is where several ranks begin to average gradients.

    Args:
        model: the networks.
        device: theirs.
        precision: of the networks; what comes of them is float32.
    """

    def __init__(self, model: ActorCritic, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self._device, self._precision = device, precision

    def forward(self, inputs: NetworkInputs, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value; see `ActorCritic.evaluate_actions`."""
        model = self.model
        with network_precision(self._device, self._precision):
            features, memory = model.core(inputs)
            output = model.policy_output(features, inputs.action_mask)
            value = model.value(inputs, features, memory)
        log_prob, entropy = model.log_prob_entropy(output.float(), action)
        return log_prob, entropy, value.float()
