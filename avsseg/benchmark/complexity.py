"""Parameters and floating point operations of a model, the selective scans' included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avsseg.model.avs_mamba import AvsMamba
from avsseg.ops import selective_scan as scan_module
from avsseg.pipeline.options import Precision
from avsseg.pipeline.scoring import AUTOCAST_DTYPES

CONVENTION = (
    "two a multiply-add of matrices, convolutions and attention; B K L D (9 N + 1 + 2 R) a selective scan; "
    "element-wise arithmetic elsewhere counts nothing"
)


@dataclass(frozen=True)
class Complexity:
    """What one forward pass of one clip takes in one number format, whatever it runs on.

    `flops` counts as `CONVENTION` says and includes `scan_flops`, those inside the scan operator.
    """

    parameters: int
    backbone_parameters: int
    flops: int
    scan_flops: int


def scan_flops(batch: int, directions: int, length: int, channels: int, states: int, rank: int) -> int:
    """Operations of K selective scans: B K L D (9 N + 1 + 2 R).

    9 N + 1 a step and channel is the count of the VMamba paper (arXiv 2401.10166, `flops_selective_scan_fn` of its
    code): decay, drive, recurrence and read-out of N states, and the skip. 2 R is the projection of the step size from
    rank R, which its code counts as a matrix product and ours does inside the operator. The projection x_proj before it
    is an ordinary matrix product, counted as such.
    """
    return batch * directions * length * channels * (9 * states + 1 + 2 * rank)


@contextlib.contextmanager
def counted_scans() -> Iterator[list[int]]:
    """In this block no scan is computed: each gives zeros, and its operations are appended to the yielded list.

    A flop counter sees nothing of the compiled operators, and of the PyTorch form only its matrix products; so the
    count would depend on the back end. Not for several threads.
    """
    counts: list[int] = []
    back_ends = scan_module._SCANS

    def count(
        tokens: Tensor,
        projected: Tensor,
        plan: Tensor,
        dt_projs_weight: Tensor,
        dt_projs_bias: Tensor,
        A_logs: Tensor,
        Ds: Tensor,
        output_from: int = 0,
    ) -> Tensor:
        (B, P, D), (K, L) = tokens.shape, plan.shape
        counts.append(scan_flops(B, K, L, D, A_logs.shape[1], dt_projs_weight.shape[2]))
        return tokens.new_zeros(B, P - output_from, D)

    kept = dict(back_ends)
    back_ends.update(dict.fromkeys(kept, count))
    try:
        yield counts
    finally:
        back_ends.update(kept)


@torch.no_grad()
def complexity(model: AvsMamba, frames: Tensor, log_mel: Tensor, precision: Precision = "fp32") -> Complexity:
    """The complexity of a forward pass on frames (1, T, 3, H, W) and log_mel (1, T, 1, 96, 64), float32.

    In half precision the mask head of the paper computes what it reads from a table in float32.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    autocast = torch.autocast(frames.device.type, dtype=dtype, enabled=dtype is not None)
    # of the attention kernels the counter knows only some; the plain form is made of matrix products
    with autocast, counted_scans() as scans, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(frames, log_mel)
    return Complexity(
        parameter_count(model),
        parameter_count(model.visual_backbone),
        counter.get_total_flops() + sum(scans),
        sum(scans),
    )


def parameter_count(module: nn.Module) -> int:
    """The trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
