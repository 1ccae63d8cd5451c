"""The selective scan in C++ (kernels/), called through its C interface and registered as a PyTorch operator."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.errors import EnvironmentFault, printable
from avsseg.ops.registration import checkpoints_shape, keeps_states, register

LIBRARY_PATH = Path(__file__).with_name("libavsseg_scan.so")
CAPABILITIES = ("portable", "avx2", "avx512")
CAPABILITY_VARIABLE = "AVSSEG_CPU_CAPABILITY"

# Steps between two saved states: 32 is no faster, and takes twice the memory.
CHECKPOINT_INTERVAL = 64

_ABI_VERSION = 2
_CHANNEL_PADDING = 16
_LOG2_E = 1.4426950408889634
_PLAN_OUT_OF_RANGE, _PLAN_REPEATS = 1, 2
_ERRORS = {3: "out of memory", 4: "instruction set not supported by this processor"}
_INTEGERS = (
    *("batch", "positions", "channels", "directions", "length", "states", "rank"),
    *("output_from", "checkpoint_interval", "threads"),
)
_POINTERS = ("tokens", "projected", "plan", "log2_decay", "dt_weight", "dt_bias", "skip")


class _Scan(ctypes.Structure):
    """`avsseg_scan` of kernels/selective_scan.h."""

    _fields_ = tuple(
        [*((name, ctypes.c_int64) for name in _INTEGERS), *((name, ctypes.c_void_p) for name in _POINTERS)]
    )


def load_library(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The compiled scan at `path` and an empty string, or None and the reason why it cannot be used."""
    if not path.is_file():
        checkout = path.parents[2]
        if (checkout / "pyproject.toml").is_file():
            # an installed avsseg may well be there, but Python looks into the current folder first
            return None, (
                f"not compiled: Python reads avsseg from {printable(checkout)}, where {path.name} is missing; start it "
                "in another folder to use the installed one, or `pip install -e .` there with a C++17 compiler"
            )
        return None, f"not compiled: {path.name} is missing; reinstall avsseg where a C++17 compiler is installed"
    try:
        library = ctypes.CDLL(str(path))
        found = library.avsseg_scan_abi()
    except (OSError, AttributeError) as error:
        return None, f"cannot be loaded: {error}"
    if found != _ABI_VERSION:
        return None, f"{path.name} has interface {found}, this avsseg needs {_ABI_VERSION}; reinstall avsseg"
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.avsseg_scan_check_plan.argtypes = [pointer, integer, integer, integer]
    library.avsseg_scan_forward.argtypes = [pointer, ctypes.c_int, pointer, pointer]
    library.avsseg_scan_backward.argtypes = [pointer, ctypes.c_int, *[pointer] * 5]
    return library, ""


# Loaded with the module, not on first use, so that torch.compile sees a constant.
_LIBRARY, UNAVAILABLE_REASON = load_library(LIBRARY_PATH)


def capability() -> str:
    """The instruction set in use: the best of `CAPABILITIES`, or a lower one named by AVSSEG_CPU_CAPABILITY.

    Raises:
        RuntimeError: the C++ scan is unavailable.
        EnvironmentFault: the variable names an unknown instruction set, or one that this processor does not have.
    """
    best = _library().avsseg_scan_capability()
    name = os.environ.get(CAPABILITY_VARIABLE) or CAPABILITIES[best]
    if name not in CAPABILITIES[: best + 1]:
        has = ", ".join(CAPABILITIES[: best + 1])
        raise EnvironmentFault(
            f"{CAPABILITY_VARIABLE}={name}: this processor has {has}. Correct the variable or unset it"
        )
    return name


