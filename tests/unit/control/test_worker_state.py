"""The pure state machine of workers: complete, closed, and every status within reach."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_marl.control.worker_state import (
    TRANSITIONS,
    Action,
    Event,
    FaultDecision,
    WorkerStatus,
    exit_code,
    exit_event,
    fault_decision,
    heartbeat_event,
    transition,
)
from hpc_marl.errors import InvalidTransitionError

COMMANDS = [Event.CONFIGURE, Event.RECONFIGURE, Event.START, Event.PAUSE, Event.EXIT, Event.INTERRUPT]
WORKER_EVENTS = [*COMMANDS, Event.FINISHED, Event.FAILED, Event.ORPHANED]
VIEW_EVENTS = [event for event in Event if event not in WORKER_EVENTS]
FINAL = {WorkerStatus.COMPLETED, WorkerStatus.INTERRUPTED, WorkerStatus.ERROR}


def walk(start: WorkerStatus, events: list[Event]) -> WorkerStatus:
    for event in events:
        start = transition(start, event).status
    return start


def test_every_pair_is_a_transition_or_an_error_that_lists_what_fits() -> None:
    for status, event in itertools.product(WorkerStatus, Event):
        if (status, event) in TRANSITIONS:
            found = transition(status, event)
            assert isinstance(found.status, WorkerStatus)
            assert all(isinstance(action, Action) for action in found.actions)
            continue
        with pytest.raises(InvalidTransitionError) as caught:
            transition(status, event)
        side = WORKER_EVENTS if event in WORKER_EVENTS else VIEW_EVENTS
        listed = str(caught.value).split("fitting: ")[1].split(", ")
        assert listed == ([e.value for e in side if (status, e) in TRANSITIONS] or ["nothing"])


def test_exactly_the_expected_events_fit_each_status() -> None:
    end = {Event.EXIT, Event.INTERRUPT}
    live = {Event.RECONFIGURE, Event.START, Event.FAILED, Event.ORPHANED, *end}
    fitting = {
        WorkerStatus.READY: {Event.CONFIGURE, *live},
        WorkerStatus.RUNNING: {Event.PAUSE, Event.FINISHED, *live},
        WorkerStatus.PAUSED: {Event.PAUSE, *live},
        WorkerStatus.COMPLETED: {Event.FAILED, Event.ORPHANED, Event.RESPAWNED, *end},
        WorkerStatus.INTERRUPTED: {Event.GIVEN_UP, Event.RESPAWNED, *end},
        WorkerStatus.ERROR: {Event.GIVEN_UP, Event.RESPAWNED, *end},
        WorkerStatus.LOST: {Event.GIVEN_UP, Event.RESPAWNED},
        WorkerStatus.UNKNOWN: set(),
    }
    facts = set(VIEW_EVENTS) - {Event.GIVEN_UP, Event.RESPAWNED}
    for status in WorkerStatus:
        assert {event for held, event in TRANSITIONS if held is status} == fitting[status] | facts


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], WorkerStatus.READY),
        ([Event.CONFIGURE, Event.START], WorkerStatus.RUNNING),
        ([Event.START, Event.PAUSE], WorkerStatus.PAUSED),
        ([Event.START, Event.PAUSE, Event.START], WorkerStatus.RUNNING),
        ([Event.START, Event.FINISHED], WorkerStatus.COMPLETED),
        ([Event.EXIT], WorkerStatus.COMPLETED),
        ([Event.START, Event.INTERRUPT], WorkerStatus.INTERRUPTED),
        ([Event.START, Event.ORPHANED], WorkerStatus.INTERRUPTED),
        ([Event.START, Event.FINISHED, Event.ORPHANED], WorkerStatus.COMPLETED),
        ([Event.CONFIGURE, Event.FAILED], WorkerStatus.ERROR),
    ],
)
def test_a_worker_reaches_its_statuses(events: list[Event], status: WorkerStatus) -> None:
    assert walk(WorkerStatus.READY, events) is status


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], WorkerStatus.UNKNOWN),
        ([Event.REGISTERED, Event.CONFIGURED], WorkerStatus.READY),
        ([Event.REGISTERED, Event.CONFIGURED, Event.STARTED], WorkerStatus.RUNNING),
        ([Event.HEARTBEAT_RUNNING], WorkerStatus.RUNNING),
        ([Event.REGISTERED, Event.HEARTBEAT_PAUSED], WorkerStatus.PAUSED),
        ([Event.REGISTERED, Event.HEARTBEAT_COMPLETED], WorkerStatus.COMPLETED),
        ([Event.REGISTERED, Event.HEARTBEAT_INTERRUPTED], WorkerStatus.INTERRUPTED),
        ([Event.REGISTERED, Event.HEARTBEAT_ERROR], WorkerStatus.ERROR),
        ([Event.REGISTERED, Event.HEARTBEAT_LOST], WorkerStatus.LOST),
        ([Event.REGISTERED, Event.STARTED, Event.HUNG], WorkerStatus.LOST),
        ([Event.REGISTERED, Event.PROCESS_KILLED], WorkerStatus.LOST),
        ([Event.HEARTBEAT_LOST], WorkerStatus.LOST),
        ([Event.HEARTBEAT_LOST, Event.RESPAWNED], WorkerStatus.UNKNOWN),
        ([Event.HEARTBEAT_LOST, Event.GIVEN_UP, Event.REGISTERED], WorkerStatus.READY),
    ],
)
def test_a_controllers_view_reaches_all_eight_statuses(events: list[Event], status: WorkerStatus) -> None:
    assert walk(WorkerStatus.UNKNOWN, events) is status


def test_repeated_commands_change_nothing() -> None:
    for status, event in [
        (WorkerStatus.RUNNING, Event.START),
        (WorkerStatus.PAUSED, Event.PAUSE),
        (WorkerStatus.INTERRUPTED, Event.INTERRUPT),
        (WorkerStatus.INTERRUPTED, Event.EXIT),
    ]:
        assert transition(status, event) == (status, ())
    assert transition(WorkerStatus.COMPLETED, Event.EXIT).status is WorkerStatus.COMPLETED


@given(st.lists(st.sampled_from(WORKER_EVENTS)))
def test_random_worker_events_keep_the_workers_invariants(events: list[Event]) -> None:
    status, started, failed = WorkerStatus.READY, False, False
    for event in events:
        try:
            found = transition(status, event)
        except InvalidTransitionError:
            continue
        started = started or event is Event.START
        failed = failed or event is Event.FAILED
        assert found.status not in (WorkerStatus.LOST, WorkerStatus.UNKNOWN)
        assert found.status is not WorkerStatus.PAUSED or started
        assert (found.status is WorkerStatus.ERROR) == failed
        if status in FINAL and found.status is not status:
            assert (status, event) == (WorkerStatus.COMPLETED, Event.FAILED), (
                "only a failing exit hook does that"
            )
        ends = Action.END_LOOP in found.actions
        assert not ends or found.status in FINAL
        status = found.status


@given(st.lists(st.sampled_from(VIEW_EVENTS)))
def test_random_observations_keep_the_views_invariants(events: list[Event]) -> None:
    status = WorkerStatus.UNKNOWN
    for event in events:
        try:
            found = transition(status, event)
        except InvalidTransitionError:
            assert event in (Event.GIVEN_UP, Event.RESPAWNED), "a fact must never fail"
            continue
        if found.status is not status:
            if status is WorkerStatus.LOST:
                assert event in (Event.REGISTERED, Event.RESPAWNED)
            if found.status is WorkerStatus.LOST or found.status is WorkerStatus.INTERRUPTED:
                assert Action.DECIDE_FAULT in found.actions, "nobody is lost without a decision"
            if found.status is WorkerStatus.UNKNOWN:
                assert event is Event.RESPAWNED
        elif status in FINAL | {WorkerStatus.LOST}:
            assert Action.DECIDE_FAULT not in found.actions, "one loss, one decision"
        status = found.status


def test_heartbeats_and_exit_codes_become_events() -> None:
    said = set(WorkerStatus) - {WorkerStatus.LOST, WorkerStatus.UNKNOWN}
    assert {heartbeat_event(status) for status in said} == {
        e for e in Event if e.name.startswith("HEARTBEAT_")
    } - {Event.HEARTBEAT_LOST}
    for status in (WorkerStatus.LOST, WorkerStatus.UNKNOWN):
        with pytest.raises(ValueError, match=status.value):
            heartbeat_event(status)
    for status in FINAL:
        assert transition(WorkerStatus.RUNNING, exit_event(exit_code(status))).status is status
    assert exit_event(-9) is exit_event(137) is Event.PROCESS_KILLED
    assert exit_event(2) is Event.PROCESS_FAILED


def test_fault_policy() -> None:
    for kind, restarts, live_actors, decision in (
        ("actor", 0, 0, FaultDecision.RESPAWN),
        ("actor", 2, 4, FaultDecision.RESPAWN),
        ("actor", 3, 4, FaultDecision.CONTINUE_WITHOUT),
        ("actor", 3, 3, FaultDecision.FAIL_RUN),
        ("trainer", 2, 9, FaultDecision.RESPAWN),
        ("trainer", 3, 9, FaultDecision.FAIL_RUN),
        ("policy", 3, 9, FaultDecision.FAIL_RUN),
        ("replay", 3, 9, FaultDecision.FAIL_RUN),
    ):
        found = fault_decision(kind, restarts, max_restarts=3, live_actors=live_actors, min_actors=4)
        assert found is decision, (kind, restarts, live_actors)
