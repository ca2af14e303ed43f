"""The inference stream: observations of environment groups to policy workers, actions back to the actors.

    InferenceClient.submit(group) --(one message)--> InferenceServer.poll -> take -> act -> reply
                    collect(group) <-------------------------------------------------'

On one node the message is two numbers through a pipe, and the arrays are written and read in place, in the client's
slots (`inference_slots`); else all arrays travel as one frame by ZMQ. What a message looks like is agreed once
(`inference_layout`).

Why no queue grows: a group has at most one request open. At a server a later request of a group replaces an
earlier one, so it holds at most one per group of every client, however slowly it answers.

Why no group waits for ever, and none gets two answers: every request has an id, and only the answer to the
group's open request is handed out. A request that has waited `timeout_s`, or whose server has gone, is sent
again, with the same id, to the next server; acting is a pure function of the request, so it does not matter
who answers, or how often.

Why a server that was too slow disturbs nobody: before a request is sent again the client takes other memory, and the
slow server writes its answer into the old one.
"""

from __future__ import annotations

from hpc_marl.streams.inference_batch import RequestJoiner
from hpc_marl.streams.inference_client import ClientStatistics, InferenceClient, InferenceReply
from hpc_marl.streams.inference_layout import ArrayField, InferenceLayout, policy_layout
from hpc_marl.streams.inference_requests import InferenceRequest
from hpc_marl.streams.inference_server import InferenceServer, ServerStatistics

__all__ = [
    "ArrayField",
    "ClientStatistics",
    "InferenceClient",
    "InferenceLayout",
    "InferenceReply",
    "InferenceRequest",
    "InferenceServer",
    "RequestJoiner",
    "ServerStatistics",
    "policy_layout",
]
