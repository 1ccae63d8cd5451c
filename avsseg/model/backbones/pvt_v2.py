"""PVT v2 (arXiv 2106.13797), b0 to b5, without its classifier; state dicts load the official checkpoints by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.scan_block import DropPath


@dataclass(frozen=True)
class PvtV2Config:
    """Widths, heads, MLP ratios, depths and spatial reduction of the four stages (Table 1 of the PVT v2 paper)."""

    dims: tuple[int, int, int, int] = (64, 128, 320, 512)
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)


PVT_V2: dict[str, PvtV2Config] = {
    "pvt_v2_b0": PvtV2Config(dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "pvt_v2_b1": PvtV2Config(depths=(2, 2, 2, 2)),
    "pvt_v2_b2": PvtV2Config(depths=(3, 4, 6, 3)),
    "pvt_v2_b3": PvtV2Config(depths=(3, 4, 18, 3)),
    "pvt_v2_b4": PvtV2Config(depths=(3, 8, 27, 3)),
    "pvt_v2_b5": PvtV2Config(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(N, h * w, C) -> (N, C, h, w), a view in channels-last memory order."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class OverlapPatchEmbed(nn.Module):
    """A strided convolution with overlapping patches, then LayerNorm."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        # the official code leaves this norm, and the one behind `sr`, at PyTorch's eps of 1e-5
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(N, C, H, W) -> tokens (N, h * w, dim), h, w."""
        x = self.proj(x)
        height, width = x.shape[-2:]
        return self.norm(x.flatten(2).transpose(1, 2)), height, width


class SpatialReductionAttention(nn.Module):
    """Multi-head attention whose keys and values come from a feature map reduced by `reduction` on each side."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, h * w, C) -> (N, h * w, C)."""
        N, L, C = x.shape
        q = self.q(x).view(N, L, self.heads, -1).transpose(1, 2)
        reduced = x
        if self.reduction > 1:
            reduced = self.norm(self.sr(tokens_to_map(x, height, width)).flatten(2).transpose(1, 2))
        k, v = self.kv(reduced).view(N, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, L, C))


class DepthwiseConv(nn.Module):
    """A 3x3 depth-wise convolution on tokens; a module of its own because the checkpoints name it `dwconv.dwconv`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, h * w, C) -> (N, h * w, C)."""
        return self.dwconv(tokens_to_map(x, height, width)).flatten(2).transpose(1, 2)


class ConvMlp(nn.Module):
    """Linear, depth-wise convolution, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, h * w, C) -> (N, h * w, C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), height, width)))


class PvtBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SpatialReductionAttention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, dim * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(N, h * w, C) -> (N, h * w, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        return x + self.drop_path(self.mlp(self.norm2(x), height, width))


class PyramidVisionTransformerV2(nn.Module):
    """Four stages `patch_embed{i}`, `block{i}`, `norm{i}`; the stochastic depth rises linearly to `drop_path`."""

    def __init__(self, config: PvtV2Config, *, drop_path: float = 0.1) -> None:
        super().__init__()
        blocks = sum(config.depths)
        built, channels = 0, 3
        for i, dim in enumerate(config.dims):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            setattr(self, f"patch_embed{i + 1}", OverlapPatchEmbed(channels, dim, kernel, stride))
            stage = nn.ModuleList()
            for _ in range(config.depths[i]):
                rate = drop_path * built / max(1, blocks - 1)
                stage.append(PvtBlock(dim, config.heads[i], config.mlp_ratios[i], config.reductions[i], rate))
                built += 1
            setattr(self, f"block{i + 1}", stage)
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
            channels = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps (N, c_i, H / s_i, W / s_i), s = 4, 8, 16, 32."""
        features = []
        for i in range(1, 5):
            tokens, height, width = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, height, width)
            x = tokens_to_map(getattr(self, f"norm{i}")(tokens), height, width)
            features.append(x)
        return features
