"""The parameter stream: the newest whole version from one trainer to everyone who acts by it.

    publish(version, weights) --> ParameterMemory --(same node: read in place)-------------->
    ParameterReader.poll()
                                        '--(other nodes: side thread answers "newer than g?")-->
                                        ParameterReader.poll()

Publishing never waits for a reader, and no reader makes a queue: on the same node there are two slots,
whatever the number of readers. Across nodes a reader asks and gets *one* answer, which is sent when there
is something newer than it has; only then does it ask again. So at most one version is on its way to each
reader, a slow reader skips versions instead of piling them up, and none can be dropped that anybody waits
for: what is answered is read from the memory at that moment.

A publisher that starts again from a checkpoint may be at a lower policy_version than its predecessor.
Readers follow the name entry: a publisher of the same or a higher epoch replaces the one before, whatever
its version.
"""

from __future__ import annotations

from hpc_marl.streams.parameter_publisher import ParameterPublisher, PublisherStatistics
from hpc_marl.streams.parameter_reader import ParameterReader, ParameterSet, ReaderStatistics

__all__ = ["ParameterPublisher", "ParameterReader", "ParameterSet", "PublisherStatistics", "ReaderStatistics"]
