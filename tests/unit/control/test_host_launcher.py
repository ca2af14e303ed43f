"""The launcher over slots: hosts, a queue and a clock that the test plays."""

from __future__ import annotations

import pytest

from hpc_marl.base.jobs import JobState
from hpc_marl.control.slot_view import SlotSpec
from hpc_marl.control.worker_view import ProcessExit
from hpc_marl.errors import LaunchError, QueueBusyError
from tests.unit.control.played_site import CORE, FIRST, PATIENCE, SECOND, SLOTS, Site, working


@pytest.fixture
def site() -> Site:
    return Site()


# -- launching ---------------------------------------------------------------------------------------------------------


def test_a_launch_waits_for_its_host(site: Site) -> None:
    assert site.launcher.waiting_for("actor/0") == "submission"
    site.want("trainer/0", "actor/0")
    site.step()
    assert site.queue.submissions == [[CORE, FIRST]], "nobody needs the third slot"
    assert site.launcher.waiting_for("actor/0") == "Resources" and site.launcher.expects_hosts()
    assert not site.launcher.is_alive("actor/0") and not site.launcher.is_reachable("actor/0")
    site.appear(CORE)
    assert site.launcher.waiting_for("trainer/0") == "", "its job runs for the first time"
    site.step()
    site.step()
    assert site.launcher.is_alive("trainer/0") and site.launcher.is_reachable("trainer/0")
    assert (
        "host/0",
        "launch",
        {"worker_name": "trainer/0", "life": 0, "num_threads": 1, "gpus": 1.0},
    ) in site.sent
    assert not site.launcher.is_alive("actor/0")
    assert "host/0 is up on node0" in site.said


def test_what_is_wanted_is_compared_again_and_again() -> None:
    site = working("trainer/0", "actor/0", "actor/1")
    assert site.commands(FIRST) == ["launch", "launch"], "once for each"
    host = site.hosts["host/1"]
    host.is_deaf = True
    site.want("actor/0", life=1)
    site.step()
    host.is_deaf = False
    site.step()
    site.step()
    assert host.children["actor/0"] == (1, None), "a command that got lost is sent again"
    host.children["actor/7"] = (0, None)
    site.step()
    assert host.children["actor/7"] == (0, -9), "what nobody wants is ended"


def test_exits_are_told_once() -> None:
    site = working("trainer/0", "actor/0", "actor/1")
    site.hosts["host/1"].children["actor/0"] = (0, 1)
    assert site.step() == [ProcessExit("actor/0", 1)] and site.step() == []
    assert not site.launcher.is_alive("actor/0") and site.launcher.is_alive("actor/1")
    site.want("actor/0", life=1)
    assert site.step() == [] == site.step()
    assert site.hosts["host/1"].children["actor/0"] == (1, None)


def test_who_was_killed_is_not_told() -> None:
    site = working("trainer/0", "actor/0", "actor/1")
    site.launcher.kill("actor/0")
    assert site.step() == [] == site.step()
    assert not site.launcher.is_alive("actor/0")
    site.launcher.interrupt("actor/1")
    assert site.sent[-1] == ("host/1", "terminate", {"worker_name": "actor/1"})


def test_a_life_begun_by_the_controller_before_is_taken_over_and_its_end_is_told(site: Site) -> None:
    site.want("actor/0", life=2)
    site.appear(FIRST).children["actor/0"] = (3, None)
    site.step()
    site.step()
    assert site.commands(FIRST) == [] and site.launcher.is_alive("actor/0")
    site.hosts["host/1"].children["actor/0"] = (3, 1)
    assert site.step() == [ProcessExit("actor/0", 1)]


def test_hosts_are_spoken_to_now_and_then() -> None:
    site = working("trainer/0", "actor/0")
    site.sent.clear()
    for _ in range(300):
        site.step(seconds=0.2)
    pings = [name for name, command, _ in site.sent if command == "ping"]
    assert 12 <= pings.count("host/0") <= 18 and 3 <= pings.count("host/1") <= 5


