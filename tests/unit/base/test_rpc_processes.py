"""The example of the documentation, word for word, in two processes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

SERVER = """
import sys
from hpc_marl.base.rpc import RpcServer

def foo(x, y):
    return f"{y}-{x}"

port = int(sys.argv[1])
server = RpcServer(port)
server.register_handler('foo', foo)
while True:
    server.handle_requests()
"""

CLIENT = """
import sys
from hpc_marl.base.rpc import RpcClient

host, port = sys.argv[1], int(sys.argv[2])
print(RpcClient(host, port).request('foo', x=42, y='str'))
"""


def test_two_processes_share_a_key_and_talk() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    python = [sys.executable, "-c"]
    server = subprocess.Popen([*python, SERVER, port], stderr=subprocess.PIPE, text=True)
    try:
        client = subprocess.run(
            [*python, CLIENT, "localhost", port], capture_output=True, text=True, timeout=60
        )
        assert (client.stdout, client.stderr, client.returncode) == ("str-42\n", "", 0)
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
        assert errors.rstrip().endswith("KeyboardInterrupt")
    finally:
        server.kill()
        server.communicate()
