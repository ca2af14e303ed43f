"""The shortcuts do what pyzmq's own methods do."""

from __future__ import annotations

import zmq

from hpc_marl.base.socket_shortcuts import can_receive, can_send, send_of
from hpc_marl.base.sockets import SocketFactory


def test_they_send_and_tell_of_messages_as_the_socket_does(sockets: SocketFactory) -> None:
    bound = sockets.bind(zmq.ROUTER, ["127.0.0.1"])
    client = sockets.connect(zmq.DEALER, bound.hosts, bound.port, bound.public_key)
    send = send_of(client)
    assert not can_receive(bound.socket)
    assert client.poll(5000, zmq.POLLOUT)
    assert can_send(client)
    for content in (b"first", b"second"):
        send(content, zmq.NOBLOCK)
    for content in (b"first", b"second"):
        assert bound.socket.poll(5000)
        assert can_receive(bound.socket)
        assert bound.socket.recv_multipart()[1] == content
    assert not can_receive(bound.socket)
    client.close()
    bound.socket.close()
