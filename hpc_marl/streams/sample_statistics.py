"""What the two ends of a sample stream count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SenderStatistics:
    """What a sender did so far and where its slots are."""

    produced: int
    """Batches committed."""
    produced_env_steps: int
    produced_agent_steps: int
    released: int
    """Batches that a receiver was done with."""
    lost: int
    """Batches that were under way to a receiver that went away."""
    resent: int
    """Times that a batch was sent again over a new connection."""
    abandoned: int
    refused_acquires: int
    """Times that `acquire` had no slot to give."""
    writing: int
    under_way: int
    granted: int
    num_slots: int
    receivers: int
    """Receivers that it was let in by, one after another."""
    transport: str
    """shared_memory, zmq, or none before it was let in."""


@dataclass(frozen=True)
class ReceiverStatistics:
    """What a receiver did so far and what it holds."""

    senders: int
    senders_by_transport: dict[str, int]
    received: int
    """Batches that arrived and counted."""
    held: int
    held_bytes: int
    peak_held_bytes: int
    granted: int
    """Batches that the present senders may have under way."""
    reserved_bytes: int
    """The most bytes that can be under way or held."""
    ignored: dict[str, int]
    """Messages not acted on, by reason."""
