"""The inference stream on one node: slots and bells, and what becomes of them when a process is killed."""

from __future__ import annotations

import contextlib
import mmap
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_marl.base.doorbell import DoorbellHandle
from hpc_marl.base.shared_memory import SharedMemoryHandle
from hpc_marl.data import EnvSpec
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams import inference_server
from hpc_marl.streams.inference import (
    ArrayField,
    InferenceClient,
    InferenceLayout,
    InferenceServer,
    RequestJoiner,
    policy_layout,
)
from hpc_marl.streams.inference_layout import decode_layout
from hpc_marl.streams.inference_messages import Attach, from_client, from_server, to_frame
from tests.unit.streams.conftest import until
from tests.unit.streams.inference_process import ROOT, actions, arrays, layout


@pytest.fixture
def opened():
    """Return a list of what is to be closed."""
    things = []
    yield things
    for thing in things:
        thing.close()


@pytest.fixture
def new_server(new_context, opened):
    def make(index=0, **options):
        opened.append(InferenceServer(new_context(), f"{ROOT}/policy/{index}", **options))
        return opened[-1]

    return make


@pytest.fixture
def new_client(new_context, opened):
    def make(**options):
        settings = {"layout": layout(), "num_groups": 3, **options}
        opened.append(InferenceClient(new_context(), ROOT, 0, **settings))
        return opened[-1]

    return make


@pytest.fixture
def start(tmp_path):
    """Return a function that starts one end as a process."""
    processes = []

    def run(role, *arguments):
        command = [
            sys.executable,
            "-m",
            "tests.unit.streams.inference_process",
            role,
            str(tmp_path),
            *arguments,
        ]
        processes.append(subprocess.Popen(command, cwd=Path(__file__).parents[3]))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def attach(client, *servers):
    until(
        lambda: client.statistics().transport == "shared_memory",
        lambda: client.wait(0.0),
        *(server.poll for server in servers),
    )


def answer(server):
    server.poll()
    requests = server.take(1000)
    for request in requests:
        server.reply([request], actions(request.arrays["observation"]), 1)
    return requests


def test_requests_of_a_node_lie_in_the_clients_slots_and_are_read_only(new_server, new_client):
    server, client = new_server(), new_client()
    attach(client, server)
    client.submit(1, arrays(2))
    assert server.poll(5.0) == 1
    (request,) = server.take(1000)
    assert (request.arrays["observation"] == 2).all() and not request.arrays["observation"].flags.writeable
    client.submit(1, arrays(3))  # the same memory
    assert (request.arrays["observation"] == 3).all()


def test_one_bell_tells_of_all_answers_and_wait_returns_at_the_first(new_server, new_client):
    server, client = new_server(), new_client()
    attach(client, server)
    assert not client.wait(0.0)
    for group in range(3):
        client.submit(group, arrays(group))
    until(lambda: server.num_waiting == 3, server.poll)
    requests = server.take(1000)
    joined = RequestJoiner().join(requests)
    server.reply(requests[:1], actions(joined["observation"][:4]), 1)
    assert client.take(0) is None  # nothing has been heard yet
    assert client.wait(5.0) and client.collect(1) is None
    server.reply(requests[1:], actions(joined["observation"][4:]), 2)
    for group in range(3):
        reply = client.collect(group, 5.0) if group else client.take(group)
        assert (reply.arrays["action"] == 3 * group).all() and reply.policy_version == 1 + (group > 0)
    assert not client.wait(0.0)


@pytest.mark.parametrize("ends", ["server", "client"])
def test_an_end_that_wants_zmq_gets_it(new_server, new_client, ends):
    server = new_server(transport="zmq" if ends == "server" else "auto")
    client = new_client(transport="zmq" if ends == "client" else "auto")
    client.submit(0, arrays(1))
    until(lambda: client.wait(0.0), lambda: answer(server))
    assert client.statistics().transport == "zmq" and server.statistics().attached == 0
    assert (client.collect(0).arrays["action"] == 3).all()


def test_clients_of_both_transports_share_a_batch(new_server, new_client):
    server, clients = new_server(), [new_client(), new_client(transport="zmq")]
    attach(clients[0], server)
    for value, client in enumerate(clients):
        client.submit(0, arrays(value))
    until(lambda: server.num_waiting == 2, server.poll, *(lambda c=c: c.wait(0.0) for c in clients))
    requests = server.take(1000)
    server.reply(requests, actions(RequestJoiner().join(requests)["observation"]), 1)
    for value, client in enumerate(clients):
        assert (client.collect(0, 5.0).arrays["action"] == 3 * value).all()


