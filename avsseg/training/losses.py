"""Losses over annotated frames: dice and binary cross-entropy (S4, MS3), cross-entropy over classes (AVSS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_OFFSET = 0.001
UNKNOWN = 255


def dice_loss(logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """1 - 2 sum(p g) / (sum(p^2) + 0.001 + sum(g^2) + 0.001) a frame, p = sigmoid(logits), averaged over frames.

    logits and target (B, T, H, W), target 0..1; annotated (B, T) bool, or weights of 0 to 1, None for all. The squares
    in the denominator are the authors'. A frame without truth costs 1 and has no gradient: `bce_loss` is what keeps it
    empty.
    Gives 0 if no frame is annotated.
    """
    probability = logits.sigmoid().flatten(2)
    truth = target.to(probability).flatten(2)
    overlap = (probability * truth).sum(-1)
    size = probability.square().sum(-1) + truth.square().sum(-1) + 2 * DICE_OFFSET
    return _mean_over_frames(1 - 2 * overlap / size, annotated)


def bce_loss(logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, averaged over pixels and then over annotated frames; shapes as in `dice_loss`."""
    each = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return _mean_over_frames(each.flatten(2).mean(-1), annotated)


def mask_loss(
    layer_logits: Sequence[Tensor],
    target: Tensor,
    annotated: Tensor | None = None,
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    layer_weight: float = 1.0,
) -> Tensor:
    """Dice plus BCE of the prediction and, times `layer_weight`, of every earlier decoder layer (deep supervision).

    layer_logits: (B, T, 1, H, W) a layer, the prediction last; target (B, T, H, W).
    """
    total = torch.zeros((), device=target.device)
    for index, logits in enumerate(layer_logits):
        mask = logits.squeeze(2)
        loss = dice_weight * dice_loss(mask, target, annotated) + bce_weight * bce_loss(mask, target, annotated)
        total = total + loss * (1.0 if index == len(layer_logits) - 1 else layer_weight)
    return total


def semantic_loss(
    layer_logits: Sequence[Tensor],
    target: Tensor,
    annotated: Tensor | None = None,
    *,
    binary: bool = False,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    layer_weight: float = 1.0,
) -> Tensor:
    """Cross-entropy plus dice of what is not background.

    Softmax cross-entropy is what the authors train; `binary` is what the paper says: each class against the rest.

    layer_logits: (B, T, K, H, W) a layer, the prediction last; target (B, T, H, W) class index, 255 left out.
    `bce_weight` is the cross-entropy's.
    """
    total = torch.zeros((), device=target.device)
    labels = target.long()
    for index, logits in enumerate(layer_logits):
        each = (_binary_cross_entropy if binary else _softmax_cross_entropy)(logits.flatten(0, 1), labels.flatten(0, 1))
        cross_entropy = _mean_over_frames(each.flatten(1).mean(-1).view(labels.shape[:2]), annotated)
        # log-odds of "any object": softmax over all classes, background against the rest
        objects = logits[:, :, 1:].logsumexp(2) - logits[:, :, 0]
        dice = dice_loss(objects, (labels > 0) & (labels != UNKNOWN), annotated)
        loss = bce_weight * cross_entropy + dice_weight * dice
        total = total + loss * (1.0 if index == len(layer_logits) - 1 else layer_weight)
    return total


def _softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="none")


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != UNKNOWN
    truth = F.one_hot(labels.where(known, 0), logits.shape[1]).movedim(-1, 1).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    return each * known


def _mean_over_frames(each: Tensor, annotated: Tensor | None) -> Tensor:
    """each (B, T) -> the mean over annotated frames, 0 if there are none."""
    if annotated is None:
        return each.mean()
    weight = annotated.to(each)
    return (each * weight).sum() / weight.sum().clamp(min=torch.finfo(each.dtype).tiny)
