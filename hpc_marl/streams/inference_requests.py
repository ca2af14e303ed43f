"""InferenceRequest: an environment group that waits for actions, as the policy worker sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from hpc_marl.streams.inference_layout import InferenceLayout


class Origin(Protocol):
    """Where a request came from, and its answer goes to."""

    def answer(
        self, request: InferenceRequest, arrays: Mapping[str, NDArray[Any]], place: slice, policy_version: int
    ) -> None:
        """Write or send the answer.

        Args:
            request: which one.
            arrays: of a whole batch.
            place: the request's environments in it.
            policy_version: that acted.
        """

    def flush(self) -> int:
        """Let the client know of the answers; return how many could not be delivered."""


@dataclass(eq=False, slots=True)
class InferenceRequest:
    """One environment group that waits for actions."""

    client: str
    """Id of the client; with `group` it names who waits."""
    id: int
    group: int
    min_policy_version: int
    """The answer must come from a policy of at least this version."""
    layout: InferenceLayout
    arrays: dict[str, NDArray[Any]]
    """observation [E, N, D], noise [E, N, K], and where there are such action_mask [E, N, A], memory [E, N, H];
    read-only."""
    origin: Origin
