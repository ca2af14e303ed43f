"""What is compared on which task, and how our settings are said in each peer's words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_marl.config import ExperimentConfig
from measuring.peers import Peer

CARTPOLE_GOAL = 475.0
"""Mean return of the last 100 training episodes."""
EPYMARL = "EPyMARL MAPPO, its settings"
SUPERSUIT = "stable-baselines3 PPO with SuperSuit, our settings, local critic"
BENCHMARL = "BenchMARL MAPPO, its settings"
BENCHMARL_AS_OURS = "BenchMARL MAPPO, our settings"


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        title: as the table names it.
        experiment: of conf/experiment.
        env_steps: of the training whose rate is measured; --quick takes a quarter.
        peers: who else trains it, given our settings.
        needs: packages without which there is no environment.
        modes: of our training; the first is the experiment's own.
        goal: mean return of the last 100 training episodes that is timed; None: only rates are measured.
        peer_max_s: so long after their first step peers are stopped, where they have not held the goal before; an
            update that has begun is ended.
        wanted: how many times as fast as which peer our training is to be.
        of_actors: least share of what the environment alone does on as much CPU time as our actors get; None: no goal.
        returns_after: env_steps after which mean returns are compared; all must pay the same.
    """

    title: str
    experiment: str
    env_steps: int
    peers: Callable[[ExperimentConfig], Sequence[Peer]]
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("sync", "async")
    goal: float | None = None
    peer_max_s: float = 20.0
    wanted: Mapping[str, float] = field(default_factory=dict)
    of_actors: float | None = None
    returns_after: tuple[int, ...] = ()


def cartpole_peers(config: ExperimentConfig) -> list[Peer]:
    """Return every peer with the settings that its authors give for CartPole, and ours where those may be better."""
    zoo = {
        **stable_baselines3_settings(config),
        **{"num_envs": 8, "total_env_steps": 100_000, "schedules": ["learning_rate", "clip_range"]},
        "model": {
            **{"n_steps": 32, "batch_size": 256, "n_epochs": 20, "learning_rate": 0.001, "clip_range": 0.2},
            **{"gamma": 0.98, "gae_lambda": 0.8, "ent_coef": 0.0},
        },
    }
    del zoo["minibatches"]
    rllib = {
        **{"num_cpus": 2, "num_env_runners": 1, "num_envs_per_env_runner": 16, "model": {}},
        "training": {"lr": 0.001, "minibatch_size": 512},
    }
    return [
        Peer("CleanRL ppo.py, its defaults", "cleanrl", {"arguments": []}),
        Peer("stable-baselines3 PPO, RL Zoo's settings", "stable_baselines3", zoo),
        Peer("stable-baselines3 PPO, our settings", "stable_baselines3", stable_baselines3_settings(config)),
        Peer(
            "Sample Factory APPO, its example, learning rate 1e-3",
            "sample_factory",
            {"arguments": ["--learning_rate=0.001"]},
        ),
        Peer("RLlib PPO, its example, learning rate 1e-3, minibatches of 512", "rllib", rllib),
    ]


def epymarl(env_id: str, time_limit: int) -> Peer:
    """Return EPyMARL's MAPPO, with its own settings."""
    settings = {"env_id": env_id, "time_limit": time_limit, "arguments": []}
    return Peer(EPYMARL, "epymarl", settings)


def lbf_peers(config: ExperimentConfig) -> list[Peer]:
    """Return who trains level-based foraging."""
    return [
        Peer(
            "stable-baselines3 PPO, our settings, local critic",
            "stable_baselines3",
            stable_baselines3_settings(config),
        ),
        epymarl("lbforaging:Foraging-8x8-2p-3f-v3", 50),
    ]


def spread_peers(config: ExperimentConfig) -> list[Peer]:
    """Return who trains cooperative navigation."""
    return [Peer(SUPERSUIT, "stable_baselines3", stable_baselines3_settings(config))]


def rware_peers(config: ExperimentConfig) -> list[Peer]:
    """Return who trains the warehouse."""
    return [epymarl("rware:rware-tiny-2ag-v2", 500)]


def balance_peers(config: ExperimentConfig) -> list[Peer]:
    """Return who trains VMAS's balance."""
    return [
        Peer(BENCHMARL_AS_OURS, "benchmarl", benchmarl_settings(config)),
        Peer(BENCHMARL, "benchmarl", BENCHMARL_OWN, takes_minutes=True),
    ]


