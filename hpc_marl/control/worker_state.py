"""The life of a worker as a pure state machine: (status, event) -> (status, actions). No I/O, no clock.

One machine serves both ends: the *worker* feeds it commands and what becomes of its own work, the
*controller* what it sees of a worker from outside. LOST and UNKNOWN exist only in the controller's view.

    the worker itself                         the controller's view

    READY --start--> RUNNING --finished--+    UNKNOWN --registered--> READY --started--> RUNNING <-> PAUSED
      |               |   ^              |       ^                      |                   |          |
      |             pause start          |   respawned        silent, hung, killed    last word of a heartbeat
      |               v   |              |       |                      v                   v
      +------------- PAUSED              |       +-------------------- LOST    COMPLETED, INTERRUPTED, ERROR
      +--> exit      : COMPLETED <-------+       +---------------------------------------------+
      +--> interrupt : INTERRUPTED
      +--> failed    : ERROR

A final word (COMPLETED, INTERRUPTED, ERROR) is never overruled by silence or by a late heartbeat. LOST is
left only by a new life: REGISTERED (it came back by itself) or RESPAWNED; heartbeats of the old life change
nothing, because its process may already be on the way to be killed.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from hpc_marl.errors import InvalidTransitionError


class WorkerStatus(str, Enum):
    """Where a worker stands."""

    READY = "READY"
    """Constructed and answering; configured or not; not working."""
    RUNNING = "RUNNING"
    """Polling."""
    PAUSED = "PAUSED"
    """Started once, not polling; `start` goes on."""
    COMPLETED = "COMPLETED"
    """Its work is done, or it was told to exit."""
    INTERRUPTED = "INTERRUPTED"
    """Ended before its work was done: by command, by a signal or because nobody spoke to it any more."""
    ERROR = "ERROR"
    """It raised; the traceback is in its `status` reply and its last heartbeat."""
    LOST = "LOST"
    """Controller's view only: silent for too long, hung, or its process was killed."""
    UNKNOWN = "UNKNOWN"
    """Controller's view only: launched, but not heard of yet."""


class Event(str, Enum):
    """What can happen to a worker: first what the worker itself sees, then what the controller sees of it."""

    CONFIGURE = "configure"
    RECONFIGURE = "reconfigure"
    START = "start"
    PAUSE = "pause"
    EXIT = "exit"
    INTERRUPT = "interrupt"
    FINISHED = "finished"  # a poll said that the work is done
    FAILED = "failed"  # a poll or a hook raised
    ORPHANED = "orphaned"  # no controller spoke for longer than the grace

    REGISTERED = "registered"  # a name entry of a new incarnation appeared
    CONFIGURED = "configured"  # `configure` was answered
    STARTED = "started"  # `start` was answered
    HEARTBEAT_READY = "heartbeat READY"
    HEARTBEAT_RUNNING = "heartbeat RUNNING"
    HEARTBEAT_PAUSED = "heartbeat PAUSED"
    HEARTBEAT_COMPLETED = "heartbeat COMPLETED"
    HEARTBEAT_INTERRUPTED = "heartbeat INTERRUPTED"
    HEARTBEAT_ERROR = "heartbeat ERROR"
    HEARTBEAT_LOST = "heartbeat lost"  # silent, or never registered, for longer than the limit
    HUNG = "hung"  # heartbeats come, progress stands still
    PROCESS_COMPLETED = "process exited: completed"
    PROCESS_INTERRUPTED = "process exited: interrupted"
    PROCESS_FAILED = "process exited: failed"
    PROCESS_KILLED = "process exited: killed by a signal"
    GIVEN_UP = "given up"  # `fault_decision` said CONTINUE_WITHOUT or FAIL_RUN
    RESPAWNED = "respawned"  # a new process was launched under the same name


class Action(str, Enum):
    """What the caller of `transition` has to do, in the order given; then the new status holds."""

    RUN_CONFIGURE = "run the configure hook"
    RUN_RECONFIGURE = "run the reconfigure hook"
    RUN_START = "run the start hook"
    RUN_PAUSE = "run the pause hook"
    END_LOOP = "send the reply, leave the worker's loop, run the exit hook"

    SEND_CONFIGURE = "send it its config"
    SEND_START = "send it start, as soon as the run is under way"
    END_PROCESS = "make sure that its old process is gone"
    DECIDE_FAULT = "ask fault_decision; ignored while the run is being stopped"
    CHECK_RUN = "see whether the run is finished now"
    FORGET = "disconnect it and take it off the watch list"


class Transition(NamedTuple):
    """The answer of the machine.

    Attributes:
        status: holds once the actions are done.
        actions: what to do, in order; empty for an event that changes nothing.
    """

    status: WorkerStatus
    actions: tuple[Action, ...]


