"""One end of a sample stream as a process of its own, to be killed: `stream_process.py actor|trainer DIRECTORY ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hpc_marl.base.name_resolve_file import FileNameResolver
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.security import load_keyring
from hpc_marl.base.sockets import SocketFactory
from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.streams.ledger import Ledger
from hpc_marl.streams.samples import SampleMetadata, SampleReceiver, SampleSender

KEY = "exp/trial/sample_stream/trainer/0"
LAYOUT = SampleLayout(EnvSpec(observation_size=50, num_actions=2), num_steps=16, num_envs=8)
METADATA = SampleMetadata(env_steps=128, agent_steps=128)


def open_context(directory: Path) -> RunContext:
    keyring = load_keyring(directory / "auth")
    return RunContext("exp", "trial", FileNameResolver(directory / "names"), SocketFactory(keyring))


def fill_and_commit(sender: SampleSender) -> bool:
    """Send a batch whose arrays hold its sequence number, if there is credit."""
    batch = sender.acquire()
    if batch is None:
        return False
    seq = sender.statistics().produced
    batch.observation[...] = seq
    batch.reward[...] = seq
    assert sender.commit(batch, METADATA) == seq
    return True


def run_actor(directory: Path, transport: str) -> None:
    with open_context(directory) as context:
        sender = SampleSender(context, KEY, "actor/0", LAYOUT, 4, transport=transport)
        while True:
            sender.poll(0.01)
            while fill_and_commit(sender):
                pass


def run_trainer(directory: Path, transport: str, epoch: int) -> None:
    """Consume for ever, and keep the ledger of every tenth batch in a file as a checkpoint would."""
    checkpoint = directory / "ledger.json"
    ledger = Ledger.from_dict(json.loads(checkpoint.read_text())) if checkpoint.exists() else None
    with open_context(directory) as context:
        receiver = SampleReceiver(
            context, KEY, max_bytes=2**20, transport=transport, epoch=epoch, ledger=ledger
        )
        consumed = 0
        while True:
            receiver.poll(0.05)
            for received in receiver.take():
                assert (received.batch.observation == received.seq).all(), "a torn batch"
                receiver.consume([received])
                consumed += 1
                if consumed % 10 == 0:
                    temporary = checkpoint.with_suffix(".tmp")
                    temporary.write_text(json.dumps(receiver.ledger.to_dict()))
                    temporary.replace(checkpoint)


if __name__ == "__main__":
    role, directory, transport, *rest = sys.argv[1:]
    if role == "actor":
        run_actor(Path(directory), transport)
    else:
        run_trainer(Path(directory), transport, int(rest[0]))
