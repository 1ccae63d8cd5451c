"""Selective scan over index plans: the public operator and the choice of its back end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from avsseg.ops import cpu, mamba_ssm, reference, triton_scan

BACKENDS = ("cpp", "triton", "torch", "mamba-ssm")

_SCANS: dict[str, Callable[..., Tensor]] = {
    "cpp": cpu.scan,
    "triton": triton_scan.scan,
    "torch": reference.scan,
    "mamba-ssm": mamba_ssm.scan,
}

_default_backend = "auto"


def selective_scan(
    tokens: Tensor,
    plan: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    *,
    output_from: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Scan a table of tokens in K orders and add the K results at each token (section III, eq. 1-4).

    With u_l = tokens[:, plan[k, l]] and [dt_l | B_l | C_l] = x_proj_weight[k] u_l, direction k computes

        delta_l = softplus(dt_projs_weight[k] dt_l + dt_projs_bias[k]),   A = -exp(A_logs)
        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l,   h_{-1} = 0
        y_l = <C_l, h_l> + Ds u_l

    and adds y_l to the row of token plan[k, l]. Parameters have the authors' layout. Differentiable in everything but
    `plan`. 16-bit tokens are computed in float32, by "mamba-ssm" from 16-bit u, delta, B and C, and float64 tokens in
    float64.

    Args:
        tokens: (B, P, D) in natural order.
        plan: (K, L) int32 or int64; the indices of a row are distinct.
        x_proj_weight: (K, R + 2N, D), rows [dt R | B N | C N].
        dt_projs_weight: (K, D, R).
        dt_projs_bias: (K, D).
        A_logs: (K * D, N).
        Ds: (K * D,).
        output_from: tokens before it are inputs only; their outputs are neither computed nor returned.
        backend: one of `BACKENDS`, or "auto": the one set by `set_default_backend`, else "cpp" on the CPU, "triton" on
            CUDA unless PyTorch is to be deterministic, and "torch" where these cannot be used and for float64.

    Returns:
        (B, P - output_from, D) in the dtype of `tokens`; rows that no direction visits are 0.

    Raises:
        ValueError: shapes that do not fit, a plan that leaves the table or visits a token twice in one direction, or
            a back end that is unknown or cannot run on this machine or with these tensors.
    """
    _check_shapes(tokens, plan, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds, output_from)
    name = _choose(backend, tokens)
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    # Autocast would run the projection in 16 bits, and the scan amplifies its error by 1 / (1 - decay).
    device = tokens.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        table = tokens.to(dtype)
        projected = table @ x_proj_weight.to(dtype).flatten(0, 1).t()
        out = _SCANS[name](
            # the kernels for GPUs read 16-bit tokens as they are
            *(tokens if name in ("triton", "mamba-ssm") else table, projected, plan),
            *(dt_projs_weight.to(dtype), dt_projs_bias.to(dtype), A_logs.to(dtype), Ds.to(dtype)),
            output_from=output_from,
        )
    return out.to(tokens.dtype)


def available_backends() -> dict[str, str]:
    """Every back end, with the reason why it cannot be used here, or an empty string if it can."""
    return {name: _unavailable_reason(name) for name in BACKENDS}


def automatic_backend(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """What "auto" runs on for tokens of that device and dtype when `set_default_backend` has chosen nothing."""
    if dtype != torch.float64:
        if device.type == "cpu" and not cpu.UNAVAILABLE_REASON:
            return "cpp"
        if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
            return "torch" if triton_scan.unavailable_reason(device) else "triton"
    return "torch"


def set_default_backend(name: str) -> None:
    """Choose what `selective_scan(..., backend="auto")` runs on; "auto" lets every call choose again.

    Raises:
        ValueError: the back end is unknown or cannot run on this machine.
    """
    global _default_backend
    if name != "auto":
        _check_usable(name)
    _default_backend = name


def _unavailable_reason(name: str, device: torch.device | None = None) -> str:
    if name == "cpp":
        return cpu.UNAVAILABLE_REASON
    if name == "triton":
        return triton_scan.unavailable_reason(device)
    return mamba_ssm.unavailable_reason() if name == "mamba-ssm" else ""


def _check_usable(name: str, device: torch.device | None = None) -> None:
    if name not in BACKENDS:
        raise ValueError(f"unknown scan back end {name!r}: choose auto, {', '.join(BACKENDS)}")
    reason = _unavailable_reason(name, device)
    if reason:
        raise ValueError(f"scan back end {name!r}: {reason}")


def _choose(backend: str, tokens: Tensor) -> str:
    name = _default_backend if backend == "auto" else backend
    if name == "auto":
        return automatic_backend(tokens.device, tokens.dtype)
    _check_usable(name, tokens.device)
    if name != "torch":
        place = "cpu" if name == "cpp" else "cuda"
        interpreted = name == "triton" and triton_scan.INTERPRETED
        if tokens.dtype == torch.float64 or not (tokens.device.type == place or interpreted):
            where = "the CPU" if name == "cpp" else "a CUDA device"
            given = f"{tokens.dtype} on {tokens.device}"
            raise ValueError(f"scan back end {name!r} takes float32 or 16-bit tokens on {where}, not {given}")
    return name


def _check_shapes(
    tokens: Tensor,
    plan: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    output_from: int,
) -> None:
    if tokens.ndim != 3 or not tokens.is_floating_point():
        raise ValueError(f"tokens must be (B, P, D) floating point, not {tuple(tokens.shape)} {tokens.dtype}")
    if plan.ndim != 2 or plan.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"plan must be (K, L) int32 or int64, not {tuple(plan.shape)} {plan.dtype}")
    if dt_projs_weight.ndim != 3 or A_logs.ndim != 2:
        raise ValueError("dt_projs_weight must be (K, D, R) and A_logs (K * D, N)")
    directions, channels = plan.shape[0], tokens.shape[2]
    rank, states = dt_projs_weight.shape[2], A_logs.shape[1]
    expected = {
        "x_proj_weight": (x_proj_weight, (directions, rank + 2 * states, channels)),
        "dt_projs_weight": (dt_projs_weight, (directions, channels, rank)),
        "dt_projs_bias": (dt_projs_bias, (directions, channels)),
        "A_logs": (A_logs, (directions * channels, states)),
        "Ds": (Ds, (directions * channels,)),
    }
    for name, (parameter, shape) in expected.items():
        if parameter.shape != shape:
            raise ValueError(f"{name} must be {shape} for these tokens and this plan, not {tuple(parameter.shape)}")
    if not 0 <= output_from <= tokens.shape[1]:
        raise ValueError(f"output_from {output_from} is outside the table of {tokens.shape[1]} tokens")