_READY, _RUNNING, _PAUSED = WorkerStatus.READY, WorkerStatus.RUNNING, WorkerStatus.PAUSED
_COMPLETED, _INTERRUPTED, _ERROR = WorkerStatus.COMPLETED, WorkerStatus.INTERRUPTED, WorkerStatus.ERROR
_LOST, _UNKNOWN = WorkerStatus.LOST, WorkerStatus.UNKNOWN
_LIVE = (_READY, _RUNNING, _PAUSED)
_NOT_COMPLETED = (*_LIVE, _INTERRUPTED, _ERROR, _LOST, _UNKNOWN)
_STAY = None

_Row = tuple[Event, tuple[WorkerStatus, ...], "WorkerStatus | None", tuple[Action, ...]]

# fmt: off
_WORKER_TABLE: tuple[_Row, ...] = (
    # event                       in these statuses     leads to      after these actions
    (Event.CONFIGURE,             (_READY,),            _STAY,        (Action.RUN_CONFIGURE,)),
    (Event.RECONFIGURE,           _LIVE,                _STAY,        (Action.RUN_RECONFIGURE,)),
    (Event.START,                 (_READY, _PAUSED),    _RUNNING,     (Action.RUN_START,)),
    (Event.START,                 (_RUNNING,),          _STAY,        ()),
    (Event.PAUSE,                 (_RUNNING,),          _PAUSED,      (Action.RUN_PAUSE,)),
    (Event.PAUSE,                 (_PAUSED,),           _STAY,        ()),
    (Event.FINISHED,              (_RUNNING,),          _COMPLETED,   ()),
    (Event.EXIT,                  (*_LIVE, _COMPLETED), _COMPLETED,   (Action.END_LOOP,)),
    (Event.EXIT,                  (_INTERRUPTED, _ERROR), _STAY,      ()),
    (Event.INTERRUPT,             _LIVE,                _INTERRUPTED, (Action.END_LOOP,)),
    (Event.INTERRUPT,             (_COMPLETED,),        _STAY,        (Action.END_LOOP,)),  # its work is done
    (Event.INTERRUPT,             (_INTERRUPTED, _ERROR), _STAY,      ()),
    (Event.ORPHANED,              _LIVE,                _INTERRUPTED, (Action.END_LOOP,)),
    (Event.ORPHANED,              (_COMPLETED,),        _STAY,        (Action.END_LOOP,)),
    (Event.FAILED,                (*_LIVE, _COMPLETED), _ERROR,       (Action.END_LOOP,)),
)

_FAULT = (Action.END_PROCESS, Action.DECIDE_FAULT)
_VIEW_TABLE: tuple[_Row, ...] = (
    (Event.REGISTERED,            _NOT_COMPLETED,       _READY,       (Action.SEND_CONFIGURE,)),
    (Event.REGISTERED,            (_COMPLETED,),        _STAY,        (Action.END_PROCESS,)),  # nothing to do
    (Event.CONFIGURED,            (_READY,),            _STAY,        (Action.SEND_START,)),
    (Event.STARTED,               _LIVE,                _RUNNING,     ()),
    (Event.HEARTBEAT_READY,       (_UNKNOWN,),          _READY,       (Action.SEND_CONFIGURE,)),
    (Event.HEARTBEAT_RUNNING,     (*_LIVE, _UNKNOWN),   _RUNNING,     ()),
    (Event.HEARTBEAT_PAUSED,      (*_LIVE, _UNKNOWN),   _PAUSED,      ()),
    (Event.HEARTBEAT_COMPLETED,   (*_LIVE, _UNKNOWN),   _COMPLETED,   (Action.CHECK_RUN,)),
    (Event.HEARTBEAT_INTERRUPTED, (*_LIVE, _UNKNOWN),   _INTERRUPTED, _FAULT),
    (Event.HEARTBEAT_ERROR,       (*_LIVE, _COMPLETED, _UNKNOWN), _ERROR, _FAULT),
    (Event.HEARTBEAT_LOST,        (*_LIVE, _UNKNOWN),   _LOST,        _FAULT),
    (Event.HUNG,                  _LIVE,                _LOST,        _FAULT),
    (Event.PROCESS_COMPLETED,     _LIVE,                _COMPLETED,   (Action.CHECK_RUN,)),
    (Event.PROCESS_COMPLETED,     (_UNKNOWN,),          _LOST,        (Action.DECIDE_FAULT,)),  # never worked
    (Event.PROCESS_INTERRUPTED,   (*_LIVE, _UNKNOWN),   _INTERRUPTED, (Action.DECIDE_FAULT,)),
    (Event.PROCESS_FAILED,        (*_LIVE, _UNKNOWN),   _ERROR,       (Action.DECIDE_FAULT,)),
    (Event.PROCESS_KILLED,        (*_LIVE, _UNKNOWN),   _LOST,        (Action.DECIDE_FAULT,)),
    # The controller's own decisions; in any other status they would be its mistake.
    (Event.GIVEN_UP,              (_INTERRUPTED, _ERROR, _LOST), _STAY,    (Action.FORGET,)),
    (Event.RESPAWNED,             (_COMPLETED, _INTERRUPTED, _ERROR, _LOST), _UNKNOWN, ()),
)
# fmt: on
_WORKER_EVENTS = frozenset(row[0] for row in _WORKER_TABLE)
_FACTS = frozenset(row[0] for row in _VIEW_TABLE) - {Event.GIVEN_UP, Event.RESPAWNED}

