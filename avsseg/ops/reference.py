"""The selective scan written in PyTorch: any device, any floating point type, derivatives by autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# Longer chunks save no time and hold more (B, K, steps, N, D) tensors at once.
STEPS_PER_CHUNK = 8

_valid_plans: Any = WeakIdKeyDictionary()


def validate_plan(plan: Tensor, positions: int) -> None:
    """Check that every row of `plan` (K, L) holds distinct indices of `positions` tokens.

    Raises:
        ValueError: an index is outside [0, positions), or appears twice in one direction.
    """
    if plan.numel() == 0:
        return
    if int(plan.min()) < 0 or int(plan.max()) >= positions:
        raise ValueError(f"plan: indices {int(plan.min())}..{int(plan.max())} do not fit a table of {positions} tokens")
    visits = torch.zeros(plan.shape[0], positions, dtype=torch.int32, device=plan.device)
    visits.scatter_add_(1, plan.long(), torch.ones_like(plan, dtype=torch.int32))
    if int(visits.max()) > 1:
        direction = int((visits.amax(dim=1) > 1).nonzero()[0])
        raise ValueError(f"plan: direction {direction} visits a token twice")


def validate_plan_once(plan: Tensor, positions: int) -> None:
    """`validate_plan`, except for a tensor that passed and has not changed since, and while `torch.compile` traces.

    Each check waits for the GPU three times. A model's plans are the same tensors at every call, but a compiled graph
    makes them anew.

    Raises:
        ValueError: an index is outside [0, positions), or appears twice in one direction.
    """
    if torch.compiler.is_compiling():
        return
    state = None if plan.is_inference() else (positions, plan._version)
    if state is None or _valid_plans.get(plan) != state:
        validate_plan(plan, positions)
        if state is not None:
            _valid_plans[plan] = state


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
    """Scan the projected tokens in K directions and add the results up (section III, eq. 1-4).

    Args:
        tokens: (B, P, D) token table in natural order.
        projected: (B, P, K * (R + 2N)), the tokens after x_proj: [dt R | B N | C N] of each direction.
        plan: (K, L) integers, see `avsseg.ops.selective_scan.selective_scan`.
        dt_projs_weight: (K, D, R).
        dt_projs_bias: (K, D).
        A_logs: (K * D, N).
        Ds: (K * D,).
        output_from: first position whose output is wanted.

    Returns:
        (B, P - output_from, D), in the dtype of `tokens`, which all other inputs share.
    """
    if not torch.compiler.is_compiling():
        validate_plan(plan, tokens.shape[1])
    batch, positions, channels = tokens.shape
    directions, length = plan.shape
    rank, states = dt_projs_weight.shape[2], A_logs.shape[1]
    order = plan.long()

    u = tokens.index_select(1, order.flatten()).view(batch, directions, length, channels)
    by_direction = projected.view(batch, positions, directions, rank + 2 * states).transpose(1, 2)
    rows = order[None, :, :, None].expand(batch, directions, length, rank + 2 * states)
    dt, B, C = torch.split(by_direction.gather(2, rows), [rank, states, states], dim=-1)

    A = -A_logs.exp().view(directions, channels, states).transpose(1, 2).unsqueeze(1)
    dt_weight = dt_projs_weight.transpose(1, 2)
    dt_bias = dt_projs_bias.unsqueeze(1)
    hidden = tokens.new_zeros(batch, directions, states, channels)
    outputs = [u[:, :, :0]]
    # Views made by split and unbind share one backward each; indexing one step at a time would make it quadratic in L.
    chunks = zip(*(t.split(STEPS_PER_CHUNK, dim=2) for t in (u, dt, B, C)), strict=True) if length else ()
    for u_chunk, dt_chunk, B_chunk, C_chunk in chunks:
        delta = F.softplus(dt_chunk @ dt_weight + dt_bias)
        decay = (delta.unsqueeze(-2) * A).exp()
        drive = (delta * u_chunk).unsqueeze(-2) * B_chunk.unsqueeze(-1)
        hiddens = []
        for decay_step, drive_step in zip(decay.unbind(2), drive.unbind(2), strict=True):
            hidden = torch.addcmul(drive_step, decay_step, hidden)
            hiddens.append(hidden)
        outputs.append((C_chunk.unsqueeze(-2) @ torch.stack(hiddens, dim=2)).squeeze(-2))
    y = torch.cat(outputs, dim=2) + Ds.view(directions, 1, channels) * u
    merged = tokens.new_zeros(tokens.shape).index_add(1, order.flatten(), y.flatten(1, 2))
    return merged[:, output_from:]
