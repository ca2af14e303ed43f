"""From a batch to rows and sequences: nothing lost, nothing twice, nothing at the wrong place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_marl.algorithms.minibatches import BatchTensors, TrainingRows, absent_agents
from hpc_marl.policies import ActorCritic
from hpc_marl.policies.actor_critic import NetworkInputs
from tests.unit.algorithms.sample_batches import make_batch, make_spec

CPU = torch.device("cpu")


def make_tensors(recurrent="none", **settings):
    spec = make_spec(recurrent, **settings)
    model = ActorCritic(spec, seed=1)
    batch = make_batch(spec, model.actor_weights())
    return batch, model, BatchTensors(batch, model, 4, CPU)


def numbered_rows(count: int) -> TrainingRows:
    number = torch.arange(count)
    return TrainingRows(NetworkInputs(number.float()), number, number.float().expand(5, count))


@pytest.mark.parametrize(("count", "parts"), [(12, 4), (13, 4), (3, 5)])
def test_minibatches_are_a_shuffled_partition(count: int, parts: int):
    generator = torch.Generator().manual_seed(0)
    rows = numbered_rows(count)
    pieces = list(rows.minibatches(parts, generator))
    drawn = torch.cat([piece.action for piece in pieces])
    assert sorted(drawn.tolist()) == list(range(count))
    assert max(len(piece) for piece in pieces) - min(len(piece) for piece in pieces) <= 1
    for piece in pieces:
        assert torch.equal(piece.scalars[3], piece.action.float())
        assert torch.equal(piece.inputs.own, piece.action.float())
    again = torch.cat([piece.action for piece in rows.minibatches(parts, generator)])
    assert count < 10 or not torch.equal(again, drawn)


def test_one_minibatch_is_everything_untouched():
    rows = numbered_rows(5)
    assert list(rows.minibatches(1, torch.Generator())) == [rows]


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_restore_undoes_arrange(recurrent: str):
    batch, _, tensors = make_tensors(recurrent)
    values = torch.arange(batch.action.size).reshape(batch.action.shape)
    arranged = tensors.arrange(values)
    assert arranged.shape == ((24, 4, 2) if recurrent == "gru" else (96, 2))
    assert torch.equal(tensors.restore(arranged), values)
    if recurrent == "gru":  # sequence c * E + e holds steps 4c .. 4c + 3 of environment e
        assert torch.equal(arranged[2 * 6 + 5], values[8:12, 5])


def test_rows_in_which_nobody_acted_are_left_out():
    batch, _, tensors = make_tensors()
    scalars = [np.full(batch.reward.shape, i, np.float32) for i in range(4)]
    rows = tensors.rows(tensors.step_inputs(), [*scalars, batch.alive[:-1].astype(np.float32)])
    somebody = batch.alive[:-1].any(axis=2)
    assert len(rows) == somebody.sum() < somebody.size
    assert np.array_equal(rows.action.numpy(), np.where(batch.alive[:-1], batch.action, 0)[somebody])
    assert np.array_equal(rows.scalars[4].numpy(), batch.alive[:-1][somebody])
    assert np.array_equal(
        rows.inputs.own.numpy()[..., :5][batch.alive[:-1][somebody]], batch.observation[:-1][batch.alive[:-1]]
    )


def test_sequences_keep_their_memory_and_beginnings():
    batch, _, tensors = make_tensors("gru")
    inputs = tensors.step_inputs()
    assert np.array_equal(inputs.memory[1 * 6 + 2].numpy(), batch.memory[1, 2])
    assert np.array_equal(inputs.is_first[1 * 6 + 2].numpy(), batch.is_first[4:8, 2])
    memory = torch.arange(24.0).reshape(24, 1, 1).expand(24, 2, 6)
    final = tensors.final_inputs(memory)
    assert final.memory[:, 0, 0].tolist() == [18, 19, 20, 21, 22, 23], "of the last chunk's six sequences"
    assert final.own.shape[:3] == (6, 1, 2)
    assert np.array_equal(final.is_first[:, 0].numpy(), batch.is_first[-1])


def test_who_is_absent():
    batch, *_ = make_tensors()
    absent = absent_agents(batch)
    alive, others = batch.alive, batch.alive[..., ::-1]
    just_cut = np.zeros_like(alive)
    just_cut[1:] = batch.truncated
    assert np.array_equal(absent, ~alive & ~just_cut & (others | just_cut[..., ::-1]))
    assert absent.any() and (~alive & just_cut).any()
    batch.alive[:] = True
    batch.truncated[:] = False
    assert absent_agents(batch) is None


def test_read_only_batches_are_fine():
    spec = make_spec("gru", has_action_mask=True, state_size=3)
    model = ActorCritic(spec, seed=1)
    batch = make_batch(spec, model.actor_weights())
    for array in batch.arrays().values():
        array.flags.writeable = False
    assert torch.isfinite(model.values(BatchTensors(batch, model, 4, CPU).step_inputs())[0]).all()