def test_slots_that_are_offered_twice_are_attached_once(new_server, new_client):
    server, client = new_server(), new_client(timeout_s=0.02)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:  # the server is busy: the client offers again
        client.wait(0.01)
    attach(client, server)
    until(lambda: server.poll(0.01) == 0)
    client.submit(0, arrays(1))
    answer(server)
    assert client.wait(5.0) and client.statistics().sent_again == 0
    assert server.statistics().attached == 1


def test_slots_of_a_client_that_ended_are_let_go(new_server, new_client, monkeypatch):
    monkeypatch.setattr(inference_server, "_SWEEP_INTERVAL_S", 0.01)
    server, client = new_server(), new_client()
    attach(client, server)
    assert server.statistics().attached == 1
    client.close()
    until(lambda: server.statistics().attached == 0, server.poll)


def test_a_server_that_was_too_slow_writes_into_memory_that_nobody_reads(new_server, new_client):
    server, client = new_server(), new_client(timeout_s=0.1)
    attach(client, server)
    client.submit(0, arrays(1))
    until(lambda: server.num_waiting == 1, server.poll)
    (slow,) = server.take(1000)
    until(lambda: client.statistics().sent_again, lambda: client.collect(0))
    until(lambda: client.collect(0) is not None, lambda: answer(server))
    attach(client, server)
    client.submit(0, arrays(2))
    server.reply([slow], actions(np.full((4, 2, 3), 9, np.float32)), 1)
    assert server.statistics().unsendable == 1
    answer(server)
    assert (client.collect(0, 5.0).arrays["action"] == 6).all()


def test_a_killed_server_is_noticed_at_once_and_another_answers(new_client, new_server, start):
    process = start("server", "0")
    client = new_client(timeout_s=60.0)
    attach(client)
    process.kill()
    process.wait()
    for group in range(3):
        client.submit(group, arrays(group))
    server = new_server(0)
    for group in range(3):
        replies = []
        until(
            lambda g=group, r=replies: r or r.extend([a] if (a := client.collect(g)) else []),
            lambda: answer(server),
        )
        assert (replies[0].arrays["action"] == 3 * group).all()
    assert client.statistics().servers == 2


def test_a_sleeping_client_is_woken_by_its_servers_death(new_client, start):
    process = start("server", "0")
    client = new_client(timeout_s=60.0)
    attach(client)
    process.send_signal(signal.SIGSTOP)  # it does not answer
    client.submit(0, arrays())
    assert not client.wait(0.05)
    process.kill()
    process.wait()
    until(lambda: client.statistics().transport != "shared_memory", lambda: client.wait(0.01))


def test_a_killed_client_leaves_a_server_that_goes_on(new_server, new_client, start, monkeypatch):
    monkeypatch.setattr(inference_server, "_SWEEP_INTERVAL_S", 0.01)
    server, process = new_server(), start("client")
    until(lambda: server.statistics().answered > 200, lambda: answer(server))
    assert server.statistics().attached == 1
    process.kill()
    process.wait()
    until(lambda: server.statistics().attached == 0, lambda: answer(server))
    client = new_client()
    attach(client, server)
    client.submit(0, arrays(1))
    answer(server)
    assert (client.collect(0, 5.0).arrays["action"] == 3).all()


def test_every_answer_between_two_processes_is_the_right_one(new_client, start):
    start("server", "0")
    client = new_client()
    attach(client)
    deadline = time.monotonic() + 20
    for value in range(3000):
        for group in range(3):
            client.submit(group, arrays(value + group))
        for group in range(3):
            while (reply := client.collect(group, 0.1)) is None:
                assert time.monotonic() < deadline
            assert (reply.arrays["action"] == 3 * (value + group)).all()
    assert client.statistics().sent_again == client.statistics().late == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": np.zeros((4, 2, 3), np.float64)}, "observation is float64"),
        ({"observation": np.zeros((3, 2, 3), np.float32)}, r"agreed were observation float32\[4, 2, 3\]"),
        ({"mask": np.zeros((4, 2, 3), np.float32)}, "mask is float32"),
    ],
)
def test_arrays_that_were_not_agreed_are_refused(new_client, change, message):
    client = new_client()
    with pytest.raises(StreamError, match=message):
        client.submit(0, {**arrays(), **change})
    with pytest.raises(StreamError, match="agreed were observation, noise"):
        client.submit(0, {"noise": arrays()["noise"]})
    with pytest.raises(StreamError, match="3 groups"):
        client.submit(3, arrays())


