"""The selective scan of the package mamba-ssm (arXiv 2312.00752), where that imports: on CUDA, for comparison.

It takes one sequence for each direction and channel, so this back end makes the permuted copies that ours do without.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from avsseg.ops.reference import validate_plan_once

INSTALLED = importlib.util.find_spec("mamba_ssm") is not None


def unavailable_reason() -> str:
    """Why mamba-ssm cannot be used here, or an empty string if it can. Imports it if it is installed."""
    if not INSTALLED:
        return (
            'mamba-ssm is not installed: pip install --no-build-isolation "avsseg[mamba-ssm]", on a machine with CUDA'
        )
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _load()[1]


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
    in float32, on a CUDA device.

    16-bit tokens give mamba-ssm u, delta, B and C in 16 bits, as under autocast; its states, and the sum over the
    directions, are float32.

    Raises:
        RuntimeError: mamba-ssm is unavailable, or refuses the sizes (it takes N up to 256 and K * D below 65536).
    """
    validate_plan_once(plan, tokens.shape[1])
    selective_scan_fn, reason = _load()
    if selective_scan_fn is None:
        raise RuntimeError(f"mamba-ssm: {reason}")
    batch, positions, channels = tokens.shape
    directions, length = plan.shape
    rank, states = dt_projs_weight.shape[2], A_logs.shape[1]
    merged = projected.new_zeros(tokens.shape)
    if not plan.numel() or not batch:
        return merged[:, output_from:]
    order = plan.long()
    u = tokens.index_select(1, order.flatten()).view(batch, directions, length, channels)
    u = u.transpose(2, 3).flatten(1, 2)  # (B, K * D, L)
    by_direction = projected.to(tokens.dtype).view(batch, positions, directions, rank + 2 * states).transpose(1, 2)
    rows = order[None, :, :, None].expand(batch, directions, length, rank + 2 * states)
    dt, B, C = torch.split(by_direction.gather(2, rows).transpose(2, 3), [rank, states, states], dim=2)
    delta = (dt_projs_weight.to(tokens.dtype) @ dt).flatten(1, 2)
    y = selective_scan_fn(
        u,
        delta,
        -A_logs.exp(),
        B.contiguous(),
        C.contiguous(),
        Ds,
        delta_bias=dt_projs_bias.flatten(),
        delta_softplus=True,
    )
    y = y.to(merged.dtype).view(batch, directions, channels, length).transpose(2, 3)
    return merged.index_add(1, order.flatten(), y.flatten(1, 2))[:, output_from:]


@cache
def _load() -> tuple[Callable[..., Tensor] | None, str]:
    try:
        # what its releases deprecate is not ours to mend, and where warnings are errors it would not import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a build for another PyTorch or CUDA fails in many ways
        lines = str(error).splitlines()
        return None, f"mamba-ssm does not import: {lines[0] if lines else type(error).__name__}"
    return selective_scan_fn, ""
