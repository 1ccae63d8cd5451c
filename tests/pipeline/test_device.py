from __future__ import annotations

import logging

import pytest
import torch

from avsseg.errors import EnvironmentFault, UsageError
from avsseg.pipeline.device import cuda_fault, has_kernels, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_devices_that_are_not_there_are_named() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_precision("auto", CPU) == "fp32"
    with pytest.raises(EnvironmentFault, match="cuda:99 "):
        resolve_device("cuda:99")
    with pytest.raises(UsageError, match="'gpu' is unknown"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_best_device_that_is_there(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(best)


def test_mps_is_taken_where_it_is_there_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=r"mps is not there: .* Apple silicon\. Use --device cpu"):
        resolve_device("mps")


@pytest.mark.parametrize(
    ("capability", "hip", "precision"),
    [((7, 5), None, "fp16"), ((8, 0), None, "bf16"), ((9, 0), None, "bf16"), ((7, 0), "6.4", "bf16")],
)
def test_bf16_is_chosen_only_where_it_is_not_emulated(
    capability: tuple[int, int], hip: str | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {0: (10, 0), 1: capability}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(torch.version, "hip", hip)
    assert resolve_precision("auto", torch.device("cuda", 1)) == precision
    assert resolve_precision("fp32", torch.device("cuda", 1)) == "fp32"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_75", "sm_86", "sm_90"], (7, 5), True),
        (["sm_75", "sm_86", "sm_90"], (8, 9), True),
        (["sm_75", "sm_86", "sm_90"], (8, 0), False),
        (["sm_75", "sm_86", "sm_90"], (6, 1), False),
        (["sm_75", "sm_86", "sm_90"], (12, 0), False),
        (["sm_90", "compute_90"], (12, 0), True),
        (["sm_90", "compute_90"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_120f"], (12, 1), True),
        (["sm_100a"], (10, 3), False),
        ([], (8, 0), True),
        (["gfx90a"], (9, 0), True),
    ],
)
def test_kernels_run_on_gpus_of_their_major_version_and_are_compiled_for_later_ones(
    architectures: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert has_kernels(architectures, capability) is runs


@pytest.fixture
def _old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.usefixtures("_old_gpu")
def test_a_gpu_without_kernels_is_not_used_and_named(caplog: pytest.LogCaptureFixture) -> None:
    assert "has no kernels for this GPU, of compute capability 6.1" in cuda_fault()
    with caplog.at_level(logging.WARNING, "avsseg"):
        assert resolve_device("auto") == CPU
    assert "the CPU is used" in caplog.text
    with pytest.raises(EnvironmentFault, match=r"device cuda cannot be used: .* capability 6\.1\. Use --device cpu"):
        resolve_device("cuda")
