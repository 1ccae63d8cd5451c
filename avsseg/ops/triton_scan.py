"""The selective scan in Triton (`triton_forward`, `triton_backward`), registered as a PyTorch operator.

It runs on CUDA devices, and with TRITON_INTERPRET=1 on CPU tensors too, in Triton's interpreter: for tests, and
thousands of times slower. Programs add to the same rows in any order, so results differ in their last bits from run to
run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avsseg.ops.reference import validate_plan_once
from avsseg.ops.registration import checkpoints_shape, keeps_states, register

# Steps between two saved states, and of one chunk.
CHECKPOINT_INTERVAL = 64

# Not tuned: no GPU was there to measure on.
CHANNELS_PER_PROGRAM = 32
WARPS = 1

# Programs that keep a large GPU busy: 132 multiprocessors, 16 warps each. With fewer, chunks run side by side.
ENOUGH_PROGRAMS = 2048
# Chunks that the backward works on at a time: each has its states in memory, 128 KiB for N = 16, and its kernel takes
# 238 registers (sm_90), so that eight warps fit a multiprocessor.
BACKWARD_PROGRAMS = 1024

LOWEST_CAPABILITY = (7, 0)  # of the GPUs that Triton compiles for

INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

_LOG2_E = 1.4426950408889634


def unavailable_reason(device: torch.device | None = None) -> str:
    """Why the Triton scan cannot be used on a CUDA device, or an empty string if it can. Imports Triton on CUDA.

    Without a device, or with one of another type, it is CUDA's current device that is asked about.
    """
    if not INSTALLED:
        return "Triton is not installed; it comes with PyTorch's CUDA builds, or: pip install triton"
    # Dynamo cannot trace what follows, and what it compiles for CUDA asks the same of the device
    if INTERPRETED or torch.compiler.is_dynamo_compiling():
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device"
    index = device.index if device is not None and device.type == "cuda" else None
    return _launch_fault(torch.cuda.current_device() if index is None else index)


@cache
def _launch_fault(index: int) -> str:
    """Why Triton cannot compile and start kernels on that CUDA device, or an empty string if it can."""
    try:
        import triton  # noqa: F401
    except Exception as error:  # a build for another PyTorch or Python fails in many ways
        lines = str(error).splitlines()
        return f"Triton does not import: {lines[0] if lines else type(error).__name__}"
    if torch.version.hip is None:
        found = torch.cuda.get_device_capability(index)
        if found < LOWEST_CAPABILITY:
            needed, has = (".".join(map(str, capability)) for capability in (LOWEST_CAPABILITY, found))
            return f"Triton needs compute capability {needed}, {torch.cuda.get_device_name(index)} has {has}"
    # Triton's wheels for Windows bring both
    return "" if sys.platform == "win32" else _build_fault()


def _build_fault() -> str:
    """What Triton lacks to compile its launcher, which it does in C with Python's headers, or an empty string."""
    chosen = os.environ.get("CC")
    if not any(map(shutil.which, ("gcc", "clang") if chosen is None else (chosen,))):
        if chosen is not None:
            return f"Triton's C compiler is missing, CC is {chosen!r}: set it to the path of one or unset it"
        return "Triton needs a C compiler, and neither gcc nor clang is found: sudo apt install gcc, or set CC to one"
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme of that name has no headers
    folder = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    if not Path(folder, "Python.h").is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Triton needs Python's headers, and Python.h is not in {folder}: sudo apt install python{version}-dev"
    return ""


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
    """The same function as `avsseg.ops.reference.scan`, for tokens in float32, float16 or bfloat16 and everything else
    in float32. States and sums are float32."""
    validate_plan_once(plan, tokens.shape[1])
    inputs = (tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    return _selective_scan(*inputs, output_from, keeps_states(inputs))[0]


class _Launcher:
    """Sizes and packed arrays of one problem, as the kernels take them."""

    def __init__(
        self,
        tokens: Tensor,
        projected: Tensor,
        plan: Tensor,
        dt_projs_weight: Tensor,
        dt_projs_bias: Tensor,
        A_logs: Tensor,
        Ds: Tensor,
    ) -> None:
        self.device = tokens.device
        self.batch, self.positions, self.channels = tokens.shape
        self.directions, self.length = plan.shape
        self.states, self.rank = A_logs.shape[1], dt_projs_weight.shape[2]
        self.chunks = -(-self.length // CHECKPOINT_INTERVAL)
        self.block = CHANNELS_PER_PROGRAM
        # programs of one span of steps
        self.programs = self.batch * self.directions * -(-self.channels // self.block)
        self.side_by_side = self.chunks > 1 and 0 < self.programs < ENOUGH_PROGRAMS
        self.tokens, self.projected, self.plan = tokens.contiguous(), projected.contiguous(), plan.contiguous()
        decay = A_logs.exp() * -_LOG2_E
        self.decay = decay.view(self.directions, self.channels, self.states).transpose(1, 2).contiguous()
        self.dt_weight = dt_projs_weight.transpose(1, 2).contiguous()
        self.dt_bias, self.skip = dt_projs_bias.contiguous(), Ds.contiguous()

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self.decay, self.dt_weight, self.dt_bias

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.positions, self.directions, self.channels, self.length, self.chunks

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def launch(self, kernel: Any, spans: int, *arguments: object, **constants: object) -> None:
        """`spans` programs for each batch element, direction and block of channels."""
        on_device: AbstractContextManager[Any] = (
            torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        )
        with on_device:
            # Triton 3.9 warns unless fp fusion is named
            kernel[(spans * self.programs,)](
                *arguments, **constants, D_BLOCK=self.block, num_warps=WARPS, enable_fp_fusion=True
            )

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"N": self.states, "N_BLOCK": _power_of_two(self.states)}

    @property
    def step_sizes(self) -> dict[str, int]:
        rank = {"R": self.rank, "R_BLOCK": _power_of_two(self.rank)}
        return {**self.state_sizes, **rank, "CHUNK": CHECKPOINT_INTERVAL}


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


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
    problem = _Launcher(tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    batch, positions, channels = tokens.shape
    out = problem.zeros(batch, positions - output_from, channels)
    kept = checkpoints_shape(tokens, plan, problem.states, CHECKPOINT_INTERVAL)
    starts = problem.new(*kept if keep_states or problem.side_by_side else (0,))
    if problem.programs and problem.length:
        from avsseg.ops import triton_forward as kernels  # imports Triton

        inputs = (problem.tokens, problem.projected, problem.plan, *problem.parameters)
        if problem.side_by_side:
            sums = problem.new(*kept[:3], channels)
            problem.launch(
                kernels.chunk_ends, problem.chunks - 1, *inputs, starts, sums, *problem.sizes, **problem.step_sizes
            )
            problem.launch(
                kernels.carry_states,
                1,
                *(starts, sums, problem.decay, problem.directions, channels, problem.chunks),
                **problem.state_sizes,
            )
        problem.launch(
            kernels.outputs,
            problem.chunks if problem.side_by_side else 1,
            *(*inputs, problem.skip, starts, out, *problem.sizes, output_from),
            **problem.step_sizes,
            SIDE_BY_SIDE=problem.side_by_side,
            KEEP=keep_states,
        )
    return out.to(tokens.dtype), starts if keep_states else problem.new(0)


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
    problem = _Launcher(tokens, projected, plan, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    batch, directions, channels, states = problem.batch, problem.directions, problem.channels, problem.states
    lanes = min(problem.chunks, max(1, BACKWARD_PROGRAMS // problem.programs)) if problem.side_by_side else 1
    grad_tokens, grad_projected = problem.zeros(*tokens.shape), problem.zeros(*projected.shape)
    grad_parameters = problem.zeros(batch * lanes, directions, states + problem.rank + 2, channels)
    if problem.programs and problem.length:
        from avsseg.ops import triton_backward as kernels

        grad_out = grad_out.contiguous()
        grad_ends = problem.new(*checkpoints.shape if problem.side_by_side else (0,))
        if problem.side_by_side:
            sums = problem.new(*checkpoints.shape[:3], channels)
            problem.launch(
                kernels.chunk_grads,
                problem.chunks - 1,
                *(problem.tokens, problem.projected, problem.plan, *problem.parameters, grad_out, grad_ends, sums),
                *(*problem.sizes, output_from),
                **problem.step_sizes,
            )
            problem.launch(
                kernels.carry_grads,
                1,
                *(grad_ends, sums, problem.decay, directions, channels, problem.chunks),
                **problem.state_sizes,
            )
        history = problem.new(
            lanes * problem.programs, CHECKPOINT_INTERVAL, problem.state_sizes["N_BLOCK"], problem.block
        )
        problem.launch(
            kernels.gradients,
            lanes,
            *(problem.tokens, problem.projected, problem.plan, *problem.parameters, problem.skip, checkpoints),
            *(grad_out, grad_ends, history, grad_tokens, grad_projected, grad_parameters),
            *(*problem.sizes, lanes, output_from),
            **problem.step_sizes,
            SIDE_BY_SIDE=problem.side_by_side,
        )
    grad_A, grad_dt_weight, grad_dt_bias, grad_skip = grad_parameters.sum(dim=0).split(
        [states, problem.rank, 1, 1], dim=1
    )
    return (
        grad_tokens.to(tokens.dtype),
        grad_projected,
        grad_dt_weight.transpose(1, 2).contiguous(),
        grad_dt_bias.reshape(dt_projs_bias.shape).clone(),
        (grad_A.transpose(1, 2).reshape(A_logs.shape) * -A_logs.exp()).contiguous(),
        grad_skip.reshape(Ds.shape).clone(),
    )


_selective_scan = register("avsseg::selective_scan_triton", ("cuda", "cpu"), _forward, _backward, CHECKPOINT_INTERVAL)
