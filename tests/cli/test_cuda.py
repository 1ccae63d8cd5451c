from __future__ import annotations

import ctypes
import shlex
import sys
from typing import Any

import pytest

from avsseg.cli.cuda import driver_cuda_version, gpu_capability, missing_for_cuda, pip_command


def test_a_cpu_build_without_a_driver_lacks_both() -> None:
    driver, build = missing_for_cuda("2.13.0+cpu", None, None, platform="linux")
    assert "Install an NVIDIA driver" in driver
    assert "ubuntu-drivers install" in driver
    assert build.endswith("torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126")


def test_a_cpu_build_beside_a_driver_lacks_only_the_build() -> None:
    (step,) = missing_for_cuda("2.13.0+cpu", None, (12, 8), platform="linux")
    assert step.startswith("Install PyTorch's CUDA build: ")


def test_a_cuda_build_without_a_driver_lacks_only_the_driver() -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", None, platform="win32")
    assert step == "Install an NVIDIA driver, none is found: https://www.nvidia.com/drivers"


def test_an_old_driver_is_named_with_what_is_needed() -> None:
    (step,) = missing_for_cuda("2.13.0+cu130", "13.0", (12, 8), platform="linux")
    assert "it runs CUDA 12.8 and this PyTorch needs 13.0" in step


@pytest.mark.parametrize("driver", [(12, 2), (13, 1)])
def test_a_driver_of_the_same_or_a_newer_major_version_is_not_blamed(driver: tuple[int, int]) -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", driver, platform="linux")
    assert "nvidia-smi" in step


def test_a_driver_that_no_build_for_the_gpu_runs_on_is_updated_first() -> None:
    driver, build = missing_for_cuda("2.13.0+cpu", None, (12, 8), capability=(12, 0), platform="linux")
    assert "it runs CUDA 12.8 and PyTorch cu130, the build for this GPU, needs 13.0" in driver
    assert build.endswith("/cu130")


@pytest.mark.parametrize("driver", [(12, 8), (13, 0)])
def test_a_build_without_code_for_an_old_gpu_is_replaced(driver: tuple[int, int]) -> None:
    (step,) = missing_for_cuda("2.13.0+cu130", "13.0", driver, capability=(7, 0), platform="linux")
    assert step.startswith("Install PyTorch's CUDA build: ")
    assert step.endswith("/cu126")


@pytest.mark.parametrize(
    ("torch_version", "built_for", "driver"),
    [("2.6.0+cpu", None, (12, 8)), ("2.6.0+cu126", "12.6", (12, 8)), ("2.6.0+cu124", "12.4", (12, 9))],
)
def test_a_pytorch_without_code_for_a_new_gpu_is_replaced_by_a_newer_one(
    torch_version: str, built_for: str | None, driver: tuple[int, int]
) -> None:
    (step,) = missing_for_cuda(torch_version, built_for, driver, capability=(12, 0), platform="linux")
    assert "'torch>=2.7,<2.12'" in step
    assert step.endswith("/cu128")


def test_a_build_without_code_for_a_new_gpu_is_replaced() -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", (13, 0), capability=(12, 0), platform="linux")
    assert "torch==2.13.0" in step
    assert step.endswith("/cu130")
    driver, step = missing_for_cuda("2.13.0+cu126", "12.6", (12, 8), capability=(12, 0), platform="linux")
    assert "it runs CUDA 12.8 and PyTorch cu130, the build for this GPU, needs 13.0" in driver
    assert step.endswith("/cu130")


@pytest.mark.parametrize("capability", [(3, 5), (13, 0)])
def test_a_gpu_that_no_build_runs_on_gets_no_command(capability: tuple[int, int]) -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", (13, 0), capability=capability, platform="linux")
    assert step.startswith("No PyTorch that avsseg runs with")


def test_a_hidden_gpu() -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", (13, 0), platform="linux", visible="")
    assert step.startswith("Unset CUDA_VISIBLE_DEVICES, it is ''")


def test_a_mac_gets_no_command() -> None:
    assert missing_for_cuda("2.13.0", None, None, platform="darwin") == [
        "CUDA needs Linux or Windows and an NVIDIA GPU"
    ]


@pytest.mark.parametrize(
    ("torch_version", "driver", "capability", "build"),
    [
        ("2.13.0+cpu", (13, 0), None, "cu130"),
        ("2.13.0+cpu", (12, 9), None, "cu126"),
        ("2.13.0+cpu", None, None, "cu126"),
        ("2.8.0+cpu", (13, 0), None, "cu126"),
        ("2.13.0+cpu", (13, 0), (7, 5), "cu130"),
        ("2.13.0+cpu", (13, 0), (7, 0), "cu126"),
        ("2.13.0+cpu", (12, 9), (9, 0), "cu126"),
        ("2.13.0+cpu", (13, 1), (12, 1), "cu130"),
        ("2.13.0+cpu", (12, 8), (12, 0), "cu130"),
        ("2.11.0+cpu", (12, 8), (12, 0), "cu128"),
        ("2.8.0+cpu", (13, 0), (10, 0), "cu128"),
    ],
)
def test_the_build_fits_the_driver_the_version_and_the_gpu(
    torch_version: str, driver: tuple[int, int] | None, capability: tuple[int, int] | None, build: str
) -> None:
    words = shlex.split(pip_command(torch_version, driver, capability, platform="linux"))
    assert words[:3] == [sys.executable, "-m", "pip"]
    assert "--force-reinstall" in words
    assert words[-1].endswith(f"/{build}")
    assert f"torch=={torch_version.split('+')[0]}" in words


class Driver:
    """libcuda of a machine with that many GPUs of compute capability 8.9."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.initialised = False

    def cuInit(self, flags: int) -> int:
        self.initialised = flags == 0
        return 0 if self.gpus else 100

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        assert self.initialised
        device._obj.value = 40 + ordinal
        return 0 if ordinal < self.gpus else 101

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: ctypes.c_int) -> int:
        assert device.value == 40
        number._obj.value = {75: 8, 76: 9}[attribute]
        return 0


@pytest.mark.parametrize(("gpus", "capability"), [(2, (8, 9)), (0, None)])
def test_the_capability_is_that_of_the_first_gpu(
    gpus: int, capability: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(gpus))
    assert gpu_capability("linux") == capability


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_capability("linux") is None
    assert gpu_capability("win32") is None


def test_the_driver_of_this_machine() -> None:
    version = driver_cuda_version()
    assert version is None or version >= (10, 0)
