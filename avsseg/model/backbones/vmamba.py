"""VMamba (arXiv 2401.10166), first and second release, without its classifier.

State dicts have the names of the second release; `avsseg.weights.official` renames those of the first. Both scan a
feature map in four orders (HW, WH, and both reversed) with weights of their own:

    first ("vanilla")   x = x + Out(LN(scan(SiLU(DWConv(x')))) * SiLU(z)),  x', z = split(In(LN(x)));  16 states
    second              x = x + Out(LN(scan(SiLU(DWConv(In(LN(x)))))));  x = x + MLP(LN(x));           1 state

The names of the second say its shape: s2l5 is inner width 2C and 5 blocks in the third stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.scan_block import DropPath, SelectiveScan
from avsseg.model.scan_plan import TokenGrid, frame_plan
from avsseg.ops.selective_scan import selective_scan

DIRECTIONS = 4
MLP_RATIO = 4


@dataclass(frozen=True)
class VMambaConfig:
    """Blocks in the third stage, width of the first, inner width over width, and which release; the rest follows."""

    third_stage: int
    width: int = 96
    expand: int = 2
    vanilla: bool = False

    @property
    def depths(self) -> tuple[int, int, int, int]:
        return (2, 2, self.third_stage, 2)

    @property
    def dims(self) -> tuple[int, int, int, int]:
        return (self.width, 2 * self.width, 4 * self.width, 8 * self.width)

    @property
    def state_size(self) -> int:
        return 16 if self.vanilla else 1


VMAMBA: dict[str, VMambaConfig] = {
    "vmamba-tiny-v0": VMambaConfig(9, vanilla=True),
    "vmamba-small-v0": VMambaConfig(27, vanilla=True),
    "vmamba-base-v0": VMambaConfig(27, width=128, vanilla=True),
    "vmamba-tiny-s2l5": VMambaConfig(5),
    "vmamba-tiny-s1l8": VMambaConfig(8, expand=1),
    "vmamba-small-s2l15": VMambaConfig(15),
    "vmamba-small-s1l20": VMambaConfig(20, expand=1),
    "vmamba-base-s2l15": VMambaConfig(15, width=128),
    "vmamba-base-s1l20": VMambaConfig(20, width=128, expand=1),
}


class Permute(nn.Module):
    """Between (N, C, H, W) and (N, H, W, C); a module because the checkpoints count it."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class MergePatches(nn.Module):
    """(N, H, W, C) -> (N, H / 2, W / 2, 4C): each 2x2 patch, its rows fastest. H and W must be even."""

    def forward(self, x: Tensor) -> Tensor:
        N, H, W, C = x.shape
        return x.reshape(N, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(N, H // 2, W // 2, 4 * C)


class SS2D(nn.Module):
    """The scan of one feature map between its two projections; gated in the first release only."""

    def __init__(self, dim: int, config: VMambaConfig) -> None:
        super().__init__()
        inner = config.expand * dim
        self.gated = config.vanilla
        self.in_proj = nn.Linear(dim, 2 * inner if self.gated else inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=config.vanilla)
        scan = SelectiveScan(DIRECTIONS, inner, config.state_size, -(-dim // 16))
        # the checkpoints have these without a module around them
        self.x_proj_weight = scan.x_proj_weight
        self.dt_projs_weight = scan.dt_projs_weight
        self.dt_projs_bias = scan.dt_projs_bias
        self.A_logs = scan.A_logs
        self.Ds = scan.Ds
        self.out_norm = nn.LayerNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.in_proj(x)
        gate: Tensor | None = None
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        plan = frame_plan(TokenGrid(1, ((x.shape[1], x.shape[2]),)), x.device)
        y = selective_scan(
            x.flatten(1, 2),
            plan,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
        )
        y = self.out_norm(y).view(x.shape)
        return self.out_proj(y if gate is None else y * F.silu(gate))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class VSSBlock(nn.Module):
    """Pre-norm scan and, in the second release, pre-norm MLP, each with a residual."""

    def __init__(self, dim: int, config: VMambaConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.op = SS2D(dim, config)
        self.norm2 = None if config.vanilla else nn.LayerNorm(dim, eps=1e-5)
        self.mlp = None if config.vanilla else Mlp(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.norm2 is not None and self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """Blocks, then the way to the next stage; the last stage has none."""

    def __init__(self, blocks: list[VSSBlock], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


def _patch_embed(width: int, *, vanilla: bool) -> nn.Sequential:
    """(N, 3, H, W) -> (N, H / 4, W / 4, width)."""
    if vanilla:
        return nn.Sequential(nn.Conv2d(3, width, 4, 4), Permute(0, 2, 3, 1), nn.LayerNorm(width, eps=1e-5))
    return nn.Sequential(
        nn.Conv2d(3, width // 2, 3, 2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(width // 2, eps=1e-5),
        Permute(0, 3, 1, 2),
        nn.GELU(),
        nn.Conv2d(width // 2, width, 3, 2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(width, eps=1e-5),
    )


def _downsample(dim: int, *, vanilla: bool) -> nn.Sequential:
    """(N, H, W, dim) -> (N, H / 2, W / 2, 2 dim)."""
    if vanilla:
        return nn.Sequential(MergePatches(), nn.LayerNorm(4 * dim, eps=1e-5), nn.Linear(4 * dim, 2 * dim, bias=False))
    return nn.Sequential(
        Permute(0, 3, 1, 2),
        nn.Conv2d(dim, 2 * dim, 3, 2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(2 * dim, eps=1e-5),
    )


class VMamba(nn.Module):
    """Four stages `layers.{i}`; `outnorm{i}` are of this use as a backbone and in no published file.

    The stochastic depth rises linearly to `drop_path`.
    """

    def __init__(self, config: VMambaConfig, *, drop_path: float = 0.1) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(config.depths), device="cpu").tolist()
        self.patch_embed = _patch_embed(config.width, vanilla=config.vanilla)
        self.layers = nn.ModuleList()
        last = len(config.dims) - 1
        for i, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            blocks = [VSSBlock(dim, config, rates.pop(0)) for _ in range(depth)]
            self.layers.append(Stage(blocks, _downsample(dim, vanilla=config.vanilla) if i < last else None))
            setattr(self, f"outnorm{i}", nn.LayerNorm(dim, eps=1e-5))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four maps (N, c_i, H / s_i, W / s_i), s = 4, 8, 16, 32; H and W multiples of 32."""
        x = self.patch_embed(x)
        features = []
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            x = stage.blocks(x)
            norm: Callable[[Tensor], Tensor] = getattr(self, f"outnorm{i}")
            features.append(norm(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
