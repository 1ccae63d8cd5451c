from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from avsseg.errors import UsageError
from avsseg.model.agreement import FLOOR, ClassAgreement
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig, preset

SMALL = AvsMambaConfig(
    backbone="resnet18_slim",
    audio_encoder="compact",
    dim=32,
    state_size=2,
    head_hidden=16,
    head_channels=(8, 4),
    heard_classes=3,
    agreement=True,
)


def looped(agreement: ClassAgreement, mask_feature: Tensor, heard: Tensor) -> Tensor:
    """The formula, a pixel and a class at a time."""
    kernel, bias = agreement.seen_head.weight.flatten(1).tolist(), agreement.seen_head.bias
    assert bias is not None
    N, _, h, w = mask_feature.shape
    weight, offset = agreement.weight.item(), agreement.offset.item()
    out = torch.zeros(N, 1, h, w, dtype=torch.float64)
    for n in range(N):
        for y in range(h):
            for x in range(w):
                pixel = mask_feature[n, :, y, x].tolist()
                odds = [
                    math.exp(sum(a * b for a, b in zip(row, pixel, strict=True)) + of)
                    for row, of in zip(kernel, bias.tolist(), strict=True)
                ]
                sounds = [1 / (1 + math.exp(-logit)) for logit in heard[n].tolist()]
                agreed = sum(a * b for a, b in zip(odds, sounds, strict=True)) / (1 + sum(odds))
                out[n, 0, y, x] = weight * math.log(agreed + FLOOR) + offset
    return out


def test_it_is_the_formula() -> None:
    torch.manual_seed(0)
    agreement = ClassAgreement(8, 3)
    with torch.no_grad():
        agreement.weight.fill_(0.7)
        agreement.offset.fill_(-0.2)
    mask_feature, heard = torch.randn(2, 8, 3, 4) * 3, torch.randn(2, 3) * 3
    found = agreement(mask_feature, heard)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), looped(agreement, mask_feature, heard), rtol=1e-5, atol=1e-5)


def test_only_a_class_that_is_seen_and_heard_counts() -> None:
    agreement = ClassAgreement(3, 3)
    with torch.no_grad():
        agreement.seen_head.weight.copy_(torch.eye(3)[:, :, None, None])
        agreement.seen_head.bias.zero_()
    # a pixel of each class, and one of none
    mask_feature = torch.cat([torch.eye(3) * 60 - 30, torch.full((3, 1), -30.0)], dim=1)[None, :, None]
    heard = torch.tensor([[30.0, -30.0, -30.0]])
    found = agreement(mask_feature, heard)[0, 0, 0]
    expected = 0.25 * torch.tensor([1 + FLOOR, FLOOR, FLOOR, FLOOR]).log()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_every_layer_gets_it_where_its_pixels_are() -> None:
    torch.manual_seed(0)
    model = AvsMamba(SMALL).eval()
    plain = AvsMamba(replace(SMALL, agreement=False)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("agreement.")})
    frames, log_mel = torch.randn(2, 2, 3, 40, 64), torch.randn(2, 2, 1, 96, 64)
    assert model.agreement is not None
    with torch.no_grad():
        model.agreement.weight.fill_(2.0)
        stages = model.stages(frames, log_mel)
        heard = model.heard_head(stages.embedding.flatten(0, 1))
        added = model.agreement(stages.mask_feature.flatten(0, 1), heard)
        added = torch.nn.functional.interpolate(added, size=(64, 64), mode="bilinear")[..., :40, :64]
        with_it, without = model.layer_logits(frames, log_mel), plain.layer_logits(frames, log_mel)
        assert len(with_it) == len(without) == SMALL.decoder_layers
        for one, other in zip(with_it, without, strict=True):
            torch.testing.assert_close(one, other + added.unflatten(0, (2, 2)), atol=1e-4, rtol=1e-4)
        logits, sounds = model.masks_and_sounds(frames, log_mel)
    torch.testing.assert_close(logits, with_it[-1])
    assert sounds is not None
    torch.testing.assert_close(sounds.flatten(0, 1), heard)


def test_its_offset_reaches_every_logit_alike() -> None:
    torch.manual_seed(0)
    model = AvsMamba(SMALL).eval()
    inputs = torch.randn(1, 2, 3, 40, 64), torch.randn(1, 2, 1, 96, 64)
    assert model.agreement is not None
    with torch.no_grad():
        before = model(*inputs)
        model.agreement.offset += 0.75
        torch.testing.assert_close(model(*inputs), before + 0.75)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_logarithm_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    agreement = ClassAgreement(8, 3)
    mask_feature, heard = torch.randn(2, 8, 3, 4), torch.tensor([[-9.0, -8.5, -9.5]] * 2)  # hardly anything sounds
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        rounded = agreement(mask_feature, heard)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, agreement(mask_feature, heard).detach(), atol=2e-5, rtol=0)


def test_masks_teach_what_is_seen_and_heard() -> None:
    torch.manual_seed(0)
    model = AvsMamba(SMALL)
    model(torch.randn(2, 1, 3, 64, 64), torch.randn(2, 1, 1, 96, 64)).sum().backward()
    assert model.agreement is not None
    assert model.heard_head is not None
    parts = [*model.agreement.parameters(), *model.heard_head.parameters()]
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts)


@pytest.mark.parametrize("changes", [{"heard_classes": 0}, {"heard_classes": 3, "num_classes": 71}])
def test_it_needs_classes_of_sound_and_one_mask(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="agreement"):
        preset("avs-mamba-tiny", agreement=True, **changes)


def test_the_paper_has_none() -> None:
    assert AvsMamba(preset("avs-mamba-tiny", heard_classes=3)).agreement is None
