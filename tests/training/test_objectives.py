from __future__ import annotations

import pytest
import torch

from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.training.objectives import Batch, JointObjective

CLASSES = 5
SMALL = AvsMambaConfig(
    backbone="resnet18_slim",
    audio_encoder="compact",
    dim=32,
    state_size=2,
    head_hidden=16,
    head_channels=(8, 4),
    heard_classes=CLASSES,
    agreement=True,
)


def batch(silent: tuple[bool, bool]) -> Batch:
    """One picture with two sounds; nothing is to be marked for those that are silent."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(1, 2, 1, 64, 64, dtype=torch.bool)
    for variant, nothing in enumerate(silent):
        masks[0, variant, 0, :32] = not nothing
    return {
        "frames": torch.randint(0, 256, (1, 1, 64, 64, 3), dtype=torch.uint8, generator=generator),
        "labels": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        "weight": torch.ones(1),
        "log_mel": torch.randn(1, 2, 1, 1, 96, 64, generator=generator),
        "masks": masks,
        "heard": torch.zeros(1, 2, 1, CLASSES),
    }


def loss(example: Batch, **options: float) -> float:
    torch.manual_seed(0)
    model = AvsMamba(SMALL)
    objective = JointObjective(model, foreground_weight=1.0, **options).eval()
    with torch.no_grad():
        return float(objective(example)[0])


def test_silent_frames_weigh_as_much_as_they_are_told_to() -> None:
    sounding, silent, both = batch((False, False)), batch((True, True)), batch((False, True))
    assert loss(silent, silent_weight=3.0) == pytest.approx(loss(silent))
    assert loss(sounding, silent_weight=3.0) == pytest.approx(loss(sounding))
    # weights are relative: with none the silent half is as if it were not there
    assert loss(both, silent_weight=3.0) != pytest.approx(loss(both), rel=1e-3)
    heavy, heavier = (abs(loss(both, silent_weight=weight) - loss(both, silent_weight=1e6)) for weight in (3.0, 30.0))
    assert heavier < heavy


def test_cross_entropy_weighs_as_much_as_it_is_told_to() -> None:
    once, twice, thrice = (loss(batch((False, True)), bce_weight=weight) for weight in (1.0, 2.0, 3.0))
    assert thrice - twice == pytest.approx(twice - once, rel=1e-3)
    assert twice > once