# -- hosts that go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        ("PREEMPTED", "its job was preempted"),
        ("TIMEOUT", "its job ran out of time"),
        ("", "its host process ended COMPLETED"),
    ],
)
def test_the_last_word_of_a_host_displaces_its_workers(ended: str, why: str) -> None:
    site = working("trainer/0", "actor/0", "actor/1")
    site.launcher.slots[FIRST].processes.clear()
    site.hosts["host/1"].children.clear()
    site.end(FIRST, ended)
    exits = site.step()
    assert exits == [ProcessExit("actor/0", -9, why), ProcessExit("actor/1", -9, why)]
    assert [text for text in site.said if "gone" in text] == [f"host/1 is gone: {why}"]
    assert site.launcher.waiting_for("actor/0") == why and site.step() == []


def test_exit_codes_in_a_last_word_count_before_the_loss() -> None:
    site = working("trainer/0", "actor/0")
    site.end(FIRST, "PREEMPTED")
    assert site.step() == [ProcessExit("actor/0", 0)]


def test_a_host_that_was_replaced_unnoticed_displaces_its_workers_and_the_new_one_is_used() -> None:
    site = working("trainer/0", "actor/0")
    site.appear(FIRST, incarnation="b")
    assert site.step() == [ProcessExit("actor/0", -9, "its host process was replaced")]
    site.want("actor/0", life=1)
    site.step()
    site.step()
    assert site.hosts["host/1"].children == {"actor/0": (1, None)} and site.launcher.is_alive("actor/0")


def test_a_silent_host_is_lost_late_and_may_be_heard_again() -> None:
    site = working("trainer/0", "actor/0")
    host = site.hosts["host/1"]
    host.silent_since = site.now
    site.step(seconds=20)
    assert site.step() == [] and not site.launcher.is_reachable("actor/0")
    assert site.launcher.waiting_for("actor/0") == "", "it still has its place"
    site.step(seconds=70)
    (lost,) = site.step()
    assert lost.worker_name == "actor/0" and "node1 was silent for 90 s" in lost.displaced
    site.want("actor/0", life=1)
    assert site.step() == [] and site.launcher.waiting_for("actor/0") != "" and site.launcher.expects_hosts()

    host.silent_since, host.children = None, {"actor/0": (0, 75)}
    site.step()
    site.step()
    assert "host/1 is heard again" in site.said
    assert host.children == {"actor/0": (1, None)} and site.launcher.is_alive("actor/0")
    assert site.queue.submissions == [[CORE, FIRST]]


def test_an_adopted_worker_is_never_started_a_second_time_in_one_life() -> None:
    before = working("trainer/0", "actor/0")
    before.hosts["host/1"].children = {}
    site = Site()
    site.hosts = before.hosts
    for name in ("trainer/0", "actor/0"):
        site.want(name)
        site.launcher.adopt(name)
    exits = site.step() + site.step()
    assert [(exit_.worker_name, bool(exit_.displaced)) for exit_ in exits] == [("actor/0", True)]
    assert site.hosts["host/1"].children == {} and site.launcher.is_alive("trainer/0")
    site.want("actor/0", life=1)
    site.step()
    assert site.hosts["host/1"].children == {"actor/0": (1, None)} and site.step() == []


def test_after_a_silence_a_worker_has_time_to_be_heard_again_too() -> None:
    site = working("trainer/0", "actor/0")
    host = site.hosts["host/1"]
    host.silent_since = site.now
    site.step(seconds=30)
    site.step()
    host.silent_since = None
    site.step()
    assert not site.launcher.is_reachable("actor/0"), (
        "the silence of the worker may still be that of its host"
    )
    site.step(seconds=PATIENCE.rejoin_s)
    assert site.step() == [] and site.launcher.is_reachable("actor/0")


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_jobs_that_end_early_are_submitted_again_with_pauses_within_a_budget() -> None:
    site = working("trainer/0", "actor/0")
    times = []
    for incarnation in "bcd":
        site.end(FIRST, "TIMEOUT", JobState.TIMEOUT)
        ended_s = site.now
        site.step()
        site.want("actor/0", life=ord(incarnation))
        while not site.launcher.hopeless("actor/0") and site.queue.submissions[-1] != [FIRST]:
            site.step(seconds=1.0)
        times.append(round(site.now - ended_s))
        if not site.launcher.hopeless("actor/0"):
            site.queue.submissions.append([])
            assert site.launcher.waiting_for("actor/0") == "Resources"
            site.appear(FIRST, incarnation)
            site.step()
    assert times[0] == pytest.approx(10, abs=2) and times[1] == pytest.approx(60, abs=3)
    assert site.launcher.hopeless("actor/0") == "its job 101 TIMEOUT, and it was submitted 3 times already"
    assert site.said.count("host/1: its job 101 TIMEOUT; it is submitted again") == 2
    assert not site.launcher.hopeless("trainer/0")


