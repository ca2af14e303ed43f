"""Several ranks are one learner: same statistics, same gradient, same decisions, same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hpc_marl.algorithms.ranks import DistributedRanks, Ranks
from tests.unit.algorithms.rank_process import KINDS, make_ppo, stale, weights, what_ranks_found
from tests.unit.algorithms.sample_batches import make_batch


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_two_ranks_on_halves_are_one_on_the_whole(tmp_path: Path) -> None:
    first, second = what_ranks_found("halves", 2, tmp_path)
    for kind in KINDS:
        name = " ".join(kind)
        assert_equal(first[name]["weights"], second[name]["weights"])
        assert first[name]["metrics"] == second[name]["metrics"]
        alone = make_ppo(None, *kind)
        whole = stale(make_batch(alone.spec, alone.actor_weights(), num_envs=8))
        metrics = alone.update(whole, 0)
        for key, array in weights(alone).items():
            if key != "optim.minibatch_rng":
                np.testing.assert_allclose(
                    first[name]["weights"][key], array, rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}"
                )
        assert metrics.keys() == first[name]["metrics"].keys()
        for key, value in metrics.items():
            assert first[name]["metrics"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, key)


def test_minibatches_are_reproducible_and_ranks_stay_copies_however_few_rows_one_has(tmp_path: Path) -> None:
    found = what_ranks_found("minibatches", 3, tmp_path)
    for rank in found:
        for run in ("first", "second"):
            assert_equal(rank[run]["weights"], found[0]["first"]["weights"])
            assert rank[run]["metrics"] == found[0]["first"]["metrics"]
    metrics = found[0]["first"]["metrics"]
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["skipped_updates"] == metrics["skipped_minibatches"] == 0


def test_what_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    found = what_ranks_found("broken", 2, tmp_path)
    for recurrent in ("none", "gru"):
        for rank in (words[recurrent] for words in found):
            assert rank["update"]["skipped_updates"] == 1
            assert_equal(rank["before"], rank["after"])
            assert rank["minibatch"]["skipped_minibatches"] == 1 and rank["steps"] == 3
            assert_equal(rank["weights"], found[0][recurrent]["weights"])


def test_what_ranks_say_reaches_all(tmp_path: Path) -> None:
    found = what_ranks_found("words", 3, tmp_path)
    for rank in found:
        assert [word["rank"] for word in rank["gather"]] == [0, 1, 2]
        assert [len(word["text"]) for word in rank["gather"]] == [0, 1000, 2000]
        np.testing.assert_array_equal(rank["broadcast"]["array"], np.arange(5.0))
        assert rank["broadcast"]["one"] == 2 and rank["sums"] == [3.0, 3.0] and rank["largest"] == 0.0
        assert rank["moments"] == pytest.approx([2.5, np.arange(6.0).var()])
    assert len({rank["shared"] for rank in found}) == 1
    assert len({rank["own"] for rank in found}) > 1


@pytest.mark.parametrize("size", [2, 3])
def test_sums_through_shared_memory_are_those_of_gloo(tmp_path: Path, size: int) -> None:
    found = what_ranks_found("sums_alike", size, tmp_path)
    for rank in found:
        assert rank["takes"] == [True] * 102 + [False], "this host's ranks share memory, for small tensors"
        for by_memory, by_gloo, first in zip(
            rank["by_memory"], rank["by_gloo"], found[0]["by_memory"], strict=True
        ):
            assert by_memory.dtype == by_gloo.dtype
            np.testing.assert_array_equal(by_memory, first)
            if size == 2:
                np.testing.assert_array_equal(by_memory, by_gloo)
            else:  # added in another order
                np.testing.assert_allclose(by_memory, by_gloo, rtol=1e-5, atol=1e-6)


def test_the_death_of_a_rank_is_an_error_of_the_others_next_call(tmp_path: Path) -> None:
    first, second, third = what_ranks_found("death", 3, tmp_path)
    assert first["error"] and second["error"] and third == {}


def test_a_rank_that_takes_no_part_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    first, _ = what_ranks_found("silence", 2, tmp_path)
    assert "timeout" in first["error"].lower() or "timed out" in first["error"].lower()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scenario", ["halves", "minibatches", "words"])
def test_a_rank_on_a_gpu_does_the_same_by_nccl(tmp_path: Path, scenario: str) -> None:
    """One rank only: nccl takes no two on one GPU."""
    (found,) = what_ranks_found(scenario, 1, tmp_path, "cuda")
    if scenario == "halves":
        for kind in KINDS:
            alone = make_ppo(None, *kind)
            alone.update(stale(make_batch(alone.spec, alone.actor_weights(), num_envs=8)), 0)
            for key, array in weights(alone).items():
                if key != "optim.minibatch_rng":
                    ours = found[" ".join(kind)]["weights"][key]
                    np.testing.assert_allclose(ours, array, rtol=1e-3, atol=1e-4, err_msg=f"{kind} {key}")
    elif scenario == "words":
        assert found["gather"][0]["rank"] == 0 and found["sums"] == [1.0, 0.0]


def test_alone_there_is_nothing_to_sum_up() -> None:
    ranks = Ranks()
    assert ranks.sums(1.0, 2.0) == [1.0, 2.0] and ranks.largest(3.0) == 3.0
    assert ranks.gather("word") == ["word"] and ranks.broadcast(None) is None
    assert ranks.moments(np.array([1.0, 3.0]), np.array([5.0])) == [(2.0, 1.0), (5.0, 0.0)]
    assert np.isnan(ranks.moments(np.zeros(0))).all()
    ranks.close()


@pytest.mark.parametrize(
    ("device", "in_order", "expected"),
    [("cpu", True, 1), ("cpu", False, 1), ("cuda", True, 1), ("cuda", False, 0)],
)
def test_who_fails_does_not_wait_for_those_who_wait_for_it(
    device: str, in_order: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroyed: list[int] = []
    for name, answer in {"get_rank": 0, "get_world_size": 2, "is_initialized": True}.items():
        monkeypatch.setattr(dist, name, lambda answer=answer: answer)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: destroyed.append(1))
    DistributedRanks(torch.device(device)).close(in_order=in_order)
    assert len(destroyed) == expected
