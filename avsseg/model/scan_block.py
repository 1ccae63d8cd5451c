"""The one gated scan block that all five uses of Mamba in AVS-Mamba are made of (spec: paper III, IV-B to IV-D).

    visual   x[, z] = Linear_in(LayerNorm(F));   x = SiLU(DepthwiseConv3x3(x))
    audio    q[, z] = Linear_in(LayerNorm(a));   q = SiLU(causal depth-wise conv1d(q))
    scan     y = sum_k inverse_k(SSM_k(serialise_k([x, q])))
    output   target + DropPath(Linear_out(LayerNorm(y of the target's tokens) * SiLU(z)))

z comes from the target: the visual tokens (VSS, Temporal Mamba, A2V) or the audio tokens (V2A). VSS and Temporal Mamba
have no audio. What is read in which order is the scan plan's business alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_plan import TokenGrid, split_scales
from avsseg.ops.selective_scan import selective_scan

CAUSAL_CONV_WIDTH = 4


class DropPath(nn.Module):
    """Drops a residual branch for whole samples with probability p in training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape[0], *(1,) * (x.dim() - 1), device=x.device, dtype=x.dtype) >= self.p
        return x * keep / (1.0 - self.p)


class SelectiveScan(nn.Module):
    """K selective scans over one token table, each with its own parameters (paper III, eq. 1-4).

    Parameters have the authors' layout: x_proj_weight (K, R + 2N, D) with rows [dt | B | N of C], dt_projs_weight
    (K, D, R), dt_projs_bias (K, D), A_logs (K * D, N), Ds (K * D,). A_logs and Ds stay float32, without weight decay.
    """

    def __init__(self, directions: int, inner_dim: int, state_size: int, dt_rank: int) -> None:
        super().__init__()
        K, D, N, R = directions, inner_dim, state_size, dt_rank
        bound = D**-0.5
        self.x_proj_weight = nn.Parameter(torch.empty(K, R + 2 * N, D).uniform_(-bound, bound))
        self.dt_projs_weight = nn.Parameter(torch.empty(K, D, R).uniform_(-(R**-0.5), R**-0.5))
        # softplus(bias) is log-uniform in [1e-3, 1e-1]; softplus^-1(t) = t + log(1 - exp(-t))
        dt = torch.exp(torch.rand(K, D) * (math.log(1e-1) - math.log(1e-3)) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_projs_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(K * D, 1))
        self.Ds = nn.Parameter(torch.ones(K * D))

    def forward(self, tokens: Tensor, plan: Tensor, output_from: int = 0) -> Tensor:
        """tokens (B, P, D), plan (K, L) -> (B, P - output_from, D): the K outputs, each at its own position, added."""
        return selective_scan(
            tokens,
            plan,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
            output_from=output_from,
        )


def depthwise_conv(tokens: Tensor, grid: TokenGrid, conv: nn.Conv2d) -> Tensor:
    """The same 3x3 depth-wise convolution on every frame and scale of a table (B, T * M, D)."""
    frames = tokens.reshape(-1, grid.frame_tokens, tokens.shape[-1])
    out = [conv(scale).flatten(2).transpose(1, 2) for scale in split_scales(frames, grid)]
    return torch.cat(out, dim=1).reshape(tokens.shape)


class GatedScanBlock(nn.Module):
    """One gated scan block. `target` names the tokens that it updates, `audio` adds the audio branch."""

    def __init__(
        self,
        config: AvsMambaConfig,
        *,
        directions: int,
        target: Literal["visual", "audio"] = "visual",
        audio: bool = False,
    ) -> None:
        super().__init__()
        C, D = config.dim, config.inner_dim
        self.target = target
        self.norm_visual = nn.LayerNorm(C, eps=1e-6)
        self.in_proj_visual = nn.Linear(C, 2 * D if target == "visual" else D, bias=False)
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D)
        if audio:
            self.norm_audio = nn.LayerNorm(C, eps=1e-6)
            self.in_proj_audio = nn.Linear(C, 2 * D if target == "audio" else D, bias=False)
            self.conv1d = nn.Conv1d(D, D, CAUSAL_CONV_WIDTH, padding=CAUSAL_CONV_WIDTH - 1, groups=D)
        self.scan = SelectiveScan(directions, D, config.state_size, config.dt_rank)
        self.out_norm = nn.LayerNorm(D, eps=1e-5)
        self.out_proj = nn.Linear(D, C, bias=False)
        self.drop_path = DropPath(config.drop_path)

    def forward(self, visual: Tensor, grid: TokenGrid, plan: Tensor, audio: Tensor | None = None) -> Tensor:
        """visual (B, T * M, C) laid out as `grid` says, audio (B, T, C) -> the updated target, in its shape."""
        x = self.in_proj_visual(self.norm_visual(visual))
        gate = None
        if self.target == "visual":
            x, gate = x.chunk(2, dim=-1)
        table = F.silu(depthwise_conv(x, grid, self.conv2d))
        if audio is not None:
            q = self.in_proj_audio(self.norm_audio(audio))
            if self.target == "audio":
                q, gate = q.chunk(2, dim=-1)
            q = self.conv1d(q.transpose(1, 2))[..., : audio.shape[1]].transpose(1, 2)
            table = torch.cat([table, F.silu(q)], dim=1)
        visual_tokens = visual.shape[1]
        y = self.scan(table, plan, output_from=visual_tokens if self.target == "audio" else 0)
        residual = visual
        if self.target == "audio":
            assert audio is not None
            residual = audio
        else:
            y = y[:, :visual_tokens]
        assert gate is not None
        return residual + self.drop_path(self.out_proj(self.out_norm(y) * F.silu(gate)))
