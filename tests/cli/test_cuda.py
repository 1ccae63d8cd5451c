from __future__ import annotations

import shlex
import sys

import pytest

from avsseg.cli.cuda import driver_cuda_version, missing_for_cuda, pip_command


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


def test_a_hidden_gpu() -> None:
    (step,) = missing_for_cuda("2.13.0+cu126", "12.6", (13, 0), platform="linux", visible="")
    assert step.startswith("Unset CUDA_VISIBLE_DEVICES, it is ''")


def test_a_mac_gets_no_command() -> None:
    assert missing_for_cuda("2.13.0", None, None, platform="darwin") == [
        "CUDA needs Linux or Windows and an NVIDIA GPU"
    ]


@pytest.mark.parametrize(
    ("torch_version", "driver", "build"),
    [
        ("2.13.0+cpu", (13, 0), "cu130"),
        ("2.13.0+cpu", (12, 9), "cu126"),
        ("2.13.0+cpu", None, "cu126"),
        ("2.8.0+cpu", (13, 0), "cu126"),
    ],
)
def test_the_build_fits_the_driver_and_the_version(
    torch_version: str, driver: tuple[int, int] | None, build: str
) -> None:
    words = shlex.split(pip_command(torch_version, driver, "linux"))
    assert words[:3] == [sys.executable, "-m", "pip"]
    assert "--force-reinstall" in words
    assert words[-1].endswith(f"/{build}")
    assert f"torch=={torch_version.split('+')[0]}" in words


def test_the_driver_of_this_machine() -> None:
    version = driver_cuda_version()
    assert version is None or version >= (10, 0)