def test_answers_that_were_not_agreed_are_refused(new_server, new_client):
    server, client = new_server(), new_client()
    attach(client, server)
    client.submit(0, arrays())
    until(lambda: server.num_waiting, server.poll)
    requests = server.take(1000)
    with pytest.raises(StreamError, match="log_prob is missing"):
        server.reply(requests, {"action": np.zeros((4, 2), np.float32)}, 1)
    with pytest.raises(StreamError, match="action is float64"):
        server.reply(requests, {"action": np.zeros((4, 2)), "log_prob": np.zeros((4, 2), np.float32)}, 1)


def test_requests_of_different_policies_are_not_joined(new_server, new_client):
    server = new_server()
    other = InferenceLayout(
        [ArrayField("observation", "<f4", (4, 2, 5)), ArrayField("noise", "<f4", (4, 2, 1))],
        [ArrayField("action", "<f4", (4, 2))],
    )
    clients = [new_client(), new_client(layout=other)]
    clients[0].submit(0, arrays())
    clients[1].submit(0, {**arrays(), "observation": np.zeros((4, 2, 5), np.float32)})
    until(lambda: server.num_waiting == 2, server.poll, *(lambda c=c: c.wait(0.0) for c in clients))
    with pytest.raises(StreamError, match="different policies"):
        RequestJoiner().join(server.take(1000))


def test_a_policys_layout_has_what_it_reads_and_writes():
    spec = EnvSpec(agent_names=("a", "b"), observation_size=7, num_actions=3, has_action_mask=True)
    made = policy_layout(spec, 5, memory_size=4)
    assert list(made.request.types) == ["observation", "noise", "action_mask", "memory"]
    assert made.request.types["action_mask"] == (np.dtype(bool), (5, 2, 3))
    assert made.reply.types["action"] == (np.dtype(np.int32), (5, 2))
    assert (made.num_envs, made.rows) == (5, 10)
    assert decode_layout(made.encoded) is decode_layout(bytes(made.encoded))
    assert decode_layout(made.encoded).encoded == made.encoded
    continuous = policy_layout(EnvSpec(observation_size=7, action_size=3), 5)
    assert continuous.reply.types["action"] == (np.dtype(np.float32), (5, 1, 3))
    images = policy_layout(EnvSpec(observation_size=12, image_shape=(3, 2, 2), num_actions=2), 5)
    assert images.request.types["observation"][0] == np.uint8


@given(st.binary(max_size=100), st.integers(0, 300), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_a_message_or_refused(noise, at, byte):
    handle = SharedMemoryHandle(1, 2, 3, 4, b"5" * 16)
    offer = bytearray(to_frame(Attach("c", "host", layout().encoded, 2, handle, DoorbellHandle(1, 2, 3, 4))))
    offer[at % len(offer)] = byte
    wire = bytearray(layout().encoded)
    wire[at % len(wire)] = byte
    for data in (noise, bytes(offer), bytes(wire)):
        for read in (from_client, from_server, decode_layout):
            with contextlib.suppress(ProtocolError):
                read(data)


def test_a_packed_answer_is_what_its_views_show():
    reply = policy_layout(EnvSpec(observation_size=7, num_actions=3), 5, memory_size=4).reply
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 100, (12, *shape[1:])).astype(dtype)
        for name, (dtype, shape) in reply.types.items()
    }
    packed = b"".join(reply.parts(batch, slice(3, 8)))
    assert len(packed) == reply.nbytes
    for name, view in reply.views(memoryview(packed)).items():
        np.testing.assert_array_equal(view, batch[name][3:8])
        assert view.ctypes.data % 8 == 0 and not view.flags.writeable


def test_a_layout_names_every_array_once():
    field = ArrayField("observation", "<f4", (4, 2))
    with pytest.raises(ProtocolError, match="same name"):
        InferenceLayout([field, field], [field])


def test_views_keep_the_memory_that_they_show():
    memory = mmap.mmap(-1, 2**16)
    views = layout().request.views(memoryview(memory)[: layout().request.nbytes])
    with pytest.raises(BufferError):
        memory.close()
    views.clear()
    memory.close()
