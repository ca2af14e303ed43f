"""PPO as single-file implementations commonly write it: eager torch, torch.distributions, torch.optim.Adam.

Written for comparison: networks, loss, clipping, epochs and minibatches are those of hpc_marl with the same settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

from hpc_marl.config import PPOConfig
from hpc_marl.data import SampleBatch


def require_all_learned(metrics: Mapping[str, float]) -> None:
    """Raise RuntimeError where an update of ours left something out: its time is no measurement."""
    if metrics["skipped_minibatches"] or metrics.get("skipped_updates"):
        raise RuntimeError(f"something was not learned from: {metrics}")


def _network(sizes: tuple[int, ...], last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (width, out) in enumerate(itertools.pairwise(sizes)):
        is_last = index == len(sizes) - 2
        layer = nn.Linear(width, out)
        nn.init.orthogonal_(layer.weight, last_gain if is_last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if is_last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def _nature_cnn(image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return convolutions and one layer of 512 on images of 84x84."""
    return nn.Sequential(
        *(nn.Conv2d(image_shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
    )


class CommonPPO:
    """One learner for one agent with discrete actions.

    Args:
        config: hyper-parameters; value clipping, value normalisation and corrections are not known here.
        observation_size: D.
        num_actions: A.
        hidden: widths of both networks' hidden layers.
        image_shape: [C, 84, 84] of images of bytes, which both networks read through one Nature CNN; None: vectors.
        device: where it learns.
    """

    def __init__(
        self,
        config: PPOConfig,
        observation_size: int,
        num_actions: int,
        hidden: tuple[int, ...] = (64, 64),
        *,
        image_shape: tuple[int, int, int] | None = None,
        device: str = "cpu",
    ) -> None:
        self._config, self._device, self._image_shape = config, torch.device(device), image_shape
        sizes = (512,) if image_shape else (observation_size, *hidden)
        self._trunk = (_nature_cnn(image_shape) if image_shape else nn.Identity()).to(self._device)
        self.actor = _network((*sizes, num_actions), 0.01).to(self._device)
        self.critic = _network((*sizes, 1), 1.0).to(self._device)
        self._parameters = [
            *self._trunk.parameters(),
            *self.actor.parameters(),
            *self.critic.parameters(),
        ]
        self._optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, eps=config.adam_eps)
        self._order = np.random.default_rng(0)

    def update(self, batch: SampleBatch) -> None:
        """Learn from one batch: values, advantages, epochs of minibatches."""
        observation = self._on_device(batch.observation[:, :, 0])
        reward, done = (
            self._on_device(batch.reward[..., 0]),
            self._on_device(batch.terminated[..., 0]).float(),
        )
        with torch.no_grad():
            value = self.critic(self._features(observation.flatten(0, 1))).view(observation.shape[:2])
            advantage, last = torch.zeros_like(reward), torch.zeros_like(reward[0])
            for t in reversed(range(len(reward))):
                delta = reward[t] + self._config.discount * value[t + 1] * (1.0 - done[t]) - value[t]
                last = delta + self._config.discount * self._config.gae_lambda * (1.0 - done[t]) * last
                advantage[t] = last
        self.fit(
            observation[:-1].reshape(-1, observation.shape[-1]),
            self._on_device(batch.action[..., 0]).long().reshape(-1),
            self._on_device(batch.log_prob[..., 0]).reshape(-1),
            advantage.reshape(-1),
            (advantage + value[:-1]).reshape(-1),
        )

    def fit(
        self, observation: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, target: Tensor
    ) -> None:
        """Go over R rows, epoch by epoch."""
        size = len(action) // self._config.num_minibatches
        order = np.arange(len(action))
        for _ in range(self._config.num_epochs):
            self._order.shuffle(order)
            for start in range(0, len(action), size):
                index = order[start : start + size]
                self._step(
                    observation[index], action[index], old_log_prob[index], advantage[index], target[index]
                )

    def _step(
        self, observation: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, target: Tensor
    ) -> None:
        config = self._config
        features = self._features(observation)
        distribution = Categorical(logits=self.actor(features))
        log_prob, entropy = distribution.log_prob(action), distribution.entropy()
        value = self.critic(features).squeeze(-1)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (log_prob - old_log_prob).exp()
        clipped = torch.clamp(ratio, 1 - config.clip_eps, 1 + config.clip_eps)
        policy_loss = torch.max(-advantage * ratio, -advantage * clipped).mean()
        value_loss = 0.5 * ((value - target) ** 2).mean()
        loss = policy_loss - config.entropy_coef * entropy.mean() + config.value_coef * value_loss
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm)
        self._optimizer.step()

    def _features(self, observation: Tensor) -> Tensor:
        """Return what both networks read of R rows."""
        if self._image_shape is not None:
            observation = observation.reshape(-1, *self._image_shape).float() / 255.0
        features: Tensor = self._trunk(observation)
        return features

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


_PIECE = 512  # rows of one product, which are still in the cache


class MatrixProducts:
    """The limit: the matrix products of one step of actor and critic, forward and backward, and nothing else.

    Large minibatches are cut into pieces, which is faster.

    Args:
        size: rows of a minibatch.
        observation_size: D.
        num_actions: A.
        hidden: width of both hidden layers of both networks.
    """

    def __init__(self, size: int, observation_size: int, num_actions: int, hidden: int = 64) -> None:
        self._pieces = max(size // _PIECE, 1)
        size //= self._pieces
        rng = np.random.default_rng(0)

        def random(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape, dtype=np.float32)

        self._products: list[tuple[NDArray[np.float32], ...]] = []
        for outputs in (num_actions, 1):
            for width, out in ((observation_size, hidden), (hidden, hidden), (hidden, outputs)):
                weight, inputs, delta = random(out, width), random(size, width), random(size, out)
                self._products.append((inputs, weight.T, np.empty((size, out), np.float32)))
                self._products.append((delta.T, inputs, np.empty((out, width), np.float32)))
                if width != observation_size:  # nobody asks for the gradient of observations
                    self._products.append((delta, weight, np.empty((size, width), np.float32)))

    def run(self) -> None:
        """Compute them once."""
        for _ in range(self._pieces):
            for one, other, out in self._products:
                np.matmul(one, other, out=out)
