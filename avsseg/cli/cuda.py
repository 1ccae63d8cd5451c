"""What a machine lacks for CUDA, and the command that gets it."""

from __future__ import annotations

import ctypes
import shlex
import sys

PYTORCH_INDEX = "https://download.pytorch.org/whl/"

# PyTorch publishes CUDA 12.6 builds of every version from 2.6 to 2.13; newer GPUs need CUDA 13, which needs its driver.
OLD_BUILD, NEW_BUILD = "cu126", "cu130"
NEW_BUILD_DRIVER, NEW_BUILD_PYTORCH = (13, 0), (2, 9)

Version = tuple[int, int]


def driver_cuda_version(platform: str = sys.platform) -> Version | None:
    """The newest CUDA version that the installed NVIDIA driver runs; None without a driver."""
    name = "nvcuda.dll" if platform == "win32" else "libcuda.so.1"
    try:
        number = ctypes.c_int()
        if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def missing_for_cuda(
    torch_version: str,
    built_for: str | None,
    driver: Version | None,
    *,
    platform: str = sys.platform,
    visible: str | None = None,
) -> list[str]:
    """What to do, in order, until CUDA can be used on a machine where it cannot.

    Args:
        torch_version: as `torch.__version__`.
        built_for: as `torch.version.cuda`; None is a build without CUDA.
        driver: as `driver_cuda_version` says.
        platform: as `sys.platform`.
        visible: CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    if platform not in ("linux", "win32"):
        return ["CUDA needs Linux or Windows and an NVIDIA GPU"]
    drivers = "https://www.nvidia.com/drivers"
    if platform == "linux":
        drivers = f"sudo ubuntu-drivers install (Ubuntu), or {drivers}"
    build = f"Install PyTorch's CUDA build: {pip_command(torch_version, driver, platform)}"
    steps = []
    if driver is None:
        steps.append(f"Install an NVIDIA driver, none is found: {drivers}")
    if built_for is None:
        steps.append(build)
    elif driver is None:
        pass
    elif driver[0] < _version(built_for)[0]:
        newest = f"CUDA {driver[0]}.{driver[1]}"
        steps.append(f"Update the NVIDIA driver, it runs {newest} and this PyTorch needs {built_for}: {drivers}")
    elif visible is not None:
        steps.append(f"Unset CUDA_VISIBLE_DEVICES, it is {visible!r} and may hide the GPU")
    else:
        steps.append("See what nvidia-smi says: the driver is there but shows no GPU that this PyTorch can use")
    return steps


def pip_command(torch_version: str, driver: Version | None, platform: str = sys.platform) -> str:
    """The command that replaces this interpreter's PyTorch by the CUDA build of the same version."""
    number = torch_version.split("+")[0]
    new = driver is not None and driver >= NEW_BUILD_DRIVER and _version(number) >= NEW_BUILD_PYTORCH
    python = f'"{sys.executable}"' if platform == "win32" else shlex.quote(sys.executable)
    # without --force-reinstall pip finds the version installed already
    return (
        f"{python} -m pip install --force-reinstall torch=={number} "
        f"--index-url {PYTORCH_INDEX}{NEW_BUILD if new else OLD_BUILD}"
    )


def _version(text: str) -> Version:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