TRANSITIONS: dict[tuple[WorkerStatus, Event], Transition] = {
    # The world may show facts late and in any order, and a view must not fail over it: a fact that the table
    # does not list for a status is old news there.
    **{(status, fact): Transition(status, ()) for status in WorkerStatus for fact in _FACTS},
    **{
        (status, event): Transition(status if target is _STAY else target, actions)
        for event, statuses, target, actions in (*_WORKER_TABLE, *_VIEW_TABLE)
        for status in statuses
    },
}
"""The whole machine; a pair that is not in it is invalid."""


def transition(status: WorkerStatus, event: Event) -> Transition:
    """Return where `event` leads from `status` and what has to be done on the way.

    Example:
        >>> transition(WorkerStatus.RUNNING, Event.PAUSE).actions
        (<Action.RUN_PAUSE: 'run the pause hook'>,)

    Raises:
        InvalidTransitionError: the event does not fit; the message lists those that do.
    """
    found = TRANSITIONS.get((status, event))
    if found is None:
        side = _WORKER_EVENTS if event in _WORKER_EVENTS else set(Event) - _WORKER_EVENTS
        fitting = [known.value for known in Event if known in side and (status, known) in TRANSITIONS]
        raise InvalidTransitionError(
            f"{event.value!r} does not fit the status {status.value}; "
            f"fitting: {', '.join(fitting) or 'nothing'}"
        )
    return found


_HEARTBEAT_EVENTS = {
    status: Event(f"heartbeat {status.value}") for status in WorkerStatus if status not in (_LOST, _UNKNOWN)
}


def heartbeat_event(status: WorkerStatus) -> Event:
    """Return the event of a heartbeat that carries `status`.

    Raises:
        ValueError: no worker says LOST or UNKNOWN of itself.
    """
    event = _HEARTBEAT_EVENTS.get(status)
    if event is None:
        raise ValueError(f"no worker says {status.value} of itself")
    return event


_EXIT_CODES = {_COMPLETED: 0, _ERROR: 1, _INTERRUPTED: 75}  # 75 is EX_TEMPFAIL of sysexits.h: run it again


def exit_code(status: WorkerStatus) -> int:
    """Return the exit code that says a worker's final status; any other status is a failure."""
    return _EXIT_CODES.get(status, 1)


def exit_event(code: int) -> Event:
    """Return the event of a process that exited with `code` (negative or from 128 on: a signal)."""
    if code < 0 or code >= 128:
        return Event.PROCESS_KILLED
    if code == _EXIT_CODES[_INTERRUPTED]:
        return Event.PROCESS_INTERRUPTED
    return Event.PROCESS_FAILED if code else Event.PROCESS_COMPLETED


ELASTIC_KINDS = frozenset({"actor"})
"""Kinds of which a run can spare some; it cannot go on without any other worker."""


class FaultDecision(str, Enum):
    """What the controller does about a worker that has ended in LOST, ERROR or INTERRUPTED."""

    RESPAWN = "RESPAWN"
    """Launch it again under its name; trainer and policy start from the last checkpoint."""
    CONTINUE_WITHOUT = "CONTINUE_WITHOUT"
    """Give it up; the others are enough."""
    FAIL_RUN = "FAIL_RUN"
    """End the run with an error."""


def fault_decision(
    kind: str, restarts: int, max_restarts: int, live_actors: int, min_actors: int
) -> FaultDecision:
    """Return what to do about one worker that is gone.

    Example:
        >>> fault_decision("actor", restarts=3, max_restarts=3, live_actors=7, min_actors=4)
        <FaultDecision.CONTINUE_WITHOUT: 'CONTINUE_WITHOUT'>

    Args:
        kind: "actor", "trainer", "policy" or a kind of the user's.
        restarts: how often this worker was respawned already.
        max_restarts: its budget.
        live_actors: actors that are left, not counting this one.
        min_actors: actors that the run needs to go on.
    """
    if restarts < max_restarts:
        return FaultDecision.RESPAWN
    if kind in ELASTIC_KINDS and live_actors >= min_actors:
        return FaultDecision.CONTINUE_WITHOUT
    return FaultDecision.FAIL_RUN
