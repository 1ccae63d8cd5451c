"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from avsseg.training.losses import bce_loss, dice_loss, mask_loss


def logits_of(probability: list[list[float]]) -> torch.Tensor:
    return torch.logit(torch.tensor(probability, dtype=torch.float64)).reshape(1, len(probability), 1, -1)


def test_dice_uses_squared_denominators() -> None:
    loss = dice_loss(logits_of([[0.5, 0.25, 0.9]]), torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 1, 3))
    overlap, predicted, truth = 0.5 + 0.9, 0.25 + 0.0625 + 0.81, 2.0
    assert loss.item() == pytest.approx(1 - 2 * overlap / (predicted + truth + 0.002))


def test_frames_without_annotation_count_for_nothing() -> None:
    logits = logits_of([[0.9, 0.1], [0.2, 0.8]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    first = torch.tensor([[True, False]])
    for loss in (dice_loss, bce_loss):
        assert loss(logits, target, first).item() == pytest.approx(loss(logits[:, :1], target[:, :1]).item())
        assert loss(logits, target, ~first).item() > loss(logits, target, first).item()
        assert loss(logits, target, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_silent_frames_are_pushed_down_by_the_cross_entropy() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    silence = torch.zeros(1, 1, 4, 4)
    assert dice_loss(logits, silence).item() == pytest.approx(1)
    loss = bce_loss(logits, silence)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_mask_loss_adds_the_earlier_layers() -> None:
    torch.manual_seed(0)
    early, last = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    target = torch.rand(2, 3, 4, 4) > 0.5
    both = mask_loss([early, last], target, layer_weight=0.5, bce_weight=2.0)
    alone = [mask_loss([layer], target, bce_weight=2.0) for layer in (early, last)]
    assert both.item() == pytest.approx(0.5 * alone[0].item() + alone[1].item(), rel=1e-5)
    expected = dice_loss(last.squeeze(2), target) + 2 * bce_loss(last.squeeze(2), target)
    assert alone[1].item() == pytest.approx(expected.item(), rel=1e-5)
