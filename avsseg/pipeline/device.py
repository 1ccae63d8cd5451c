"""What a model runs on: the device, its number format, and how kernels lie in its memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from avsseg.errors import EnvironmentFault, UsageError
from avsseg.pipeline.options import Precision

logger = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA, then Apple's MPS, then the CPU, the first that can be used.

    Raises:
        EnvironmentFault: this machine does not have it, or PyTorch cannot use it.
        UsageError: there is no device of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cuda" and (fault := cuda_fault()):
            logger.warning("%s: the CPU is used. `avsseg info` says what to install", fault)
            name = "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is unknown; choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        number = device.index or 0
        absent = number >= torch.cuda.device_count()
        if fault := cuda_fault(0 if absent else number):
            raise EnvironmentFault(f"device {name} cannot be used: {fault}. Use --device cpu")
        if absent:
            raise EnvironmentFault(
                f"device {name} is not there: PyTorch finds {torch.cuda.device_count()} NVIDIA GPU(s)"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentFault("device mps is not there: it needs a Mac with Apple silicon. Use --device cpu")
    return device


def cuda_fault(number: int = 0) -> str:
    """Why CUDA cannot be used on the GPU of that number; "" when it can."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return f"PyTorch {torch.__version__} was built without CUDA"
        return f"PyTorch {torch.__version__} finds no NVIDIA GPU with a working driver"
    if torch.version.hip is None and torch.cuda.device_count() > number:
        capability = torch.cuda.get_device_capability(number)
        if not has_kernels(torch.cuda.get_arch_list(), capability):
            major, minor = capability
            return f"PyTorch {torch.__version__} has no kernels for this GPU, of compute capability {major}.{minor}"
    return ""


def has_kernels(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU of that compute capability runs kernels compiled for these architectures, as NVIDIA defines it.

    `sm_XY` runs from X.Y on within major version X, `compute_XY` on all GPUs from X.Y on; `sm_XYa` on X.Y alone.
    Without a list there is nothing to judge by.
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            return True  # a name that is none of these
        built = int(digits[:-1]), int(digits[-1])
        if number.endswith("a"):
            fits = built == capability
        elif kind == "compute":
            fits = built <= capability
        else:
            fits = built[0] == capability[0] and built <= capability
        if fits:
            return True
    return not architectures


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """ "auto" is fp32, and on CUDA bf16, or fp16 where the device has no bf16."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    # NVIDIA's older GPUs only emulate it, which is_bf16_supported counts too
    native = torch.cuda.is_bf16_supported() if torch.version.hip else torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp16"


def channels_last(model: torch.nn.Module) -> None:
    """Lays kernels of convolutions as tensor cores and oneDNN read them, so that their results lie like that too."""
    if next(model.parameters()).device.type != "mps":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
