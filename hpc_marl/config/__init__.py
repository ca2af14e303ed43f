"""Settings as frozen dataclasses: every default, unit and range stands here, once."""

from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.config.assignments import (
    ActorAssignment,
    EvaluatorAssignment,
    PolicyAssignment,
    TrainerAssignment,
    assignment,
    sample_trainer,
    share_of_update,
)
from hpc_marl.config.build import build, to_dict
from hpc_marl.config.cluster import ClusterConfig
from hpc_marl.config.environment import EnvConfig
from hpc_marl.config.experiment import ExperimentConfig
from hpc_marl.config.policy import PolicyConfig
from hpc_marl.config.workers import (
    ActorGroupConfig,
    ControlConfig,
    EvaluationConfig,
    ExtraGroupConfig,
    PolicyGroupConfig,
    ResourceConfig,
    StreamConfig,
    TrainerGroupConfig,
)

__all__ = [
    "ActorAssignment",
    "ActorGroupConfig",
    "ClusterConfig",
    "ControlConfig",
    "EnvConfig",
    "EvaluationConfig",
    "EvaluatorAssignment",
    "ExperimentConfig",
    "ExtraGroupConfig",
    "PPOConfig",
    "PolicyAssignment",
    "PolicyConfig",
    "PolicyGroupConfig",
    "ResourceConfig",
    "StreamConfig",
    "TrainerAssignment",
    "TrainerGroupConfig",
    "assignment",
    "build",
    "sample_trainer",
    "share_of_update",
    "to_dict",
]
