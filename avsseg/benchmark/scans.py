"""The back ends of the selective scan, side by side on one shape."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from avsseg.benchmark.complexity import scan_flops
from avsseg.benchmark.timing import Listener, ignore, time_in_turn
from avsseg.ops.selective_scan import available_backends, selective_scan

DEVICE_TYPES = {"cpp": ("cpu",), "triton": ("cuda",), "mamba-ssm": ("cuda",)}  # the PyTorch form runs on any


@dataclass(frozen=True)
class ScanShape:
    """Tokens (B, L, D), K directions, N states, R the rank of the step size: all of a Temporal Mamba block."""

    batch: int
    directions: int
    length: int
    channels: int
    states: int
    rank: int

    def __str__(self) -> str:
        return (
            f"B {self.batch} K {self.directions} L {self.length} D {self.channels} N {self.states} R {self.rank}, "
            "float32, forward"
        )

    @property
    def flops(self) -> int:
        return scan_flops(self.batch, self.directions, self.length, self.channels, self.states, self.rank)


@dataclass(frozen=True)
class ScanRow:
    """One back end: seconds of each timed call, or why it cannot be used on this device."""

    name: str
    times_s: tuple[float, ...] = ()
    reason: str = ""

    @property
    def latency_s(self) -> float:
        """Median seconds; NaN without times."""
        return statistics.median(self.times_s) if self.times_s else float("nan")


def temporal_mamba_shape(size: int, frames: int) -> ScanShape:
    """The scan of the Temporal Mamba block in the encoder of the paper's models, at an input side and T.

    The three scales of strides 8, 16 and 32 of a padded frame, over all frames: 5145 tokens at 224 and T = 5.
    """
    side = -(-size // 32)
    length = frames * sum((side * scale) ** 2 for scale in (4, 2, 1))
    return ScanShape(batch=1, directions=8, length=length, channels=512, states=16, rank=16)


def scan_problem(shape: ScanShape) -> list[Tensor]:
    """Arguments of `selective_scan`: delta from 1e-3 to 1e-1, as after initialisation; orders forth, back, strided."""
    K, L, D, N, R = shape.directions, shape.length, shape.channels, shape.states, shape.rank
    generator = torch.Generator().manual_seed(0)
    delta = torch.rand(K, D, generator=generator).mul(4.6).sub(6.9).exp()
    forward = torch.arange(L)
    strided = torch.cat([forward[start::7] for start in range(7)])
    plan = torch.stack([forward, forward.flip(0), strided, strided.flip(0)]).repeat(K // 4, 1)
    return [
        torch.randn(shape.batch, L, D, generator=generator),
        plan,
        torch.randn(K, R + 2 * N, D, generator=generator) * D**-0.5,
        torch.randn(K, D, R, generator=generator) * R**-0.5 * 0.1,
        delta + (-torch.expm1(-delta)).log(),
        torch.arange(1, N + 1).log().repeat(K * D, 1),
        torch.ones(K * D),
    ]


def compare_scans(shape: ScanShape, device: torch.device, repeats: int, listener: Listener = ignore) -> list[ScanRow]:
    """Every back end in turn, after one call that is not timed; those that cannot run here say why."""
    reasons = {name: _reason(name, reason, device) for name, reason in available_backends().items()}
    problem = [tensor.to(device) for tensor in scan_problem(shape)]
    calls = {name: functools.partial(_scan, problem, name) for name, reason in reasons.items() if not reason}
    for name, call in calls.items():
        listener(f"first call of {name}")  # compiles kernels
        call()
    times = time_in_turn(calls, repeats, device, listener)
    return [ScanRow(name, times.get(name, ()), reason) for name, reason in reasons.items()]


def _reason(name: str, reason: str, device: torch.device) -> str:
    if not reason and device.type not in DEVICE_TYPES.get(name, (device.type,)):
        return f"does not run on {device.type}"
    return reason


@torch.inference_mode()
def _scan(problem: list[Tensor], name: str) -> None:
    selective_scan(*problem, backend=name)
