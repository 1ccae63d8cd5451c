"""What a machine lacks for CUDA, and the command that gets it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from avsseg.cli.shell import quoted

PYTORCH_INDEX = "https://download.pytorch.org/whl/"

Version = tuple[int, int]


@dataclass(frozen=True)
class CudaBuild:
    """A CUDA build of PyTorch. It exists in versions, and runs on compute capabilities, from the first to below the
    second, and needs a driver of CUDA's major version."""

    cuda: Version
    pytorch: tuple[Version, Version]
    capability: tuple[Version, Version]

    def runs_on(self, capability: Version) -> bool:
        return self.capability[0] <= capability < self.capability[1]

    @property
    def name(self) -> str:
        """As the folder of the package index is called."""
        return f"cu{self.cuda[0]}{self.cuda[1]}"


# From PyTorch's RELEASE.md, for the versions that avsseg runs with; of several that fit, the first is taken.
BUILDS = (
    CudaBuild((13, 0), pytorch=((2, 9), (2, 14)), capability=((7, 5), (13, 0))),
    CudaBuild((12, 6), pytorch=((2, 6), (2, 14)), capability=((5, 0), (10, 0))),
    CudaBuild((12, 8), pytorch=((2, 7), (2, 12)), capability=((7, 5), (13, 0))),
)
NEWEST_BUILD, OLDEST_BUILD = BUILDS[:2]
# no CUDA before 12.8 compiles for GPUs from this compute capability on
BLACKWELL, FIRST_OF_BLACKWELL = (10, 0), (12, 8)

_MAJOR_ATTRIBUTE, _MINOR_ATTRIBUTE = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def driver_cuda_version(platform: str = sys.platform) -> Version | None:
    """The newest CUDA version that the installed NVIDIA driver runs; None without a driver."""
    number = ctypes.c_int()
    try:
        if _driver(platform).cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def gpu_capability(platform: str = sys.platform) -> Version | None:
    """The compute capability of the first GPU that the NVIDIA driver shows; None without one."""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        driver = _driver(platform)
        if (
            driver.cuInit(0) != 0
            or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR_ATTRIBUTE, device) != 0
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR_ATTRIBUTE, device) != 0
        ):
            return None
    except (OSError, AttributeError):
        return None
    return major.value, minor.value


def missing_for_cuda(
    torch_version: str,
    built_for: str | None,
    driver: Version | None,
    *,
    capability: Version | None = None,
    platform: str = sys.platform,
    visible: str | None = None,
) -> list[str]:
    """What to do, in order, until CUDA can be used on a machine where it cannot.

    Args:
        torch_version: as `torch.__version__`.
        built_for: as `torch.version.cuda`; None is a build without CUDA.
        driver: as `driver_cuda_version` says.
        capability: as `gpu_capability` says.
        platform: as `sys.platform`.
        visible: CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    if platform not in ("linux", "win32"):
        return ["CUDA needs Linux or Windows and an NVIDIA GPU"]
    drivers = "https://www.nvidia.com/drivers"
    if platform == "linux":
        drivers = f"sudo ubuntu-drivers install (Ubuntu), or {drivers}"
    if capability is not None and not any(build.runs_on(capability) for build in BUILDS):
        major, minor = capability
        return [f"No PyTorch that avsseg runs with has kernels for a GPU of compute capability {major}.{minor}"]
    build = _build_for(torch_version, driver, capability)
    install = f"Install PyTorch's CUDA build: {pip_command(torch_version, driver, capability, platform=platform)}"
    if driver is None:
        step = f"Install an NVIDIA driver, none is found: {drivers}"
        return [step, install] if built_for is None else [step]
    update = f"Update the NVIDIA driver, it runs CUDA {driver[0]}.{driver[1]} and"
    if built_for is None or (capability is not None and not _has_kernels(_version(built_for), capability)):
        if driver[0] >= build.cuda[0]:
            return [install]
        return [f"{update} PyTorch {build.name}, the build for this GPU, needs {build.cuda[0]}.0: {drivers}", install]
    if driver[0] < _version(built_for)[0]:
        return [f"{update} this PyTorch needs {built_for}: {drivers}"]
    if visible is not None:
        return [f"Unset CUDA_VISIBLE_DEVICES, it is {visible!r} and may hide the GPU"]
    return ["See what nvidia-smi says: the driver is there but shows no GPU that this PyTorch can use"]


def pip_command(
    torch_version: str, driver: Version | None, capability: Version | None = None, *, platform: str = sys.platform
) -> str:
    """The command that replaces this interpreter's PyTorch by the CUDA build for this GPU.

    It is of the same version, or, where that has no kernels for the GPU, of those that have.
    """
    build = _build_for(torch_version, driver, capability)
    first, end = build.pytorch
    same = first <= _version(torch_version) < end
    wanted = f"torch=={torch_version.split('+')[0]}" if same else f"torch>={_text(first)},<{_text(end)}"
    # without --force-reinstall pip finds the version installed already
    return (
        f"{quoted(sys.executable, platform)} -m pip install --force-reinstall {quoted(wanted, platform)} "
        f"--index-url {PYTORCH_INDEX}{build.name}"
    )


def _build_for(torch_version: str, driver: Version | None, capability: Version | None) -> CudaBuild:
    """The best build for this driver, else for any driver, of those that fit PyTorch and the GPU, else the GPU."""
    version = _version(torch_version)
    able = [build for build in BUILDS if capability is None or build.runs_on(capability)]
    fitting = [build for build in able if build.pytorch[0] <= version < build.pytorch[1]] or able
    major = OLDEST_BUILD.cuda[0] if driver is None else driver[0]
    return next((build for build in fitting if build.cuda[0] <= major), (*fitting, OLDEST_BUILD)[0])


def _has_kernels(cuda: Version, capability: Version) -> bool:
    """Whether PyTorch's build for that CUDA version runs on a GPU; of builds that are not listed, as far as is sure."""
    for build in BUILDS:
        if build.cuda == cuda:
            return build.runs_on(capability)
    return not (cuda < FIRST_OF_BLACKWELL and capability >= BLACKWELL) and not (
        cuda >= NEWEST_BUILD.cuda and capability < NEWEST_BUILD.capability[0]
    )


def _driver(platform: str) -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if platform == "win32" else "libcuda.so.1")


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _version(text: str) -> Version:
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int(minor)
