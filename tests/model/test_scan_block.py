"""The gated block against its formulas written out with plain loops, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_block import DropPath, GatedScanBlock, SelectiveScan
from avsseg.model.scan_plan import TokenGrid, audio_to_visual_plan, frame_plan, temporal_plan, visual_to_audio_plan

CPU = torch.device("cpu")
CONFIG = AvsMambaConfig(dim=64, state_size=3, expand=1)  # D = 64, R = 4


def recurrence(scan: SelectiveScan, tokens: Tensor, plan: Tensor) -> Tensor:
    """sum_k inverse_k(SSM_k(serialise_k(tokens))) one step at a time (paper, eq. 1-4)."""
    K, D, R = scan.dt_projs_weight.shape
    A = -scan.A_logs.exp().view(K, D, -1)
    N = A.shape[-1]
    skip = scan.Ds.view(K, D)
    out = torch.zeros_like(tokens)
    for b in range(tokens.shape[0]):
        for k in range(K):
            h = torch.zeros(D, N, dtype=tokens.dtype)
            for p in plan[k].tolist():
                x = tokens[b, p]
                dt, B, C = (scan.x_proj_weight[k] @ x).split([R, N, N])
                delta = F.softplus(scan.dt_projs_weight[k] @ dt + scan.dt_projs_bias[k])
                h = torch.exp(delta[:, None] * A[k]) * h + (delta * x)[:, None] * B
                out[b, p] += h @ C + skip[k] * x
    return out


def conv3x3(tokens: Tensor, grid: TokenGrid, conv: torch.nn.Conv2d) -> Tensor:
    B, _, D = tokens.shape
    out = torch.empty_like(tokens)
    for b in range(B):
        for t in range(grid.frames):
            start = t * grid.frame_tokens
            for h, w in grid.sizes:
                picture = tokens[b, start : start + h * w].t().reshape(1, D, h, w)
                filtered = F.conv2d(picture, conv.weight, conv.bias, padding=1, groups=D)
                out[b, start : start + h * w] = filtered[0].reshape(D, h * w).t()
                start += h * w
    return out


def causal_conv(q: Tensor, conv: torch.nn.Conv1d) -> Tensor:
    """Tap 3 is the present, tap 0 three seconds ago."""
    out = torch.zeros_like(q)
    for t in range(q.shape[1]):
        out[:, t] = conv.bias
        for tap in range(4):
            if t - 3 + tap >= 0:
                out[:, t] += conv.weight[:, 0, tap] * q[:, t - 3 + tap]
    return out


def make(**kwargs) -> GatedScanBlock:
    torch.manual_seed(1)
    block = GatedScanBlock(CONFIG, **kwargs).double().eval()
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return block


def test_visual_block_over_two_scales_and_frames() -> None:
    grid = TokenGrid(2, ((2, 3), (1, 2)))
    block = make(directions=8)
    visual = torch.randn(2, grid.tokens, 64, dtype=torch.float64)
    plan = temporal_plan(grid, 8, CPU)
    x, z = (F.layer_norm(visual, (64,), *block.norm_visual.parameters(), 1e-6) @ block.in_proj_visual.weight.t()).chunk(
        2, -1
    )
    y = recurrence(block.scan, F.silu(conv3x3(x, grid, block.conv2d)), plan)
    y = F.layer_norm(y, (64,), *block.out_norm.parameters(), 1e-5) * F.silu(z)
    torch.testing.assert_close(block(visual, grid, plan), visual + y @ block.out_proj.weight.t())


def test_visual_to_audio_updates_the_audio_only_and_reaches_the_oldest_tap() -> None:
    grid = TokenGrid(6, ((2, 2),))
    block = make(directions=4, target="audio", audio=True)
    visual = torch.randn(1, grid.tokens, 64, dtype=torch.float64)
    audio = torch.randn(1, 6, 64, dtype=torch.float64)
    plan = visual_to_audio_plan(grid, CPU)
    x = F.layer_norm(visual, (64,), *block.norm_visual.parameters(), 1e-6) @ block.in_proj_visual.weight.t()
    q, z = (F.layer_norm(audio, (64,), *block.norm_audio.parameters(), 1e-6) @ block.in_proj_audio.weight.t()).chunk(
        2, -1
    )
    table = torch.cat([F.silu(conv3x3(x, grid, block.conv2d)), F.silu(causal_conv(q, block.conv1d))], 1)
    y = recurrence(block.scan, table, plan)[:, grid.tokens :]
    y = F.layer_norm(y, (64,), *block.out_norm.parameters(), 1e-5) * F.silu(z)
    torch.testing.assert_close(block(visual, grid, plan, audio), audio + y @ block.out_proj.weight.t())


def test_audio_to_visual_updates_the_picture() -> None:
    grid = TokenGrid(5, ((2, 2),))
    block = make(directions=4, audio=True)
    visual = torch.randn(1, grid.tokens, 64, dtype=torch.float64)
    audio = torch.randn(1, 5, 64, dtype=torch.float64)
    plan = audio_to_visual_plan(grid, CPU)
    x, z = (F.layer_norm(visual, (64,), *block.norm_visual.parameters(), 1e-6) @ block.in_proj_visual.weight.t()).chunk(
        2, -1
    )
    q = F.layer_norm(audio, (64,), *block.norm_audio.parameters(), 1e-6) @ block.in_proj_audio.weight.t()
    table = torch.cat([F.silu(conv3x3(x, grid, block.conv2d)), F.silu(causal_conv(q, block.conv1d))], 1)
    y = recurrence(block.scan, table, plan)[:, : grid.tokens]
    y = F.layer_norm(y, (64,), *block.out_norm.parameters(), 1e-5) * F.silu(z)
    torch.testing.assert_close(block(visual, grid, plan, audio), visual + y @ block.out_proj.weight.t())


def test_frames_do_not_see_each_other_in_a_frame_scan() -> None:
    grid = TokenGrid(1, ((2, 2),))
    block = make(directions=4)
    frames = torch.randn(3, 4, 64, dtype=torch.float64)
    before = block(frames, grid, frame_plan(grid, CPU))
    frames[0] += 1.0
    after = block(frames, grid, frame_plan(grid, CPU))
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


def test_scan_initialisation() -> None:
    torch.manual_seed(0)
    scan = SelectiveScan(4, 128, 16, 8)
    assert torch.equal(scan.A_logs[17], torch.arange(1, 17).float().log())
    assert torch.equal(scan.Ds, torch.ones(4 * 128))
    step = F.softplus(scan.dt_projs_bias)
    assert step.min().item() >= 0.99e-3
    assert step.max().item() <= 1.01e-1
    # log-uniform: half of the steps lie below the geometric mean of the two ends
    assert abs((step < 1e-2).float().mean().item() - 0.5) < 0.1
    assert scan.dt_projs_weight.abs().max().item() <= 8**-0.5


def test_drop_path_keeps_the_expectation_and_is_off_in_eval() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    dropped = drop(x)
    assert set(dropped.unique().tolist()) <= {0.0, x.new_tensor(1 / 0.75).item()}
    assert torch.equal(dropped[:, :1, :1].expand_as(x), dropped)
    assert abs(dropped.mean().item() - 1.0) < 0.05
    assert drop.eval()(x) is x