def test_a_job_that_others_cancelled_is_hopeless_but_not_one_that_we_cancelled() -> None:
    site = working("trainer/0", "actor/0", "actor/2")
    site.end(FIRST, "PREEMPTED", JobState.CANCELLED)
    site.step()
    site.want("actor/0", life=1)
    site.step(seconds=20)
    assert site.launcher.hopeless("actor/0") == "its job 101 was cancelled"
    assert not site.launcher.hopeless("actor/2")

    del site.hosts["host/2"]
    site.launcher.slots[SECOND].incarnation = ""
    site.launcher.release([SECOND])
    site.queue.say(SECOND, JobState.CANCELLED)
    assert site.queue.cancelled == [SECOND]
    site.step()
    site.launcher.extend(SLOTS)
    site.want("actor/2", life=1)
    site.step(seconds=20)
    site.step()
    assert site.queue.submissions[-1] == [SECOND] and not site.launcher.hopeless("actor/2")


def test_a_host_whose_job_is_forgotten_is_vacated_then_submitted_anew() -> None:
    site = working("trainer/0", "actor/0")
    site.queue.say(FIRST, JobState.FORGOTTEN)
    site.step()
    assert site.commands(FIRST).count("interrupt") == 1
    site.step()
    site.want("actor/0", life=1)
    site.step(seconds=20)
    site.step()
    assert site.commands(FIRST).count("interrupt") == 1 and site.queue.submissions[-1] == [FIRST]


def test_a_job_that_runs_without_its_host_registering_is_cancelled_and_submitted_again(site: Site) -> None:
    site.want("trainer/0")
    site.step()
    site.queue.say(CORE, JobState.RUNNING, node="node7")
    site.step(seconds=299)
    site.step(seconds=2)
    assert site.queue.cancelled == []
    site.step()
    assert site.queue.cancelled == [CORE] and "its job 100 runs on node7: see logs/jobs" in site.said[-2]
    site.queue.say(CORE, JobState.CANCELLED)
    site.step(seconds=20)
    site.step()
    assert site.queue.submissions == [[CORE], [CORE]]


def test_a_first_submission_that_is_refused_ends_it_at_once(site: Site) -> None:
    site.queue.refuses = LaunchError("sbatch: error: Invalid account")
    site.want("trainer/0")
    site.step()
    assert site.launcher.hopeless("trainer/0") == "its job was refused: sbatch: error: Invalid account"
    assert site.said == ["submission failed: sbatch: error: Invalid account"]


def test_a_busy_queue_is_asked_again_then_given_up(site: Site) -> None:
    site.queue.refuses = QueueBusyError("sbatch: error: Socket timed out")
    site.want("trainer/0")
    for _ in range(500):
        site.step(seconds=1.0)
    assert site.launcher.hopeless("trainer/0") == "its job was refused: sbatch: error: Socket timed out"
    assert site.said == ["submission failed: sbatch: error: Socket timed out"] * 3


def test_a_resubmission_that_is_refused_is_tried_again(site: Site) -> None:
    site.want("trainer/0")
    site.step()
    site.queue.say(CORE, JobState.NODE_FAIL)
    site.queue.refuses = LaunchError("sbatch: error: too many jobs")
    for _ in range(30):
        site.step(seconds=1.0)
    assert not site.launcher.hopeless("trainer/0")
    site.queue.refuses = None
    for _ in range(100):
        site.step(seconds=1.0)
    assert site.queue.submissions == [[CORE], [CORE]]