BENCHMARL_OWN: Mapping[str, Any] = {
    **{"task": "BALANCE", "num_envs": 600, "rollout_length": 100, "num_epochs": 45, "minibatch_size": 4096},
    **{"learning_rate": 5e-5, "discount": 0.9, "max_grad_norm": 5, "activation": "tanh"},
    **{"hidden_sizes": [256, 256], "critic_hidden_sizes": [256, 256], "total_env_steps": 10**9},
}
"""fine_tuned/vmas/conf/config.yaml of its repository, with its MAPPO and its MLP as its package has them."""


def nobody(config: ExperimentConfig) -> list[Peer]:
    """Return no peers."""
    return []


TASKS = {
    "cartpole": Task(
        *("CartPole-v1, PPO", "cartpole_ppo", 1_000_000, cartpole_peers), goal=CARTPOLE_GOAL, peer_max_s=90.0
    ),
    "cartpole_vector": Task(
        *("CartPole-v1 natively vectorised, PPO", "cartpole_vector_ppo", 2_000_000, nobody),
        goal=CARTPOLE_GOAL,
    ),
    "lbf": Task(
        "LBF 8x8-2p-3f, MAPPO", "lbf_mappo", 200_000, lbf_peers, wanted={EPYMARL: 3.0}, of_actors=0.7
    ),
    "spread": Task(
        "MPE simple_spread, MAPPO",
        "mpe_spread_mappo",
        60_000,
        spread_peers,
        ("mpe2",),
        wanted={SUPERSUIT: 3.0},
        of_actors=0.7,
    ),
    "rware": Task(
        "RWARE tiny-2ag, MAPPO",
        "rware_mappo",
        80_000,
        rware_peers,
        ("rware",),
        peer_max_s=45.0,
        wanted={EPYMARL: 3.0},
        of_actors=0.7,
    ),
    "balance": Task(
        *("VMAS balance, 600 environments, MAPPO", "vmas_balance_mappo", 360_000, balance_peers, ("vmas",)),
        peer_max_s=45.0,
        wanted={BENCHMARL: 10.0, BENCHMARL_AS_OURS: 10.0},
        returns_after=(60_000, 120_000, 360_000),
    ),
    "pong": Task("Atari Pong, PPO", "pong_small_ppo", 150_000, nobody, ("ale_py",), of_actors=0.85),
}


def runnable_tasks() -> list[str]:
    """Return the tasks whose environment is installed."""
    return [name for name, task in TASKS.items() if all(map(importlib.util.find_spec, task.needs))]


def stable_baselines3_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return stable-baselines3's words for our settings; a central critic, which it does not have, becomes local."""
    ppo, policy = config.algorithm, config.policy
    make = {name: value for name, value in config.env.make.items() if name not in ("_target_", "id")}
    is_gymnasium = "id" in config.env.make
    return {
        "imports": list(config.env.imports),
        "env_arguments": make,
        **(
            {"env_id": config.env.make["id"]} if is_gymnasium else {"pettingzoo": config.env.make["_target_"]}
        ),
        "num_envs": config.actors.count * config.actors.num_envs,
        "total_env_steps": 10**9,
        "net_arch": {"pi": list(policy.hidden_sizes), "vf": list(policy.critic_hidden_sizes)},
        "activation": policy.activation,
        "minibatches": ppo.num_minibatches,
        "model": {
            **{"learning_rate": ppo.learning_rate, "n_steps": ppo.rollout_length, "n_epochs": ppo.num_epochs},
            **{"gamma": ppo.discount, "gae_lambda": ppo.gae_lambda, "clip_range": ppo.clip_eps},
            **{"ent_coef": ppo.entropy_coef, "vf_coef": ppo.value_coef, "max_grad_norm": ppo.max_grad_norm},
        },
        "schedules": [],
    }


def benchmarl_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return BenchMARL's words for our settings of a VMAS task."""
    ppo, policy = config.algorithm, config.policy
    num_envs = config.env.make.get("num_envs") or config.actors.count * config.actors.num_envs
    return {
        "task": "BALANCE",
        **{"num_envs": num_envs, "rollout_length": ppo.rollout_length, "num_epochs": ppo.num_epochs},
        "minibatch_size": num_envs * ppo.rollout_length // ppo.num_minibatches,
        **{"learning_rate": ppo.learning_rate, "discount": ppo.discount, "lmbda": ppo.gae_lambda},
        **{"clip_epsilon": ppo.clip_eps, "entropy_coef": ppo.entropy_coef, "critic_coef": ppo.value_coef},
        **{"hidden_sizes": list(policy.hidden_sizes), "activation": policy.activation},
        **{"critic_hidden_sizes": list(policy.critic_hidden_sizes), "max_grad_norm": ppo.max_grad_norm},
        "total_env_steps": 10**9,
    }
