"""EagerPoll sees what select.poll sees, awake or asleep, and stays awake ever more seldom where that is in vain."""

from __future__ import annotations

import itertools
import os
import select
import threading

import pytest

from hpc_marl.base import eager_poll
from hpc_marl.base.eager_poll import EagerLook, EagerPoll


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize("num_cores", [1, 2, None])
def test_it_tells_what_is_there_and_gives_up_after_the_timeout(pipe, num_cores):
    poll = EagerPoll(num_cores)
    poll.register(pipe[0], select.POLLIN)
    for timeout_s in (0.0, 0.00005, 0.002):
        assert poll.poll(timeout_s) == []
    os.write(pipe[1], b"x")
    for timeout_s in (0.0, 60.0):
        assert poll.poll(timeout_s) == [(pipe[0], select.POLLIN)]


@pytest.mark.parametrize("awake_s", [0.0, 60.0], ids=["asleep", "awake"])
def test_what_comes_later_ends_the_wait(pipe, awake_s, monkeypatch):
    monkeypatch.setattr(eager_poll, "_AWAKE_S", awake_s)
    poll = EagerPoll(2)
    poll.register(pipe[0], select.POLLIN)
    writer = threading.Timer(0.02, os.write, (pipe[1], b"x"))
    writer.start()
    assert poll.poll(60.0) == [(pipe[0], select.POLLIN)]
    writer.join()


def test_a_peer_that_goes_is_an_error(pipe):
    poll = EagerPoll(2)
    poll.register(pipe[1], 0)
    assert poll.poll(0.0) == []
    other_read, other_write = os.pipe()
    try:
        poll.register(other_write, 0)
        os.close(other_read)
        assert poll.poll(60.0) == [(other_write, select.POLLERR)]
    finally:
        os.close(other_write)


def test_staying_awake_in_vain_becomes_seldom_and_comes_back_with_success(pipe, monkeypatch):
    tries, to_write = [], []

    def clock():
        """Stay awake for one look; what is to be written comes in time for it."""
        tries.append(1)
        if to_write:
            os.write(pipe[1], to_write.pop())
        return 0.00001 * len(tries)

    monkeypatch.setattr(eager_poll, "_AWAKE_S", 0.000015)
    monkeypatch.setattr(eager_poll, "perf_counter", clock)
    poll = EagerPoll(2)
    poll.register(pipe[0], select.POLLIN)

    def waits_with_a_try(count):
        """Each try in vain asks for the time three times."""
        before = len(tries)
        for _ in range(count):
            poll.poll(0.0001)
        return (len(tries) - before) / 3

    assert waits_with_a_try(200) == 8  # after 0, 1, 3, 7, 15, 31, 63 and again 63 others
    assert waits_with_a_try(54) == 0
    to_write.append(b"x")
    assert poll.poll(60.0) == [(pipe[0], select.POLLIN)]
    os.read(pipe[0], 1)
    assert waits_with_a_try(1) == 1  # at once
    assert waits_with_a_try(64) == 1
    poll = EagerPoll(1)
    poll.register(pipe[0], select.POLLIN)
    assert waits_with_a_try(10) == 0


def test_anything_can_be_looked_for(monkeypatch):
    monkeypatch.setattr(eager_poll, "perf_counter", itertools.count().__next__)  # a second per look
    there = iter(["", "", "found", ""])
    look = EagerLook(lambda: next(there), awake_s=10.0, num_cores=2)
    assert look.look() == "found"
    assert look.look(at_most_s=1.5) is None
    assert next(there, "all was looked at") == "all was looked at"
    assert look.look() is None  # not now, after a failure
    with pytest.raises(StopIteration):
        look.look()


def test_with_one_core_it_is_never_looked():
    assert EagerLook(lambda: "found", num_cores=1).look() is None
