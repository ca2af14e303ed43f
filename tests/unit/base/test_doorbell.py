"""Doorbell: rings across processes, is rung in vain by nobody it does not know, and never makes the ringer wait."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import msgspec
import pytest

from hpc_marl.base.doorbell import Doorbell, DoorbellButton, DoorbellHandle
from hpc_marl.errors import StreamError

SLEEPER = """
import sys, msgspec
from hpc_marl.base.doorbell import Doorbell
bell = Doorbell()
sys.stdout.write(msgspec.msgpack.encode(bell.handle()).hex() + "\\n")
sys.stdout.flush()
while bell.wait(60.0):
    sys.stdout.write("rung\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        yield process, msgspec.msgpack.decode(bytes.fromhex(line), type=DoorbellHandle)
        process.kill()


def test_rings_reach_another_process_until_it_is_gone(sleeper):
    process, handle = sleeper
    with DoorbellButton(handle) as button:
        for _ in range(3):
            button.ring()
            assert process.stdout.readline() == "rung\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        button.ring()
    with pytest.raises(StreamError, match="gone"):
        DoorbellButton(handle)


def test_ringing_never_waits_and_all_rings_are_one():
    with Doorbell() as bell, DoorbellButton(bell.handle()) as button:
        for _ in range(70_000):  # more than a pipe holds
            button.ring()
        assert bell.wait(0.0)
        bell.clear()
        assert not bell.wait(0.0)
        button.ring()
        assert bell.wait(10.0)


def test_a_bell_outlives_its_ringers():
    with Doorbell() as bell:
        for _ in range(2):
            DoorbellButton(bell.handle()).close()
        assert not bell.wait(0.0)


@pytest.mark.parametrize("change", ["inode", "file", "closed"])
def test_what_is_not_the_bell_is_not_rung(change, tmp_path):
    with Doorbell() as bell, open(tmp_path / "file", "wb") as file:
        handle = bell.handle()
        if change == "inode":
            handle = msgspec.structs.replace(handle, inode=handle.inode + 1)
        elif change == "file":
            handle = msgspec.structs.replace(handle, fd=file.fileno())
        else:
            bell.close()
        with pytest.raises(StreamError, match=r"cannot open|reused"):
            DoorbellButton(handle)
        assert os.path.getsize(tmp_path / "file") == 0


def test_messages_come_once_whole_and_in_order():
    with Doorbell() as bell, DoorbellButton(bell.handle()) as button:
        assert bell.receive() == b""
        assert button.send(b"one.") and button.send(b"two.")
        assert bell.receive() == b"one.two." and bell.receive() == b""
        while button.send(b"full"):
            pass
        assert set(bell.receive().split(b"full")) == {b""}
        assert button.send(b"more")


def test_a_message_to_nobody_is_an_error():
    with Doorbell() as bell, DoorbellButton(bell.handle()) as button:
        poll = select.poll()
        poll.register(button.fileno(), 0)
        assert poll.poll(0) == []
        bell.close()
        assert poll.poll(0) == [(button.fileno(), select.POLLERR)]
        with pytest.raises(StreamError, match="gone"):
            button.send(b"one.")
