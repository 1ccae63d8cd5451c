"""Residual networks (arXiv 1512.03385) without their classifier; parameter names are torchvision's.

ResNet-50 as published, so its files load, and a slim ResNet-18 for training from nothing on a processor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; the stride sits on the 3x3 convolution (ResNet V1.5, as torchvision's files)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + residual)


class BasicBlock(nn.Module):
    """3x3, 3x3 with a residual."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + residual)


class ResNet(nn.Module):
    """A stem at stride 4 and four stages; `widths` are the channels of the four outputs."""

    widths: tuple[int, int, int, int]

    def _build(self, stem: int, stages: list[list[nn.Module]]) -> None:
        self.conv1 = nn.Conv2d(3, stem, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for i, blocks in enumerate(stages):
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps (N, c_i, H / s_i, W / s_i), s = 4, 8, 16, 32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        features = []
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
            features.append(x)
        return features


class ResNet50(ResNet):
    """Stages of 3, 4, 6 and 3 bottlenecks."""

    widths = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        channels, stages = 64, []
        for i, depth in enumerate((3, 4, 6, 3)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(Bottleneck(channels, 64 * 2**i, stride=2 if i > 0 and j == 0 else 1))
                channels = 64 * 2**i * EXPANSION
            stages.append(blocks)
        self._build(64, stages)


class ResNet18Slim(ResNet):
    """Four stages of 2 basic blocks, half as wide as ResNet-18's at first; 4 million parameters."""

    widths = (32, 64, 160, 320)

    def __init__(self) -> None:
        super().__init__()
        channels, stages = self.widths[0], []
        for i, width in enumerate(self.widths):
            stages.append([BasicBlock(channels, width, stride=2 if i > 0 else 1), BasicBlock(width, width, stride=1)])
            channels = width
        self._build(self.widths[0], [list(blocks) for blocks in stages])
