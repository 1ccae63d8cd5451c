"""What a step changes weights by: AdamW's groups, the learning rate over a run, and the average that follows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# log-decays and skips of a scan must not be pulled towards 0: there a state never forgets; Vim's recipe spares its
# embeddings too
NO_DECAY = ("A_logs", "Ds", "dt_projs_bias", "A_log", "A_b_log", "pos_embed", "cls_token")


def parameter_groups(
    module: nn.Module, learning_rate: float, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """AdamW's groups: matrices and kernels decay, everything of fewer axes and NO_DECAY does not.

    `scales` maps a prefix of parameter names to a factor on the learning rate (a pretrained encoder's, say).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY else 0.0
        scale = next((s for prefix, s in (scales or {}).items() if name.startswith(prefix)), 1.0)
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def rate_factor(step: int, progress: float, *, warmup_steps: int, final_fraction: float) -> float:
    """Of the learning rate at a step, counted from 0, and at a `progress` of the run from 0 to 1.

    It rises over the first `warmup_steps` and falls along half a cosine to `final_fraction`; one of 1 keeps it level.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (final_fraction + (1 - final_fraction) * cosine)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, *, decay: float, step: int) -> None:
    """Moves an average of the weights of a module a step towards it; what is no number of floating point is copied."""
    # the average of the first steps must not be of the random start
    decay = min(decay, (step + 1) / (step + 10)) if decay else 0.0
    sources: dict[str, Tensor] = module.state_dict()
    averages: dict[str, Tensor] = average.state_dict()
    following = [name for name, tensor in averages.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([averages[n] for n in following], [sources[n] for n in following], 1 - decay)
    for name in averages.keys() - set(following):
        averages[name].copy_(sources[name])
