"""Every error that hpc_marl raises on purpose.

HpcMarlError
├── ConfigError              a setting is unknown, of the wrong type or out of range
├── EnvContractError         an environment breaks its contract
├── NameResolveError
│   ├── NameEntryExistsError
│   ├── NameEntryNotFoundError
│   └── NameWaitTimeoutError (also a TimeoutError)
├── SecurityError            a key, permission or peer that cannot be trusted
├── ProtocolError            bytes that are not a message of ours
│   └── MessageTooLargeError
├── RpcError
│   ├── RpcTimeoutError      (also a TimeoutError) no answer before the deadline
│   ├── UnknownCommandError
│   ├── BadRequestError      the handler does not take these arguments
│   ├── RemoteError          the handler raised; carries the remote traceback
│   ├── StalePeerError       the worker was replaced by a newer incarnation
│   └── NoControllerError    nobody drives the run, or who does cannot be reached from here
├── WorkerError
│   └── InvalidTransitionError
├── CheckpointError
│   └── OtherCheckpointError (also a ConfigError) it was written with other settings
├── FencedError              a newer epoch of the trainers has begun: this process writes nothing more
├── LaunchError              a job was refused, or a command of the cluster failed
│   └── QueueBusyError
└── StreamError
"""

from __future__ import annotations


class HpcMarlError(Exception):
    """Base of all errors of this package."""


class ConfigError(HpcMarlError, ValueError):
    """A setting is unknown, of the wrong type or out of range; the message lists what would be right.

    A worker that fails with it is not started again: its next life would be told the same.
    """


class EnvContractError(HpcMarlError):
    """An environment breaks the contract that `check_env` tests."""


class NameResolveError(HpcMarlError):
    """Base of the name service's errors."""


class NameEntryExistsError(NameResolveError):
    """`add(..., replace=False)` met an existing entry."""


class NameEntryNotFoundError(NameResolveError):
    """There is no such entry, or its time to live has run out."""


class NameWaitTimeoutError(NameResolveError, TimeoutError):
    """A name did not appear in time; the message says what was there instead."""


class SecurityError(HpcMarlError):
    """A key, a permission or a peer that cannot be trusted; the message names the remedy."""


class ProtocolError(HpcMarlError):
    """Bytes that do not decode to a message of ours."""


class MessageTooLargeError(ProtocolError):
    """A message is larger than its channel allows; refused before it is sent."""


class RpcError(HpcMarlError):
    """Base of the errors that a remote call can end with."""


class RpcTimeoutError(RpcError, TimeoutError):
    """No answer came before the deadline."""


class UnknownCommandError(RpcError):
    """The server has no handler of that name; the message lists those it has."""


class BadRequestError(RpcError):
    """The handler does not take these arguments, or they cannot be encoded."""


class RemoteError(RpcError):
    """The handler raised.

    Attributes:
        remote_type: name of the remote exception's class.
        remote_traceback: the traceback's text as formatted on the server.
    """

    def __init__(self, message: str, remote_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = f"{self.remote_type}: {self.args[0]}" if self.remote_type else str(self.args[0])
        return f"{text}\n--- remote traceback ---\n{self.remote_traceback}" if self.remote_traceback else text


class StalePeerError(RpcError):
    """The request was addressed to an incarnation of the worker that is no more."""


class NoControllerError(RpcError):
    """Nobody drives the run, or who does cannot be reached from here; the message names the remedy."""


class WorkerError(HpcMarlError):
    """A worker cannot do what was asked of it."""


class InvalidTransitionError(WorkerError):
    """The command does not fit the worker's status; the message lists those that do."""


class CheckpointError(HpcMarlError):
    """No valid checkpoint where one was needed, or one could not be written."""


class OtherCheckpointError(CheckpointError, ConfigError):
    """A checkpoint was written with settings from which the present ones cannot go on."""


class FencedError(HpcMarlError):
    """A newer epoch of the trainers has begun: this process was replaced and must write nothing more."""


class LaunchError(HpcMarlError):
    """A job was refused, or a command of the cluster failed; the message holds what it said."""


class QueueBusyError(LaunchError):
    """Slurm did not answer or has no time now; the job may have been accepted all the same."""


class StreamError(HpcMarlError):
    """A data stream cannot carry what was asked of it."""
