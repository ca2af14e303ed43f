"""What may not appear in the source, because bytes from outside could reach it.

No pickle in any disguise, no code from text, no shell, sockets from one factory, one chosen interface, and no `assert`
where security depends on the check (`python -O` removes it).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.architecture.source_tree import (
    Source,
    aliases_of,
    dotted_name,
    imports_of,
    is_below,
    package_sources,
    python_sources,
)

PICKLING_MODULES = (
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve",
    "multiprocessing.connection", "multiprocessing.managers", "multiprocessing.reduction",
    "multiprocessing.Pipe", "multiprocessing.Queue", "multiprocessing.SimpleQueue", "multiprocessing.Manager",
    "torch.distributed.rpc", "torch.multiprocessing",
)  # fmt: skip
PICKLING_CALLS = (
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load",
    "multiprocessing.Pipe", "multiprocessing.Queue", "multiprocessing.SimpleQueue", "multiprocessing.Manager",
)  # fmt: skip
PICKLING_METHODS = {"recv_pyobj", "send_pyobj"}
CODE_FROM_TEXT = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}

SOCKET_FACTORY = "hpc_marl/base/sockets.py"
SOCKET_MAKERS = {
    "zmq.Context",
    "zmq.Context.instance",
    "zmq.Context.shadow",
    "zmq.Socket",
    "zmq.asyncio.Context",
}

CHECKS_ARE_SECURITY = re.compile(
    r"hpc_marl/base/(security|permissions|sockets|zap|rpc|service_records)\w*\.py"
)

ANY_INTERFACE = {"", "*", "0.0.0.0", "::", "[::]"}
ANY_INTERFACE_URL = re.compile(r"://(\*|0\.0\.0\.0|\[?::\]?)(:|$)")
BINDERS = re.compile(r"bind\w*|listen|create_server|RpcServer")


def wire_violations(source: Source) -> Iterator[str]:
    """Yield what must not stand in a file, with its line."""
    for one in imports_of(source):
        if any(is_below(one.target, module) for module in PICKLING_MODULES):
            yield f"{one.where}: imports {one.target}"
    aliases = aliases_of(source)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield from (f"{source.at(node)}: {text}" for text in _call_violations(source, node, aliases))
        elif isinstance(node, ast.Assert) and CHECKS_ARE_SECURITY.fullmatch(source.path):
            yield f"{source.at(node)}: an assert goes away with python -O; raise instead"
        elif isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS:
            yield f"{source.at(node)}: {node.attr} unpickles"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in PICKLING_METHODS:
                yield f"{source.at(node)}: {node.value} unpickles"
            if ANY_INTERFACE_URL.search(node.value):
                yield f"{source.at(node)}: {node.value} is every interface; bind the chosen one"


def _call_violations(source: Source, call: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = dotted_name(call.func, aliases)
    if name in PICKLING_CALLS or name in CODE_FROM_TEXT or name in SHELLS:
        yield f"calls {name}"
    for keyword in call.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
        if keyword.arg in ("shell", "allow_pickle") and not is_false:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"
    if source.path != SOCKET_FACTORY and _makes_socket(call, name, aliases):
        yield f"{ast.unparse(call)}: sockets come from the SocketFactory"
    last_name = call.func.attr if isinstance(call.func, ast.Attribute) else name
    if BINDERS.fullmatch(last_name):
        yield from (f"{last_name} on {value!r}: bind the chosen interface" for value in _any_interface(call))


def _makes_socket(call: ast.Call, name: str, aliases: dict[str, str]) -> bool:
    if name in SOCKET_MAKERS:
        return True
    is_method = isinstance(call.func, ast.Attribute) and call.func.attr == "socket"
    return is_method and any(is_below(dotted_name(argument, aliases), "zmq") for argument in call.args)


def _any_interface(call: ast.Call) -> Iterator[str]:
    """Yield the literal hosts of a call that mean every interface: `("", 80)`, `["*"]`, `host="0.0.0.0"`."""
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        items = argument.elts if isinstance(argument, ast.Tuple | ast.List) else [argument]
        for item in items:
            if isinstance(item, ast.Constant) and isinstance(item.value, str) and item.value in ANY_INTERFACE:
                yield item.value


def test_the_package_is_safe() -> None:
    found = [text for source in package_sources() for text in wire_violations(source)]
    assert not found, "\n".join(found)


def test_the_examples_are_safe() -> None:
    found = [text for source in python_sources("examples") for text in wire_violations(source)]
    assert not found, "\n".join(found)


def test_the_socket_factory_is_where_the_exception_says() -> None:
    factory = [source for source in package_sources() if source.path == SOCKET_FACTORY]
    assert len(factory) == 1
    assert any(
        isinstance(node, ast.Call) and _makes_socket(node, dotted_name(node.func, aliases_of(factory[0])), {})
        for node in ast.walk(factory[0].tree)
    )


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import importlib\nimportlib.import_module('cloudpickle')",
        "import dill as d",
        "import marshal, json",
        "from multiprocessing import connection",
        "from multiprocessing.connection import Client",
        "import multiprocessing as mp\nmp.Queue()",
        "import torch.distributed.rpc as rpc",
        "x = socket.recv_pyobj()",
        "send = socket.send_pyobj",
        "x = getattr(socket, 'recv_pyobj')()",
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import numpy as np\nnp.load('a.npy', allow_pickle=flag)",
        "import torch\ntorch.load('a.pt', weights_only=True)",
        "import torch as th\nth.save(1, 'a.pt')",
        "from torch import load as read\nread('a.pt')",
        "eval('1 + 1')",
        "exec(text)",
        "import yaml\nyaml.load(text)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "from os import system\nsystem('ls')",
        "import zmq\ncontext = zmq.Context()",
        "from zmq import Context\ncontext = Context.instance()",
        "import zmq.asyncio\nzmq.asyncio.Context()",
        "import zmq\nsocket = context.socket(zmq.PULL)",
        "from zmq import SUB\nsocket = self._context.socket(SUB)",
        "socket.bind('tcp://*:5555')",
        "address = 'tcp://0.0.0.0:1'",
        "address = f'tcp://*:{port}'",
        "socket.bind(('', 80))",
        "server = RpcServer(port, host='*')",
        "factory.bind(kind, ['0.0.0.0'], 0)",
    ],
)
def test_a_planted_danger_is_found(code: str) -> None:
    found = list(wire_violations(Source("hpc_marl/streams/a.py", code)))
    assert len(found) == 1, found


@pytest.mark.parametrize("name", ["security", "sockets", "rpc", "rpc_handler", "zap", "permissions"])
def test_a_planted_assert_is_found(name: str) -> None:
    code = "def f(x):\n    assert x == 1\n"
    assert len(list(wire_violations(Source(f"hpc_marl/base/{name}.py", code)))) == 1
    assert list(wire_violations(Source("hpc_marl/algorithms/returns.py", code))) == []


@pytest.mark.parametrize(
    "code",
    [
        '"""Never pickle, eval() or tcp-wildcards; recv_pyobj is out."""',
        "model.eval()",
        "import re\nre.compile('x')",
        "import socket\nsocket.socket(socket.AF_INET).bind(('127.0.0.1', 0))",
        "import numpy as np\nnp.load('a.npy', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import zmq\nif event & zmq.POLLIN:\n    factory.bind(zmq.REP, hosts)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "if host in ('*', '0.0.0.0'):\n    raise ValueError(host)",
        "from multiprocessing import resource_tracker",
    ],
)
def test_right_code_passes(code: str) -> None:
    assert list(wire_violations(Source("hpc_marl/streams/a.py", code))) == []


def test_only_the_factory_makes_sockets() -> None:
    code = "import zmq\ncontext = zmq.Context()\nsocket = context.socket(zmq.REP)\n"
    assert list(wire_violations(Source(SOCKET_FACTORY, code))) == []
    assert len(list(wire_violations(Source("hpc_marl/base/rpc.py", code)))) == 2
