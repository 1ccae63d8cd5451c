"""The pyramid's top-down path against its formula, with an interpolation written out pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.model.config import AvsMambaConfig
from avsseg.model.pyramid import ContextualIntegrationPyramid


def upsampled(picture: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with pixel centres at half integers (`align_corners=False`), edges held."""
    N, C, h, w = picture.shape
    out = picture.new_empty(N, C, height, width)
    for i in range(height):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        top, bottom, down = math.floor(y), min(math.floor(y) + 1, h - 1), y - math.floor(y)
        for j in range(width):
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            left, right, across = math.floor(x), min(math.floor(x) + 1, w - 1), x - math.floor(x)
            above = (1 - across) * picture[..., top, left] + across * picture[..., top, right]
            below = (1 - across) * picture[..., bottom, left] + across * picture[..., bottom, right]
            out[..., i, j] = (1 - down) * above + down * below
    return out


@torch.no_grad()
def test_the_default_upsampling_is_bilinear_between_pixel_centres() -> None:
    torch.manual_seed(0)
    config = AvsMambaConfig(dim=32, pyramid_temporal=False, pyramid_audio=False)
    pyramid = ContextualIntegrationPyramid(config).double().eval()
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    features = [torch.randn(2, 32, h, w, dtype=torch.float64) for h, w in sizes]
    previous = None
    for level, feature in zip(reversed(pyramid.levels), reversed(features), strict=True):
        v = F.conv2d(feature, level.adapter.weight)
        if previous is not None:
            v = v + upsampled(previous, *v.shape[-2:])
        previous = F.conv2d(v, level.smooth.weight, padding=1).relu()
    expected = F.conv2d(previous, pyramid.mask_feature.weight, pyramid.mask_feature.bias, padding=1)
    audio = torch.randn(1, 2, 32, dtype=torch.float64)
    torch.testing.assert_close(pyramid(features, audio), expected)


@torch.no_grad()
def test_a_picture_alone_takes_the_way_of_a_pyramid_without_its_other_parts() -> None:
    torch.manual_seed(0)
    config = AvsMambaConfig(dim=32, state_size=2)
    whole = ContextualIntegrationPyramid(config).eval()
    bare = ContextualIntegrationPyramid(replace(config, pyramid_temporal=False, pyramid_audio=False)).eval()
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if name in bare.state_dict()})
    features = [torch.randn(2, 32, side, side) for side in (16, 8, 4, 2)]
    audio = torch.randn(1, 2, 32)
    torch.testing.assert_close(whole.plain(features), bare(features, audio))
    assert not torch.equal(whole.plain(features), whole(features, audio))
