"""PPO as single-file implementations commonly write it: eager torch, torch.distributions, torch.optim.Adam.

Written for comparison: networks, loss, clipping, epochs and minibatches are those of hpc_marl with the same settings.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

from hpc_marl.config import PPOConfig
from hpc_marl.data import SampleBatch


def _network(sizes: tuple[int, ...], last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (width, out) in enumerate(itertools.pairwise(sizes)):
        is_last = index == len(sizes) - 2
        layer = nn.Linear(width, out)
        nn.init.orthogonal_(layer.weight, last_gain if is_last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if is_last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class CommonPPO:
    """One learner for one agent with discrete actions.

    Args:
        config: hyper-parameters; value clipping, value normalisation and corrections are not known here.
        observation_size: D.
        num_actions: A.
        hidden: widths of both networks' hidden layers.
    """

    def __init__(
        self, config: PPOConfig, observation_size: int, num_actions: int, hidden: tuple[int, ...] = (64, 64)
    ) -> None:
        self._config = config
        self.actor = _network((observation_size, *hidden, num_actions), 0.01)
        self.critic = _network((observation_size, *hidden, 1), 1.0)
        self._parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, eps=config.adam_eps)
        self._order = np.random.default_rng(0)

    def update(self, batch: SampleBatch) -> None:
        """Learn from one batch: values, advantages, epochs of minibatches."""
        observation = torch.from_numpy(batch.observation[:, :, 0])
        reward, done = (
            torch.from_numpy(batch.reward[..., 0]),
            torch.from_numpy(batch.terminated[..., 0]).float(),
        )
        with torch.no_grad():
            value = self.critic(observation).squeeze(-1)
            advantage, last = torch.zeros_like(reward), torch.zeros(reward.shape[1])
            for t in reversed(range(len(reward))):
                delta = reward[t] + self._config.discount * value[t + 1] * (1.0 - done[t]) - value[t]
                last = delta + self._config.discount * self._config.gae_lambda * (1.0 - done[t]) * last
                advantage[t] = last
        self.fit(
            observation[:-1].reshape(-1, observation.shape[-1]),
            torch.from_numpy(batch.action[..., 0]).long().reshape(-1),
            torch.from_numpy(batch.log_prob[..., 0]).reshape(-1),
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
        distribution = Categorical(logits=self.actor(observation))
        log_prob, entropy = distribution.log_prob(action), distribution.entropy()
        value = self.critic(observation).squeeze(-1)
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
