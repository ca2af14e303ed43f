"""Proximal policy optimisation: PPO, and with parameters shared by all agents IPPO and MAPPO.

    SampleBatch ──► values of all T+1 observations (current critic) ──► GAE | V-trace ──► value normaliser
                ──► epochs x minibatches: clipped surrogate + value loss - entropy bonus ──► Adam ──► metrics

Everything is masked by `alive`. Nothing that is not finite reaches the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.algorithms.autograd_steps import AutogradSteps
from hpc_marl.algorithms.flat_steps import FlatSteps
from hpc_marl.algorithms.normalization import RunningMoments, rescale_head
from hpc_marl.algorithms.ranks import Moments, Ranks
from hpc_marl.algorithms.returns import Estimates, Trajectory, gae, vtrace
from hpc_marl.algorithms.steps import Scalars, Steps
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.config.workers import Precision
from hpc_marl.data.samples import SampleBatch
from hpc_marl.errors import OtherCheckpointError
from hpc_marl.policies.actor_critic import ActorCritic
from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]
StateArrays = dict[str, dict[str, NDArray[Any]]]

_MAX_LOG_RATIO = 20.0  # exp of it is still far from float32's largest number


class _Targets(NamedTuple):
    """What is estimated once per update, [T, E, N] each."""

    old_log_prob: Array
    advantage: Array
    value_target: Array
    old_value: Array
    importance: Array


class PPO:
    """The learner: networks, optimiser, value normaliser and the random state of the minibatches.

    With `mode="sync"` batches are on-policy and the update is plain PPO. With `mode="async"` they may be a
    few versions old and `config.off_policy_correction` says what to do about it. Both corrections clip the
    surrogate around the policy before this update, not around the one that acted (the "decoupled" objective
    of Hilton et al. 2022), and weight each advantage by the ratio of these two: `decoupled` plain GAE by the
    ratio as it is; `vtrace` V-trace's advantages by the clipped ratio, with value targets corrected as well.

    Equal seeds and equal batches give equal weights, bit for bit, on one machine and device.

    With several `ranks` each learns from batches of its own, and all from the same statistics and the same mean
    gradient: they stay copies of each other. One minibatch is then the union of the ranks' minibatches.

    Args:
        config: hyper-parameters.
        spec: the policy; its `critic` must be `config.critic`.
        total_env_steps: where an annealed learning rate reaches 0.
        mode: sync or async.
        device: torch device.
        precision: what networks are learned in; see `hpc_marl.policies.precision`.
        cuda_graph: whether a GPU gets each minibatch's step in one launch.
        seed: of initial weights and minibatch order.
        num_threads: threads of an update; more than one per free core makes it much slower.
        ranks: the trainers that learn this policy together; None: this one alone.
        meanwhile: called once in every update while a GPU learns, when all is launched; it may `stage` a batch.
        steps: how to make gradient steps; None: `FlatSteps` where they can learn these networks in float32, else
            `AutogradSteps`.
    """

    def __init__(
        self,
        config: PPOConfig,
        spec: PolicySpec,
        *,
        total_env_steps: int,
        mode: Literal["sync", "async"] = "sync",
        device: str = "cpu",
        precision: Precision = "float32",
        cuda_graph: bool = False,
        seed: int = 0,
        num_threads: int = 1,
        ranks: Ranks | None = None,
        meanwhile: Callable[[], object] | None = None,
        steps: type[AutogradSteps] | type[FlatSteps] | None = None,
    ) -> None:
        torch.set_num_threads(num_threads)  # before the first weights: their last bits depend on it
        self.config = config
        self.spec = spec
        self._total_env_steps = total_env_steps
        self._correction = config.off_policy_correction if mode == "async" else "none"
        self._generator = torch.Generator().manual_seed(seed)
        self.model = ActorCritic(spec, seed).to(torch.device(device))
        self._ranks = Ranks() if ranks is None else ranks
        if steps is None:
            by_hand = precision == "float32" and FlatSteps.can_learn(self.model)
            steps = FlatSteps if by_hand else AutogradSteps
        self._steps: Steps[Any]
        if issubclass(steps, FlatSteps):
            self._steps = steps(config, self.model, self._ranks, num_threads)
        else:
            self._steps = steps(config, self.model, self._ranks, precision=precision, cuda_graph=cuda_graph)
        if meanwhile is not None:
            self._steps.meanwhile = meanwhile
        self._moments = RunningMoments() if config.value_normalization != "none" else None

    @property
    def copies_batches(self) -> bool:
        """Whether what `stage` returns is in memory of its own, which the given batches may leave at once."""
        return self._steps.copies_batches

    def stage(self, batches: Sequence[SampleBatch]) -> SampleBatch:
        """Join batches into one for `update`; where there is a GPU begin to copy it there."""
        return self._steps.stage(batches)

    def update(self, batch: SampleBatch, env_steps_done: int) -> dict[str, float]:
        """Learn from one batch.

        Args:
            batch: T steps of E environments; best one that `stage` returned.
            env_steps_done: environment steps trained on before this batch; sets the learning rate.

        Returns:
            Metrics of this update, of all ranks together. `skipped_updates` is 1 where a batch held numbers
            that are not finite (or none a live agent) and nothing was learned; `skipped_minibatches` counts
            steps left out because of such a loss or gradient. On GPUs also how they were used: `DeviceClock`.
        """
        learning_rate = self._learning_rate(env_steps_done)
        self._steps.read(batch)
        value, log_prob = self._steps.evaluate(with_log_prob=self._correction != "none")
        if self._moments is not None:
            value = self._moments.denormalize(value)
        alive = batch.alive[:-1]
        targets, metrics = self._estimate(batch, value, log_prob)
        metrics |= {"learning_rate": learning_rate, "skipped_updates": 0.0, "skipped_minibatches": 0.0}
        is_finite = all(np.isfinite(array).all() for array in targets)
        num_alive, num_broken = self._ranks.sums(float(alive.sum()), float(not is_finite))
        if not num_alive or num_broken:
            return metrics | {"skipped_updates": 1.0}
        fit_metrics, advantages = self._fit_metrics(targets, alive)
        scalars = Scalars(*self._normalize(targets, alive, advantages), alive.astype(np.float32))
        fitted = self._steps.fit(scalars, self._generator, learning_rate)
        return metrics | fit_metrics | fitted | self._steps.device_metrics()

    @property
    def optimizer_steps(self) -> int:
        """Steps made since the beginning of training."""
        return self._steps.optimizer_steps

    def actor_weights(self) -> dict[str, Array]:
        """Return copies of the actor's weights, as actors load them; always finite."""
        return self.model.actor_weights()

    def state_dict(self) -> tuple[StateArrays, dict[str, int]]:
        """Return all that training goes on from: arrays in groups `model` and `optim`, and plain numbers."""
        model = {name: tensor.cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        if self._moments is not None:
            model |= {f"value_moments.{name}": array for name, array in self._moments.state_dict().items()}
        optim: dict[str, NDArray[Any]] = {"minibatch_rng": self._generator.get_state().numpy().copy()}
        optim |= self._steps.state()
        return {"model": model, "optim": optim}, {"optimizer_steps": self.optimizer_steps}

    def load_state_dict(
        self, arrays: Mapping[str, Mapping[str, NDArray[Any]]], scalars: Mapping[str, Any]
    ) -> None:
        """Go on from what `state_dict` returned, bit for bit.

        Raises:
            OtherCheckpointError: it is of another policy or algorithm.
        """
        model, optim = dict(arrays["model"]), arrays["optim"]
        moments = {name: model.pop(name) for name in list(model) if name.startswith("value_moments.")}
        try:
            self.model.load_state_dict(
                {name: torch.from_numpy(np.array(value)) for name, value in model.items()}
            )
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise OtherCheckpointError(
                "this checkpoint is of another policy; go on with the settings of that one, or choose another "
                f"trial_name: {why}"
            ) from None
        if bool(moments) != (self._moments is not None):
            raise OtherCheckpointError(
                "algorithm.value_normalization was switched on or off since this checkpoint was written"
            )
        if self._moments is not None:
            self._moments.load_state_dict({name.partition(".")[2]: array for name, array in moments.items()})
        self._steps.load(optim)
        self._generator.set_state(torch.from_numpy(np.array(optim["minibatch_rng"], np.uint8)))
        self._steps.optimizer_steps = int(scalars["optimizer_steps"])

    def _learning_rate(self, env_steps_done: int) -> float:
        rate = self.config.learning_rate
        if self.config.anneal_learning_rate:
            rate *= max(0.0, 1.0 - env_steps_done / self._total_env_steps)
        return rate

    def _estimate(
        self, batch: SampleBatch, value: Array, log_prob: Array | None
    ) -> tuple[_Targets, dict[str, float]]:
        """Return targets (0 where nobody was alive) and metrics of the off-policy correction."""
        config, alive = self.config, batch.alive[:-1]
        trajectory = Trajectory(batch.reward, value, batch.terminated, batch.truncated, alive)
        behaviour_log_prob = np.where(alive, batch.log_prob, np.float32(0))
        metrics: dict[str, float] = {}
        if log_prob is None:
            estimates = gae(trajectory, discount=config.discount, gae_lambda=config.gae_lambda)
            old_log_prob, importance = behaviour_log_prob, np.ones_like(behaviour_log_prob)
        else:
            old_log_prob = np.where(alive, log_prob, np.float32(0))
            ratio = np.exp(np.clip(old_log_prob - behaviour_log_prob, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
            estimates, importance = self._corrected(trajectory, ratio)
            metrics = self._ratio_metrics(ratio[alive].astype(np.float64))
        zero = np.float32(0)
        target = np.where(alive, estimates.value_target, zero)
        old_value = np.where(alive, value[:-1], zero)
        return _Targets(old_log_prob, estimates.advantage, target, old_value, importance), metrics

    def _corrected(self, trajectory: Trajectory, ratio: Array) -> tuple[Estimates, Array]:
        """Return estimates, and the importance weights of their advantages."""
        config = self.config
        if self._correction == "vtrace":
            estimates = vtrace(
                trajectory,
                ratio,
                discount=config.discount,
                gae_lambda=config.gae_lambda,
                rho_max=config.vtrace_rho_max,
                c_max=config.vtrace_c_max,
            )
            return estimates, np.minimum(ratio, np.float32(config.vtrace_rho_max))
        return gae(trajectory, discount=config.discount, gae_lambda=config.gae_lambda), ratio

    def _normalize(
        self, targets: _Targets, alive: NDArray[np.bool_], advantages: Moments
    ) -> tuple[Array, Array, Array, Array]:
        """Take the targets into the value normaliser.

        Args:
            targets: of this update.
            alive: [T, E, N] who acted.
            advantages: mean and variance of theirs.

        Returns:
            [T, E, N] old log-probability; advantage, normalised before it is weighted, as a baseline within
            the importance weight keeps the gradient unbiased; normalised value target and old value.
        """
        advantage, target, old_value = targets.advantage, targets.value_target, targets.old_value
        if self.config.normalize_advantage:
            deviation = math.sqrt(advantages.variance) + 1e-8
            centred = (advantage - np.float32(advantages.mean)) / np.float32(deviation)
            advantage = np.where(alive, centred, np.float32(0))
        if self._moments is not None:
            old_mean, old_std = self._moments.mean, self._moments.std
            self._moments.update(target[alive], self._ranks.sums)
            if self.config.value_normalization == "popart":
                rescale_head(self.model.critic.head, old_mean, old_std, self._moments.mean, self._moments.std)
            target, old_value = self._moments.normalize(target), self._moments.normalize(old_value)
        return targets.old_log_prob, advantage * targets.importance, target, old_value

    def _ratio_metrics(self, ratio: NDArray[np.float64]) -> dict[str, float]:
        """Return how far the policy is from the one that acted."""
        clipped = float((ratio > self.config.vtrace_rho_max).sum())
        count, total, num_clipped = self._ranks.sums(ratio.size, float(ratio.sum()), clipped)
        largest = self._ranks.largest(float(ratio.max(initial=-np.inf)))
        if not count:
            return {}
        return {
            "importance_ratio_mean": total / count,
            "importance_ratio_max": largest,
            "importance_clipped_fraction": num_clipped / count,
        }

    def _fit_metrics(self, targets: _Targets, alive: NDArray[np.bool_]) -> tuple[dict[str, float], Moments]:
        """Return how well the critic foretold the targets, and mean and variance of the advantages."""
        target = targets.value_target[alive].astype(np.float64)  # squares of large rewards overflow float32
        error, advantage = target - targets.old_value[alive], targets.advantage[alive].astype(np.float64)
        of_error, of_target, of_advantage = self._ranks.moments(error, target, advantage)
        is_varied = of_target.variance > 0
        metrics = {
            "explained_variance": 1.0 - of_error.variance / of_target.variance if is_varied else 0.0,
            "value_target_mean": of_target.mean,
            "advantage_std": math.sqrt(of_advantage.variance),
        }
        return metrics, of_advantage
