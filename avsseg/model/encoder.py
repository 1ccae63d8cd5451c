"""Multi-scale Temporal Encoder, MTE (paper IV-B): scales 2, 3, 4 of every frame, as one token table."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_block import GatedScanBlock, depthwise_conv
from avsseg.model.scan_plan import TokenGrid, frame_plan, temporal_plan


class MixFFN(nn.Module):
    """x + fc2(GELU(DWConv3x3(fc1(LayerNorm(x))))), hidden width 4C, the convolution on each scale by itself."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        C = config.dim
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.fc1 = nn.Linear(C, 4 * C)
        self.dwconv = nn.Conv2d(4 * C, 4 * C, 3, padding=1, groups=4 * C)
        self.fc2 = nn.Linear(4 * C, C)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """tokens (B, T * M, C) -> the same shape."""
        hidden = depthwise_conv(self.fc1(self.norm(tokens)), grid, self.dwconv)
        return tokens + self.fc2(F.gelu(hidden))


class EncoderLayer(nn.Module):
    """VSS block inside each frame, MixFFN, Temporal Mamba block over the clip; one set of weights for all scales."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.directions = config.temporal_directions
        self.vss = GatedScanBlock(config, directions=4) if config.encoder_vss else None
        self.mix_ffn = MixFFN(config)
        self.temporal = (
            GatedScanBlock(config, directions=config.temporal_directions) if config.encoder_temporal else None
        )

    def forward(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """tokens (B, T * M, C) -> the same shape."""
        if self.vss is not None:
            frame_grid = grid.single_frame
            frames = tokens.reshape(-1, grid.frame_tokens, tokens.shape[-1])
            tokens = self.vss(frames, frame_grid, frame_plan(frame_grid, tokens.device)).reshape(tokens.shape)
        tokens = self.mix_ffn(tokens, grid)
        if self.temporal is not None:
            tokens = self.temporal(tokens, grid, temporal_plan(grid, self.directions, tokens.device))
        return tokens


class MultiScaleTemporalEncoder(nn.Module):
    """MTE (Fig. 3): `encoder_layers` layers, input F_v^2..4, output F_v'^2..4."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """tokens (B, T * M, C) -> the same shape."""
        for layer in self.layers:
            tokens = layer(tokens, grid)
        return tokens
