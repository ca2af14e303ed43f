"""Control without a run directory: name service and keys of this process and user, as in a notebook."""

from __future__ import annotations

from hpc_marl.base import name_resolve
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import default_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.errors import ConfigError


def context_of_trial(experiment_name: str, trial_name: str, context: RunContext | None) -> RunContext:
    """Return `context` if there is one, else one of the process-wide name service and `default_keyring()`.

    The sockets of a context made here are the caller's to close; the name service stays whose it is.

    Raises:
        ConfigError: `context` is of another trial.
        NameResolveError: the process has no name service; call `name_resolve.configure` first.
        SecurityError: others could read the keys.
    """
    if context is None:
        resolver = name_resolve.default_resolver()
        return RunContext(experiment_name, trial_name, resolver, SocketFactory(default_keyring()))
    if (context.experiment_name, context.trial_name) != (experiment_name, trial_name):
        raise ConfigError(
            f"the context is of {context.experiment_name}/{context.trial_name}, "
            f"expected one of {experiment_name}/{trial_name}"
        )
    return context
