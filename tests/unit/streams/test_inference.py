"""The inference stream: every request gets its own answer, whatever becomes of the servers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import zmq

from hpc_marl.base import eager_poll, serialization
from hpc_marl.errors import StreamError
from hpc_marl.streams import inference_line
from hpc_marl.streams.inference import InferenceClient, InferenceServer
from hpc_marl.streams.inference_messages import RequestHead, to_frame
from hpc_marl.streams.links import connect
from tests.unit.streams.conftest import until
from tests.unit.streams.inference_process import ROOT, actions, arrays, layout


@pytest.fixture(params=["auto", "zmq"])
def transport(request):
    return request.param


@pytest.fixture
def new_server(new_context, transport):
    opened = []

    def make(index=0):
        opened.append(InferenceServer(new_context(), f"{ROOT}/policy/{index}", transport=transport))
        return opened[-1]

    yield make
    for server in opened:
        server.close()


@pytest.fixture
def new_client(new_context, transport):
    """Return a function that makes a client; where `servers` are given, it uses its transport from the start."""
    opened = []

    def make(index=0, timeout_s=5.0, *, servers=(), num_envs=4):
        client = InferenceClient(
            new_context(),
            ROOT,
            index,
            layout(num_envs),
            num_groups=5,
            timeout_s=timeout_s,
            transport=transport,
        )
        opened.append(client)
        wanted = "zmq" if transport == "zmq" else "shared_memory"
        if servers:
            until(
                lambda: client.statistics().transport == wanted,
                lambda: client.wait(0.0),
                *(server.poll for server in servers),
            )
        return client

    yield make
    for client in opened:
        client.close()


def answer(server, *, version=1, max_rows=1000, policy_version=None):
    """Answer what has arrived with the sum of each observation; return the requests."""
    server.poll(0.001)
    requests = server.take(max_rows, policy_version)
    for request in requests:
        server.reply([request], actions(request.arrays["observation"]), version)
    return requests


def collected(client, group, *poll):
    replies = []
    until(lambda: replies, *poll, lambda: replies.extend([r] if (r := client.collect(group)) else []))
    return replies[0]


def test_every_group_gets_its_own_answer(new_server, new_client):
    server = new_server()
    clients = [new_client(0, servers=[server]), new_client(1, servers=[server])]
    for index, client in enumerate(clients):
        for group in range(3):
            client.submit(group, arrays(10 * index + group))
    for index, client in enumerate(clients):
        for group in (2, 0, 1):
            reply = collected(client, group, lambda: answer(server, version=7))
            assert (reply.arrays["action"] == 3 * (10 * index + group)).all()
            assert reply.arrays["log_prob"].shape == (4, 2) and reply.policy_version == 7
    assert [client.statistics().answered for client in clients] == [3, 3]
    assert server.statistics().answered == 6
    with pytest.raises(StreamError, match="submitted nothing"):
        clients[0].collect(0)


@pytest.mark.parametrize("awake_s", [0.0, 60.0], ids=["asleep", "awake"])
def test_what_is_answered_meanwhile_ends_the_wait(new_server, new_client, awake_s, monkeypatch):
    monkeypatch.setattr(inference_line, "_AWAKE_S", awake_s)  # by ZMQ
    monkeypatch.setattr(eager_poll, "_AWAKE_S", awake_s)  # by shared memory
    server = new_server()
    client = new_client(servers=[server])

    def serve(count):
        while count:
            count -= len(answer(server))

    thread = threading.Thread(target=serve, args=(2 * 20,))
    thread.start()
    for value in range(20):
        for group in (0, 1):
            client.submit(group, arrays(value + group))
        for group in (1, 0):
            reply = client.collect(group, 60.0)
            assert reply is not None and (reply.arrays["action"] == 3 * (value + group)).all()
    assert client.statistics().sent_again == 0
    thread.join()


def test_requests_are_batched_up_to_max_rows_oldest_first(new_server, new_client):
    server = new_server()
    client = new_client(servers=[server])
    client.submit(0, arrays())
    until(lambda: server.poll(), lambda: client.collect(0))
    for group in range(1, 5):
        client.submit(group, arrays(group))
    until(lambda: server.statistics().waiting == 5, server.poll)
    assert [request.group for request in server.take(20)] == [0, 1]  # 8 rows each
    assert [request.group for request in server.take(1)] == [2]  # one that is larger comes alone
    assert [request.group for request in server.take(1000)] == [3, 4]
    assert server.take(1000) == []


def test_requests_for_a_newer_policy_wait(new_server, new_client):
    server = new_server()
    client = new_client(servers=[server])
    client.submit(0, arrays(1), min_policy_version=5)
    client.submit(1, arrays(2), min_policy_version=4)
    until(lambda: server.statistics().waiting == 2, server.poll, lambda: client.collect(1))
    assert [request.group for request in answer(server, policy_version=4)] == [1]
    assert [request.min_policy_version for request in answer(server, policy_version=5)] == [5]
    collected(client, 0)


def test_a_group_that_asks_anew_gets_the_new_answer_only(new_server, new_client):
    server = new_server()
    client = new_client(servers=[server])
    client.submit(0, arrays(1))
    until(lambda: server.poll(), lambda: client.collect(0))
    (old,) = server.take(1000)
    client.submit(0, arrays(2))
    server.reply([old], actions(np.zeros((4, 2, 3), np.float32)), 1)
    until(lambda: client.statistics().late == 1, lambda: client.collect(0))
    reply = collected(client, 0, lambda: answer(server))
    assert (reply.arrays["action"] == 6).all()


def test_a_request_without_an_answer_is_sent_again_and_answered_once(new_server, new_client):
    server = new_server()
    client = new_client(timeout_s=0.1, servers=[server])
    client.submit(0, arrays(1))
    until(lambda: server.statistics().replaced >= 2, server.poll, lambda: client.collect(0))
    answer(server)
    collected(client, 0)
    assert client.statistics().sent_again >= 2 and client.statistics().answered == 1
    client.submit(0, arrays(2))
    reply = collected(client, 0, lambda: answer(server))
    assert (reply.arrays["action"] == 6).all()


def test_clients_spread_over_servers(new_server, new_client):
    servers = [new_server(0), new_server(1)]
    clients = [new_client(index, servers=servers) for index in range(4)]
    for client in clients:
        client.submit(0, arrays())
    for client in clients:
        collected(client, 0, *(lambda server=server: answer(server) for server in servers))
    assert [server.statistics().answered for server in servers] == [2, 2]


def test_clients_spread_anew_when_a_server_joins(new_server, new_client):
    first = new_server(0)
    client = new_client(1, servers=[first])
    client.submit(0, arrays())
    collected(client, 0, lambda: answer(first))
    second = new_server(1)

    def ask():
        client.submit(0, arrays())
        collected(client, 0, lambda: answer(first), lambda: answer(second))

    until(lambda: second.statistics().answered, ask)
    assert client.statistics().servers == 2


@pytest.mark.parametrize("silent", [False, True], ids=["dead", "silent"])
def test_another_server_answers_for_one_that_does_not(new_server, new_client, silent):
    bad, good = new_server(0), new_server(1)
    client = new_client(0, timeout_s=0.2 if silent else 20.0, servers=[bad, good])
    client.submit(0, arrays(1))
    client.submit(1, arrays(2))
    until(lambda: bad.statistics().received == 2, bad.poll, lambda: client.collect(0))
    if not silent:
        bad.close()
    for group in range(2):
        reply = collected(client, group, lambda: answer(good))
        assert (reply.arrays["action"] == 3 * (group + 1)).all()
    assert client.statistics().sent_again >= 2 and client.statistics().answered == 2


def test_a_restarted_server_is_found_under_its_name(new_server, new_client):
    first = new_server(0)
    client = new_client(0, servers=[first])
    client.submit(0, arrays(1))
    until(lambda: first.statistics().received, first.poll, lambda: client.collect(0))
    first.close()
    second = new_server(0)
    reply = collected(client, 0, lambda: answer(second))
    assert (reply.arrays["action"] == 3).all()


def test_garbage_is_ignored(new_server, new_client, new_context):
    server, client, context = new_server(), new_client(), new_context()
    socket = connect(context, context.lookup(f"{ROOT}/policy/0"))
    until(lambda: socket.poll(0, zmq.POLLOUT))
    size = layout().request.nbytes

    def message(wire, content):
        head = RequestHead("c", 1, 0, 0, wire if isinstance(wire, bytes) else serialization.encode(wire))
        return to_frame(head, content)

    good = layout().encoded
    unseen = [[["noise", "<f4", [4, 1]]], [["action", "<f4", [4]]]]
    uneven = [[["observation", "<f4", [4, 1]]], [["action", "<f4", [5]]]]
    texts = [[["observation", "<U4", [4, 1]]], [["action", "<f4", [4]]]]
    large = [[["observation", "<f4", [4, 1]]], [["action", "<f4", [4, 2**31]]]]
    garbage = [
        [b""],
        [b"abc"],
        [b"\x80\x04\x95."],
        [b"\xff" * 64],
        [message(good, bytes(size)), b""],
        [message(good, bytes(size - 1))],
        [message(good, bytes(size + 1))],
        [serialization.encode(["request"])],
        *([message(wire, bytes(64))] for wire in (unseen, uneven, texts, large, [])),
    ]
    for frames in garbage:
        socket.send_multipart(frames)
    until(lambda: server.statistics().malformed == len(garbage), server.poll)
    client.submit(0, arrays(1))
    collected(client, 0, lambda: answer(server))


def test_an_answer_to_a_client_that_has_gone_is_counted(new_server, new_client):
    server = new_server()
    client = new_client(servers=[server])
    client.submit(0, arrays())
    until(lambda: server.poll(), lambda: client.collect(0))
    (request,) = server.take(1000)
    client.close()

    def reply():
        server.reply([request], actions(np.zeros((4, 2, 3), np.float32)), 1)

    until(lambda: server.statistics().unsendable, reply)
