"""A selective scan as a PyTorch operator: one schema, shape function and derivative for every compiled back end.

`torch.compile` and `torch.export` see one opaque operator whose outputs have known shapes; autograd calls the back
end's own backward, which starts from the states that the forward kept every few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_INPUTS = (
    "Tensor tokens, Tensor projected, Tensor plan, "
    "Tensor dt_projs_weight, Tensor dt_projs_bias, Tensor A_logs, Tensor Ds"
)

Operator = Callable[..., tuple[Tensor, Tensor]]


def register(
    name: str,
    device_types: str | Sequence[str],
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, ...]],
    checkpoint_interval: int,
) -> Operator:
    """The operator `name` (as "avsseg::..."), and `name`_backward, from two functions that compute them.

    Args:
        name: namespace and name.
        device_types: where the functions can run, as "cpu".
        forward: takes the inputs of `avsseg.ops.reference.scan` and a bool, keep_states; returns the output
            (B, P - output_from, D) in the dtype of the tokens, and the states as `checkpoints_shape` says, or an empty
            float32 tensor if they are not kept.
        backward: takes the inputs, the states and the gradient of the output; returns the gradients of tokens,
            projected, dt_projs_weight, dt_projs_bias, A_logs and Ds, each in the dtype of its input.
        checkpoint_interval: steps between two states.
    """
    operator = torch.library.custom_op(
        name,
        forward,
        mutates_args=(),
        device_types=device_types,
        schema=f"({_INPUTS}, int output_from, bool keep_states) -> (Tensor, Tensor)",
    )
    operator_backward = torch.library.custom_op(
        f"{name}_backward",
        backward,
        mutates_args=(),
        device_types=device_types,
        schema=f"({_INPUTS}, int output_from, Tensor checkpoints, Tensor grad_out)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    )

    def forward_shapes(
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
        batch, positions, channels = tokens.shape
        out = tokens.new_empty(batch, positions - output_from, channels)
        kept = checkpoints_shape(tokens, plan, A_logs.shape[1], checkpoint_interval) if keep_states else (0,)
        return out, tokens.new_empty(kept, dtype=torch.float32)

    def backward_shapes(
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
        like = (tokens, projected, dt_projs_weight, dt_projs_bias, A_logs, Ds)
        return tuple(t.new_empty(t.shape) for t in like)

    def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, output_from, keep_states = inputs
        ctx.output_from, ctx.keep_states = output_from, keep_states
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    def differentiate(ctx: Any, grad_out: Tensor | None, _grad_checkpoints: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 9
        if not ctx.keep_states:
            raise RuntimeError("selective_scan was called without keep_states, so it has no gradient")
        *tensors, checkpoints = ctx.saved_tensors
        grads = operator_backward(*tensors, ctx.output_from, checkpoints, grad_out)
        return grads[0], grads[1], None, *grads[2:], None, None

    operator.register_fake(forward_shapes)
    operator_backward.register_fake(backward_shapes)
    operator.register_autograd(differentiate, setup_context=save_for_backward)
    return operator


def checkpoints_shape(tokens: Tensor, plan: Tensor, states: int, interval: int) -> tuple[int, ...]:
    """(B, K, ceil(L / interval), N, D): the state before each `interval`-th step."""
    batch, _, channels = tokens.shape
    directions, length = plan.shape
    return batch, directions, -(-length // interval), states, channels


def keeps_states(inputs: Sequence[Tensor]) -> bool:
    """Whether a call with these inputs will need the states for a gradient."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
