"""Settings of the learning algorithms; the defaults are vetted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpc_marl.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017) as IPPO or MAPPO (Yu et al. 2022)."""

    name: Literal["ppo", "ippo", "mappo"] = setting("ppo", "what to call it in logs")
    critic: Literal["local", "central"] = setting(
        "local",
        "local: values from the agent's own observation (IPPO); central: from the global state (MAPPO)",
    )
    rollout_length: int = setting(
        128, "steps of every environment in one sample batch", unit="env_steps", low=1
    )
    num_epochs: int = setting(4, "passes over the data of one update", low=1)
    num_minibatches: int = setting(4, "parts that one pass is cut into", low=1)
    learning_rate: float = setting(3e-4, "Adam's step size", low=0, exclusive_low=True)
    anneal_learning_rate: bool = setting(True, "bring the learning rate linearly to 0 at total_env_steps")
    adam_eps: float = setting(1e-5, "Adam's epsilon", low=0, exclusive_low=True)
    discount: float = setting(0.99, "gamma", low=0, high=1)
    gae_lambda: float = setting(0.95, "lambda of generalised advantage estimation", low=0, high=1)
    clip_eps: float = setting(0.2, "clip range of the probability ratio", low=0, exclusive_low=True)
    value_clip_eps: float | None = setting(None, "clip range of the value; null does not clip", low=0)
    value_coef: float = setting(0.5, "weight of the value loss", low=0)
    value_loss: Literal["mse", "huber"] = setting("mse", "form of the value loss")
    huber_delta: float = setting(10.0, "where the Huber loss turns linear", low=0, exclusive_low=True)
    entropy_coef: float = setting(0.01, "weight of the entropy bonus", low=0)
    max_grad_norm: float = setting(0.5, "clip the gradient's global norm here", low=0, exclusive_low=True)
    normalize_advantage: bool = setting(
        True, "advantages of zero mean and unit deviation over the valid entries of one update"
    )
    value_normalization: Literal["none", "running", "popart"] = setting(
        "running", "running: train the critic on standardised targets; popart: and correct its last layer"
    )
    memory_chunk_length: int = setting(
        16,
        "recurrent policies: steps of one back-propagation window; divides rollout_length",
        unit="env_steps",
        low=1,
    )
    off_policy_correction: Literal["none", "vtrace", "decoupled"] = setting(
        "vtrace",
        "mode=async: V-trace targets (Espeholt et al. 2018), or the decoupled clip (Hilton et al. 2022)",
    )
    vtrace_rho_max: float = setting(1.0, "clip of V-trace's rho", low=0, exclusive_low=True)
    vtrace_c_max: float = setting(1.0, "clip of V-trace's c", low=0, exclusive_low=True)
    max_policy_lag: int = setting(
        8,
        "mode=async: drop a batch whose oldest step is more versions behind than this",
        unit="policy versions",
        low=0,
    )
