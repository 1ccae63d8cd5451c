"""YAMNet (Google 2019, a MobileNet-v1 that AudioSet trained) as an audio encoder, its batch norms folded away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.media.audio import LOG_OFFSET
from avsseg.model.backbones.efficientnet_lite import SamePadConv2d

STEM = 32
# channels and stride of the thirteen separable convolutions
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
YAMNET_LOG_OFFSET = 0.001
HIDDEN = 256


class SeparableConv(nn.Module):
    """A depthwise convolution, and a pointwise one, each with ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = SamePadConv2d(in_channels, in_channels, 3, stride, groups=in_channels, bias=True)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class Yamnet(nn.Module):
    """What YAMNet hears in one log-mel example, and a projection of it that starts from nothing.

    As VGGish it comes trained on AudioSet and stays as it is (V-B of the paper): only `projection` has gradients.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.stem = SamePadConv2d(1, STEM, 3, 2, bias=True)
        blocks = []
        channels = STEM
        for width, stride in BLOCKS:
            blocks.append(SeparableConv(channels, width, stride))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)
        self.projection = nn.Sequential(
            nn.Linear(channels, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, embedding_dim), nn.ReLU(inplace=True)
        )

    def features(self, log_mel: Tensor) -> Tensor:
        """log_mel (N, 1, 96, 64), as VGGish takes it -> YAMNet's embedding (N, 1024), before its classifier."""
        # the same magnitudes, which YAMNet takes with a smaller offset before the logarithm
        magnitude = log_mel.float().exp() - LOG_OFFSET
        x = torch.log(magnitude.clamp(min=0) + YAMNET_LOG_OFFSET)
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, log_mel: Tensor) -> Tensor:
        """log_mel (N, 1, 96, 64) -> (N, embedding_dim)."""
        embedding: Tensor = self.projection(self.features(log_mel))
        return embedding
