"""The sample stream: whole sample batches from actors to the trainer, bounded in bytes and accounted for.

actor                                     trainer
SampleSender.acquire -> commit  ------->  SampleReceiver.poll -> take -> consume | drop
             ^----------- released, credit ----------------------------------'
"""

from __future__ import annotations

from hpc_marl.streams.links import Transport
from hpc_marl.streams.sample_messages import SampleMetadata
from hpc_marl.streams.sample_peer import ReceivedBatch
from hpc_marl.streams.sample_receiver import SampleReceiver
from hpc_marl.streams.sample_sender import SampleSender
from hpc_marl.streams.sample_statistics import ReceiverStatistics, SenderStatistics

__all__ = [
    "ReceivedBatch",
    "ReceiverStatistics",
    "SampleMetadata",
    "SampleReceiver",
    "SampleSender",
    "SenderStatistics",
    "Transport",
]