def test_slots_of_one_job_are_submitted_together() -> None:
    site = Site(
        [
            SlotSpec(0, "core", ("trainer/0",), (0, 1)),
            SlotSpec(1, "core", ("trainer/1",), (0, 1)),
        ]
    )
    site.want("trainer/1")
    site.step()
    assert site.queue.submissions == [[0, 1]]


# -- giving places up --------------------------------------------------------------------------------------------------


def test_actors_go_home_while_the_core_is_away_and_come_back_with_it() -> None:
    site = working("trainer/0", "actor/0")
    site.end(CORE, "PREEMPTED", JobState.PENDING)
    assert [exit_.worker_name for exit_ in site.step()] == ["trainer/0"]
    site.want("trainer/0", life=1)
    site.step(seconds=590)
    assert site.launcher.is_alive("actor/0")
    site.step(seconds=20)
    (home,) = site.step()
    assert home == ProcessExit("actor/0", -9, "its slot was given back")
    site.want("actor/0", life=1)
    assert site.step() == [ProcessExit("actor/0", -9, "its host process ended COMPLETED")]
    site.want("actor/0", life=2)
    site.queue.say(FIRST, JobState.COMPLETED)
    site.step(seconds=1000)
    assert site.queue.submissions == [[CORE, FIRST]], "not before the core is back"
    site.appear(CORE, "b")
    for _ in range(3):
        site.step(seconds=20)
    assert site.queue.submissions[1:] == [[FIRST]]


def test_released_slots_stay_empty_until_they_are_wanted_again() -> None:
    site = working("trainer/0", "actor/0", "actor/2")
    site.launcher.release([SECOND])
    assert site.commands(SECOND)[-1] == "exit"
    site.end(SECOND)
    site.step(seconds=100)
    site.step()
    assert site.queue.submissions == [[CORE, FIRST, SECOND]] and not site.launcher.expects_hosts()
    more = SlotSpec(3, "actors", ("actor/3",), (3,))
    site.launcher.extend([*SLOTS, more])
    site.want("actor/2", "actor/3", life=1)
    for _ in range(3):
        site.step(seconds=20)
    assert sorted(site.queue.submissions[1] + (site.queue.submissions[2:] or [[]])[0]) == [SECOND, 3]


def test_all_hosts_end_and_what_is_left_is_cancelled() -> None:
    site = working("trainer/0", "actor/0")
    site.want("actor/2")
    site.step()
    site.launcher.end_hosts(20.0)
    assert site.commands(CORE)[-1] == site.commands(FIRST)[-1] == "exit"
    assert site.queue.cancelled == [SECOND], "jobs whose hosts have ended end by themselves"
    site.want("actor/0", life=1)
    site.step(seconds=100)
    assert site.queue.submissions == [[CORE, FIRST], [SECOND]], "nothing is submitted any more"


def test_a_host_that_does_not_end_in_time_is_cancelled() -> None:
    site = working("trainer/0", "actor/0")
    site.hosts["host/1"].is_deaf = True
    before = site.now
    site.launcher.end_hosts(0.5)
    assert site.now >= before + 0.5 and site.queue.cancelled == [FIRST]


def test_a_deputy_ends_all_but_the_job_it_runs_in() -> None:
    core = [SlotSpec(0, "core", ("trainer/0",), (0, 3)), SlotSpec(3, "core", ("trainer/1",), (0, 3))]
    site = Site([*core, *SLOTS[1:]])
    site.want("trainer/0", "trainer/1", "actor/0", "actor/2")
    site.step()
    site.appear(CORE).is_deaf = True  # it waits for the deputy
    site.queue.say(3, JobState.RUNNING)
    site.appear(FIRST)
    for _ in range(3):
        site.step()
    site.launcher.end_hosts(20.0, own="host/0")
    assert site.queue.cancelled == [SECOND]
