"""Admission: which sender a receiver listens to, and which it tells to go away."""

from __future__ import annotations

from hpc_marl.data import SampleLayout
from hpc_marl.streams.sample_messages import PROTOCOL_VERSION, Hello, layout_difference, layout_problem

FENCED = "fenced: a newer life of this worker has taken its place"


class Admission:
    """Who was let in, and who was fenced off for ever. Pure.

    Of several lives of one worker only the newest is listened to. A life is fenced off when it says hello
    with a lower epoch than another did before, when a later one has taken its place, or when it is declared
    dead: a zombie that comes back from a stopped node or a healed network is refused, whatever it still has
    to say.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._layout: SampleLayout | None = None
        self._epochs: dict[str, int] = {}
        self._fenced: set[str] = set()

    def fence(self, who: str) -> None:
        """Refuse a stream or an incarnation from now on."""
        self._fenced.add(who)

    def is_fenced(self, who: str) -> bool:
        """Return whether a stream or an incarnation is refused."""
        return who in self._fenced

    def problem(self, hello: Hello) -> str | None:
        """Return why the sender cannot be let in, None where it can."""
        if hello.incarnation in self._fenced or hello.epoch < self._epochs.get(hello.worker_name, 0):
            return FENCED
        if hello.protocol != PROTOCOL_VERSION:
            return (
                f"it speaks version {hello.protocol} of the sample protocol, the trainer version {PROTOCOL_VERSION}: "
                "run one version of hpc_marl everywhere"
            )
        problem = layout_problem(hello.layout)
        if problem is None and self._layout is not None:
            difference = layout_difference(self._layout, hello.layout)
            problem = difference and f"its batches differ from those of the first actor: {difference}"
        return problem

    def size_problem(self, hello: Hello) -> str | None:
        """Return why the batches of a sound layout cannot come by ZMQ, None where they can."""
        if hello.layout.nbytes <= self._max_message_bytes:
            return None
        return (
            f"a batch takes {hello.layout.nbytes} bytes, more than streams.max_message_bytes="
            f"{self._max_message_bytes}: raise it, or take a shorter rollout_length or fewer num_envs"
        )

    def admit(self, hello: Hello) -> None:
        """Take note of a sender that was let in: its batches are the measure for the next ones."""
        self._layout = self._layout or hello.layout
        self._epochs[hello.worker_name] = hello.epoch
