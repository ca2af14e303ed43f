"""The keys of the name service; the only module that spells them.

    <experiment>/<trial>/
        controller                    lease of the process that drives the trial
        env_spec                      shapes of the environment, published by the first actor
        worker/<worker_name>          e.g. worker/actor/3: address of its RPC server
        sample_stream/<trainer_name>
        parameter_stream/<trainer_name>
        inference_stream/<policy_name>
        rendezvous/<epoch>/...        how the trainers of one epoch reach each other

Keys are '/'-separated; one key may lie below another ('a/b' and 'a/b/c').
"""

from __future__ import annotations

from hpc_marl.errors import NameResolveError

CONTROLLER = "controller"
"""The worker name under which the controller answers commands."""


def trial(experiment_name: str, trial_name: str) -> str:
    """Root of everything that belongs to one trial.

    >>> trial("foraging", "seed0")
    'foraging/seed0'

    Raises:
        NameResolveError: one of the two is empty or contains a '/', which would let two trials share keys.
    """
    for what, part in (("experiment_name", experiment_name), ("trial_name", trial_name)):
        if not part or "/" in part:
            raise NameResolveError(f"{what} must be one non-empty word without '/', found {part!r}")
    return f"{experiment_name}/{trial_name}"


def worker_root(experiment_name: str, trial_name: str) -> str:
    """Root of all workers of a trial."""
    return f"{trial(experiment_name, trial_name)}/worker"


def worker(experiment_name: str, trial_name: str, worker_name: str) -> str:
    """Address of one worker's RPC server.

    >>> worker("foraging", "seed0", "actor/3")
    'foraging/seed0/worker/actor/3'
    """
    return f"{worker_root(experiment_name, trial_name)}/{worker_name}"


def sample_stream(experiment_name: str, trial_name: str, trainer_name: str) -> str:
    """Where actors send the trajectories that this trainer consumes."""
    return f"{trial(experiment_name, trial_name)}/sample_stream/{trainer_name}"


def parameter_stream(experiment_name: str, trial_name: str, trainer_name: str) -> str:
    """Where this trainer publishes new parameters."""
    return f"{trial(experiment_name, trial_name)}/parameter_stream/{trainer_name}"


def inference_root(experiment_name: str, trial_name: str) -> str:
    """Root of all inference servers of a trial."""
    return f"{trial(experiment_name, trial_name)}/inference_stream"


def inference_stream(experiment_name: str, trial_name: str, policy_name: str) -> str:
    """Where this policy worker answers observations with actions."""
    return f"{inference_root(experiment_name, trial_name)}/{policy_name}"


def rendezvous(experiment_name: str, trial_name: str, epoch: int) -> str:
    """Root of what the trainers of one epoch must know to reach each other; no other epoch reads it."""
    return f"{trial(experiment_name, trial_name)}/rendezvous/{epoch}"


def env_spec(experiment_name: str, trial_name: str) -> str:
    """The environment's spec, known only once an actor has made one."""
    return f"{trial(experiment_name, trial_name)}/env_spec"


def controller(experiment_name: str, trial_name: str) -> str:
    """The exclusive lease of the process that drives the trial."""
    return f"{trial(experiment_name, trial_name)}/controller"
