"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946, in the form for edge devices) without its classifier.

No squeeze-and-excitation, ReLU6, and a stem that no variant widens. Its published files were trained with TensorFlow,
whose padding puts the odd pixel of a stride of two at the right and the bottom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32
# repeats, kernel, stride, expansion, channels of the seven stages at width and depth 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
OUTPUT_STAGES = (1, 2, 4, 6)  # the last ones at strides 4, 8, 16, 32
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """How much wider and deeper than the smallest a variant is."""

    width: float
    depth: float

    def channels(self, stage: int) -> int:
        """Rounded to a multiple of 8, but never down by more than a tenth."""
        exact = STAGES[stage][4] * self.width
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * exact else rounded

    def repeats(self, stage: int) -> int:
        """The first and the last stage are never deepened."""
        count = STAGES[stage][0]
        return count if stage in (0, len(STAGES) - 1) else math.ceil(count * self.depth)

    @property
    def blocks(self) -> int:
        """Of all stages."""
        return sum(map(self.repeats, range(len(STAGES))))

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Channels of the four outputs."""
        a, b, c, d = (self.channels(stage) for stage in OUTPUT_STAGES)
        return a, b, c, d


EFFICIENTNET_LITE = {
    "efficientnet_lite0": EfficientNetLiteConfig(1.0, 1.0),
    "efficientnet_lite1": EfficientNetLiteConfig(1.0, 1.1),
    "efficientnet_lite2": EfficientNetLiteConfig(1.1, 1.2),
}


class SamePadConv2d(nn.Conv2d):
    """A convolution that gives H / stride of an H that the stride divides, padded as TensorFlow does."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1, *, bias: bool = False
    ) -> None:
        self.before, self.behind = (kernel - stride) // 2, (kernel - stride + 1) // 2
        even = self.before == self.behind
        padding = self.before if even else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)
        self.uneven = not even

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        return super().forward(F.pad(x, (self.before, self.behind) * 2) if self.uneven else x)


def conv_norm(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its batch normalisation."""
    norm = nn.BatchNorm2d(out_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    return nn.Sequential(SamePadConv2d(in_channels, out_channels, kernel, stride, groups), norm)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, 1x1 down without activation; a residual where nothing changes shape."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = conv_norm(in_channels, inner) if expansion > 1 else None
        self.depthwise = conv_norm(inner, inner, kernel, stride, groups=inner)
        self.project = conv_norm(inner, out_channels)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(out)))
        return x + out if self.has_residual else out


class EfficientNetLite(nn.Module):
    """A stem at stride 2 and seven stages, of which four are given."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.stem = conv_norm(3, STEM, 3, 2)
        blocks: list[nn.Module] = []
        ends = []  # of the stages
        channels = STEM
        for stage, (_, kernel, stride, expansion, _) in enumerate(STAGES):
            for repeat in range(config.repeats(stage)):
                width = config.channels(stage)
                blocks.append(InvertedResidual(channels, width, kernel, stride if repeat == 0 else 1, expansion))
                channels = width
            ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.outputs = tuple(ends[stage] for stage in OUTPUT_STAGES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W), 32 divides H and W -> four maps (N, c_i, H / s_i, W / s_i), s = 4, 8, 16, 32."""
        x = F.relu6(self.stem(x))
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.outputs:
                features.append(x)
        return features