def scan(
    tokens: Tensor,
    projected: Tensor,
    plan: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    output_from: int,
) -> Tensor:
    """The same function as `avsseg.ops.reference.scan`, for float32 tensors on the CPU."""
    inputs = (tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    return _selective_scan(*inputs, output_from, keeps_states(inputs))[0]


def _library() -> ctypes.CDLL:
    if _LIBRARY is None:
        raise RuntimeError(f"the C++ selective scan: {UNAVAILABLE_REASON}")
    return _LIBRARY


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the C++ selective scan failed: {_ERRORS[status]}")


def _pack(parameter: Tensor) -> Tensor:
    """(..., D) with D padded to whole vectors."""
    return F.pad(parameter, (0, -parameter.shape[-1] % _CHANNEL_PADDING)).contiguous()


class _Problem:
    """Owns the packed arrays that an `avsseg_scan` points to."""

    def __init__(
        self,
        tokens: Tensor,
        projected: Tensor,
        plan: Tensor,
        dt_projs_weight: Tensor,
        dt_projs_bias: Tensor,
        A_logs: Tensor,
        Ds: Tensor,
        output_from: int,
    ) -> None:
        batch, positions, channels = tokens.shape
        directions, length = plan.shape
        states, rank = A_logs.shape[1], dt_projs_weight.shape[2]
        log2_decay = A_logs.exp() * -_LOG2_E
        self.arrays = (
            tokens.contiguous(),
            projected.contiguous(),
            plan.to(torch.int64).contiguous(),
            _pack(log2_decay.view(directions, channels, states).transpose(1, 2)),
            _pack(dt_projs_weight.transpose(1, 2)),
            _pack(dt_projs_bias),
            _pack(Ds.view(directions, channels)),
        )
        self.padded_channels = channels + -channels % _CHANNEL_PADDING
        self.struct = _Scan(
            *(batch, positions, channels, directions, length, states, rank),
            *(output_from, CHECKPOINT_INTERVAL, torch.get_num_threads()),
            *(array.data_ptr() for array in self.arrays),
        )
        status = _library().avsseg_scan_check_plan(self.arrays[2].data_ptr(), directions, length, positions)
        if status == _PLAN_OUT_OF_RANGE:
            raise ValueError(f"plan: an index is outside the table of {positions} tokens")
        if status == _PLAN_REPEATS:
            raise ValueError("plan: a direction visits a token twice")
        _check(status)

    def call(self, function: Callable[..., int], *arrays: Tensor | None) -> None:
        pointers = (None if array is None else array.data_ptr() for array in arrays)
        _check(function(ctypes.byref(self.struct), CAPABILITIES.index(capability()), *pointers))


def _forward(
    tokens: Tensor,
    projected: Tensor,
    plan: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    output_from: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    problem = _Problem(tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds, output_from)
    batch, positions, channels = tokens.shape
    out = tokens.new_zeros(batch, positions - output_from, channels)
    kept = checkpoints_shape(tokens, plan, A_logs.shape[1], CHECKPOINT_INTERVAL) if keep_states else (0,)
    checkpoints = tokens.new_empty(kept)
    problem.call(_library().avsseg_scan_forward, out, checkpoints if keep_states else None)
    return out, checkpoints


def _backward(
    tokens: Tensor,
    projected: Tensor,
    plan: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    output_from: int,
    checkpoints: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, ...]:
    problem = _Problem(tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds, output_from)
    directions, channels, rank = dt_projs_weight.shape
    states = A_logs.shape[1]
    grad_tokens = tokens.new_zeros(tokens.shape)
    grad_projected = tokens.new_zeros(projected.shape)
    packed = tokens.new_empty(directions, states + rank + 2, problem.padded_channels)
    problem.call(
        _library().avsseg_scan_backward, checkpoints, grad_out.contiguous(), grad_tokens, grad_projected, packed
    )
    grad_A, grad_dt_weight, grad_dt_bias, grad_skip = torch.split(packed[..., :channels], [states, rank, 1, 1], dim=1)
    return (
        grad_tokens,
        grad_projected,
        grad_dt_weight.transpose(1, 2).contiguous(),
        grad_dt_bias.reshape(dt_projs_bias.shape).clone(),
        (grad_A.transpose(1, 2).reshape(A_logs.shape) * -A_logs.exp()).contiguous(),
        grad_skip.reshape(Ds.shape).clone(),
    )


_selective_scan = register("avsseg::selective_scan", "cpu", _forward, _backward, CHECKPOINT_INTERVAL)
