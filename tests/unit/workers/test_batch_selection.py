"""Which batches an update learns from."""

from __future__ import annotations

import itertools

from hpc_marl.data import EnvSpec, SampleLayout
from hpc_marl.streams.samples import ReceivedBatch, SampleMetadata
from hpc_marl.workers.batch_selection import select_batches

_LAYOUT = SampleLayout(EnvSpec(observation_size=1, num_actions=2), num_steps=2, num_envs=1)
_numbers = itertools.count()


def received(
    worker: str, *, group: int = 0, versions: tuple[int, int] = (5, 5), epoch: int = 1
) -> ReceivedBatch:
    batch = _LAYOUT.allocate()
    batch.policy_version[:] = versions
    metadata = SampleMetadata(env_steps=2, agent_steps=2, group=group, policy_epoch=epoch)
    return ReceivedBatch(batch, worker, "life", "stream", next(_numbers), metadata, _LAYOUT.nbytes, "zmq")


def select(
    batches: list[ReceivedBatch], count: int, *, lag: int = 0, one_per_group: bool = True
) -> tuple[list[ReceivedBatch], list[str]]:
    chosen, late = select_batches(
        batches, count=count, policy_version=5, epoch=1, max_policy_lag=lag, one_per_group=one_per_group
    )
    return chosen, [reason for _, reason in late]


def test_nothing_is_chosen_before_there_are_enough() -> None:
    assert select([received("actor/0")], 2) == ([], [])


def test_the_order_is_that_of_the_actors_not_of_arrival() -> None:
    batches = [
        received("actor/10"),
        received("actor/2", group=1),
        received("actor/2", group=0),
        received("actor/0"),
    ]
    chosen, late = select(batches, 4)
    names = [(batch.worker_name, batch.metadata.group) for batch in chosen]
    assert names == [("actor/0", 0), ("actor/2", 0), ("actor/2", 1), ("actor/10", 0)] and not late


def test_the_oldest_step_decides_what_is_stale() -> None:
    fresh, stale = received("actor/0", versions=(3, 5)), received("actor/1", versions=(2, 5))
    chosen, late = select([fresh, stale], 1, lag=2)
    assert chosen == [fresh] and late == ["stale"]


def test_batches_of_another_epoch_are_fenced_off() -> None:
    assert select([received("actor/0", epoch=0, versions=(9, 9))], 1) == ([], ["fenced"])


def test_a_synchronous_update_takes_one_batch_of_each_group() -> None:
    batches = [received("actor/0"), received("actor/0"), received("actor/1")]
    chosen, late = select(batches, 2)
    assert chosen == [batches[0], batches[2]] and late == ["superseded"]
    chosen, late = select(batches, 3, one_per_group=False)
    assert len(chosen) == 3 and not late


def test_the_oldest_arrivals_come_first_when_there_are_more_than_enough() -> None:
    batches = [received("actor/1"), received("actor/0"), received("actor/0")]
    chosen, _ = select(batches, 2, one_per_group=False)
    assert set(map(id, chosen)) == {id(batches[0]), id(batches[1])}
