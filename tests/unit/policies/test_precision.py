"""TF32 is allowed where it was asked for and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hpc_marl.config import TrainerGroupConfig, build
from hpc_marl.errors import ConfigError
from hpc_marl.policies.precision import network_precision, use_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    flags = cudnn.allow_tf32, cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(before)
    cudnn.allow_tf32, cudnn.deterministic = flags


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_tf32_is_what_was_asked_for(precision: str, allowed: bool) -> None:
    for _ in range(2):
        use_device(GPU, precision)
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cudnn.allow_tf32 is allowed
        use_device(GPU, "float32" if allowed else "tf32")


def test_a_gpu_sums_in_one_order() -> None:
    torch.backends.cudnn.deterministic = False
    use_device(CPU, "float32")
    assert not torch.backends.cudnn.deterministic
    use_device(GPU, "float32")
    assert torch.backends.cudnn.deterministic


def test_a_cpu_is_not_told_what_a_gpu_may_do() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    use_device(CPU, "tf32")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_the_gpu_with_that_number_is_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for device in (GPU, torch.device("cuda:2"), CPU):
        use_device(device, "float32")
    assert taken == [torch.device("cuda:2")]


def test_networks_compute_in_bfloat16_where_that_was_asked_for() -> None:
    layer, rows = torch.nn.Linear(3, 2), torch.ones(4, 3)
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with network_precision(CPU, precision):
            assert layer(rows).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"precision": "fp16"}, "choose one of float32, tf32, bf16"),
        ({"precision": "tf32"}, "use device=cuda, or float32 or bf16"),
        ({"cuda_graph": True}, "needs a GPU, and device=cpu"),
        ({"cuda_graph": True, "device": "cuda", "count": 2}, "use count=1 or leave it out"),
    ],
)
def test_what_a_device_cannot_do_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(TrainerGroupConfig, settings)
    build(TrainerGroupConfig, {"precision": "bf16"})
    build(TrainerGroupConfig, {"device": "cuda:1", "precision": "tf32", "cuda_graph": True})
