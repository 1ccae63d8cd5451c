"""Vision Mamba, Vim (arXiv 2401.09417), without its classifier; state dicts load the official checkpoints by name.

One scale: patches of 16x16 in rows, a class token in their middle, and 24 blocks that read the sequence both ways. The
four scales that AVS-Mamba needs are made of the last one by the simple feature pyramid of ViTDet (arXiv 2203.16527),
`feature_pyramid`, which is in no published file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.backbones.vmamba import Permute
from avsseg.model.scan_block import CAUSAL_CONV_WIDTH, DropPath, SelectiveScan
from avsseg.model.scan_plan import cached_plan
from avsseg.ops.selective_scan import selective_scan

PATCH = 16
TRAINED_GRID = (14, 14)  # 224 / 16


@dataclass(frozen=True)
class VimConfig:
    """Width and number of blocks; the rest is the same for all."""

    dim: int
    depth: int = 24

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Channels of the four scales of `feature_pyramid`."""
        return (self.dim // 4, self.dim // 2, self.dim, self.dim)


VIM: dict[str, VimConfig] = {
    "vim-tiny": VimConfig(192),
    "vim-small": VimConfig(384),
    "vim-base": VimConfig(768),
}


@cached_plan
def sequence_plan(length: int, device: torch.device, *, reverse: bool) -> Tensor:
    """(1, length): the tokens from first to last, or from last to first."""
    order = torch.arange(length, dtype=torch.int32, device=device)
    return (order.flip(0) if reverse else order)[None]


class BidirectionalMamba(nn.Module):
    """Mamba's gated block (arXiv 2312.00752) read forwards and, with a convolution and a scan of its own, backwards.

        x, z = split(In(u));   y = (scan_f(SiLU(conv_f(x))) + scan_b(SiLU(conv_b(x)))) / 2
        out = Out(y * SiLU(z))

    conv_f sees a token and the three before it, conv_b a token and the three behind it. Names are the official ones: of
    the backward half they end in `_b`, save `A_b_log`.
    """

    def __init__(self, dim: int, state_size: int = 16) -> None:
        super().__init__()
        inner, rank = 2 * dim, -(-dim // 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CAUSAL_CONV_WIDTH, padding=CAUSAL_CONV_WIDTH - 1, groups=inner)
        self.conv1d_b = nn.Conv1d(inner, inner, CAUSAL_CONV_WIDTH, padding=CAUSAL_CONV_WIDTH - 1, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.x_proj_b = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.dt_proj_b = nn.Linear(rank, inner)
        scan = SelectiveScan(2, inner, state_size, rank)
        with torch.no_grad():
            for direction, (x_proj, dt_proj) in enumerate(
                ((self.x_proj, self.dt_proj), (self.x_proj_b, self.dt_proj_b))
            ):
                x_proj.weight.copy_(scan.x_proj_weight[direction])
                dt_proj.weight.copy_(scan.dt_projs_weight[direction])
                dt_proj.bias.copy_(scan.dt_projs_bias[direction])
        A_log, A_b_log = scan.A_logs.detach().chunk(2)
        self.A_log, self.A_b_log = nn.Parameter(A_log.clone()), nn.Parameter(A_b_log.clone())
        self.D, self.D_b = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, C)."""
        L = u.shape[1]
        x, z = self.in_proj(u).chunk(2, dim=-1)
        x = x.transpose(1, 2)
        ahead = self.conv1d(x)[..., :L]
        # the same convolution on the reversed sequence, its result put right again, without a reversed copy
        behind = F.conv1d(
            x, self.conv1d_b.weight.flip(-1), self.conv1d_b.bias, padding=CAUSAL_CONV_WIDTH - 1, groups=x.shape[1]
        )[..., CAUSAL_CONV_WIDTH - 1 :]
        y = _scan(ahead, sequence_plan(L, u.device, reverse=False), self.x_proj, self.dt_proj, self.A_log, self.D)
        y = y + _scan(
            behind, sequence_plan(L, u.device, reverse=True), self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
        )
        return self.out_proj(0.5 * y * F.silu(z))


def _scan(x: Tensor, plan: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor) -> Tensor:
    """x (N, D, L) before its activation -> (N, L, D)."""
    return selective_scan(
        F.silu(x).transpose(1, 2), plan, x_proj.weight[None], dt_proj.weight[None], dt_proj.bias[None], A_log, D
    )


class VimBlock(nn.Module):
    """Add, RMSNorm, mix: the sum of all that came before travels beside the last result."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = BidirectionalMamba(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden (N, L, C), residual (N, L, C) or None ahead of the first block -> the next two."""
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual)), residual


class PatchEmbed(nn.Module):
    """A convolution over patches that do not overlap."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H / 16, W / 16)."""
        return self.proj(x)


class SimpleFeaturePyramid(nn.Module):
    """Stride 16 to strides 4, 8, 16 and 32: up by 4 and by 2 with transposed convolutions, as it is, down by a maximum.

    Each step up halves the channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim // 2),
            Permute(0, 3, 1, 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(dim, dim // 2, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, h, w) -> (N, C / 4, 4h, 4w), (N, C / 2, 2h, 2w), (N, C, h, w), (N, C, h / 2, w / 2)."""
        return [self.up4(x), self.up2(x), x, F.max_pool2d(x, 2)]


class Vim(nn.Module):
    """Vim with a class token in the middle of the sequence; here it is read like a patch and left out at the end."""

    def __init__(self, config: VimConfig, *, drop_path: float = 0.1) -> None:
        super().__init__()
        C = config.dim
        rates = [0.0, *torch.linspace(0, drop_path, config.depth, device="cpu").tolist()]
        self.patch_embed = PatchEmbed(C)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, C))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, TRAINED_GRID[0] * TRAINED_GRID[1] + 1, C))
        self.layers = nn.ModuleList(VimBlock(C, rates[i]) for i in range(config.depth))
        self.drop_path = DropPath(drop_path)
        self.norm_f = nn.RMSNorm(C, eps=1e-5)
        self.feature_pyramid = SimpleFeaturePyramid(C)

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """(1, h * w + 1, C): the trained one, its 14x14 patches resampled (bicubic) where the grid is another."""
        if grid == TRAINED_GRID:
            return self.pos_embed
        before = TRAINED_GRID[0] * TRAINED_GRID[1] // 2
        patches = torch.cat([self.pos_embed[:, :before], self.pos_embed[:, before + 1 :]], dim=1)
        trained = patches.transpose(1, 2).unflatten(2, TRAINED_GRID)
        resampled = F.interpolate(trained, size=grid, mode="bicubic", align_corners=False)
        return _with_middle(resampled.flatten(2).transpose(1, 2), self.pos_embed[:, before : before + 1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps (N, c_i, H / s_i, W / s_i), s = 4, 8, 16, 32; H and W multiples of 32."""
        patches = self.patch_embed(x)
        h, w = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        hidden = _with_middle(tokens, self.cls_token.expand(len(tokens), -1, -1)) + self.position_embedding((h, w))
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        assert residual is not None
        out = self.norm_f(residual + self.drop_path(hidden))
        middle = h * w // 2
        out = torch.cat([out[:, :middle], out[:, middle + 1 :]], dim=1)
        return self.feature_pyramid(out.transpose(1, 2).unflatten(2, (h, w)))


def _with_middle(tokens: Tensor, extra: Tensor) -> Tensor:
    """tokens (N, L, C), extra (N, 1, C) -> (N, L + 1, C) with `extra` at index L // 2."""
    middle = tokens.shape[1] // 2
    return torch.cat([tokens[:, :middle], extra, tokens[:, middle:]], dim=1)
