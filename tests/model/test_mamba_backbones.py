"""VMamba and Vim: their published names, shapes and sizes, and one block of each against its formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.vim import BidirectionalMamba, SimpleFeaturePyramid, Vim, VimConfig
from avsseg.model.backbones.vmamba import SS2D, VMAMBA, MergePatches, VMamba, VMambaConfig, VSSBlock

# parameters of the whole classifiers: VMamba's instantiated from its own code, Vim's counted from its shapes
OFFICIAL_PARAMETERS = {
    "vmamba-tiny-v0": 22_893_448,
    "vmamba-small-v0": 44_417_416,
    "vmamba-base-v0": 76_254_056,
    "vmamba-tiny-s2l5": 30_705_832,
    "vmamba-tiny-s1l8": 30_249_064,
    "vmamba-small-s2l15": 50_147_752,
    "vmamba-small-s1l20": 49_012_840,
    "vmamba-base-s2l15": 88_557_800,
    "vmamba-base-s1l20": 86_614_504,
    "vim-tiny": 7_148_008,
    "vim-small": 25_796_584,
    "vim-base": 97_598_440,
}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        backbone, _ = build_backbone(name)
    return {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("name", sorted(OFFICIAL_PARAMETERS))
def test_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        backbone, channels = build_backbone(name)
    ours_alone = ("outnorm", "feature_pyramid")
    own = sum(p.numel() for key, p in backbone.named_parameters() if not key.startswith(ours_alone))
    classifier = 1000 * channels[-1] + 1000 + (2 * channels[-1] if name in VMAMBA else 0)
    assert own + classifier == OFFICIAL_PARAMETERS[name]


def test_vmamba_has_the_official_names_and_shapes() -> None:
    second = shapes("vmamba-tiny-s1l8")
    for key, shape in {
        "patch_embed.0.weight": (48, 3, 3, 3),
        "patch_embed.2.weight": (48,),
        "patch_embed.5.weight": (96, 48, 3, 3),
        "patch_embed.7.bias": (96,),
        "layers.0.blocks.0.norm.weight": (96,),
        "layers.0.blocks.0.norm2.weight": (96,),
        "layers.0.blocks.0.op.x_proj_weight": (4, 8, 96),
        "layers.0.blocks.0.op.A_logs": (384, 1),
        "layers.0.blocks.0.op.Ds": (384,),
        "layers.0.blocks.0.op.dt_projs_weight": (4, 96, 6),
        "layers.0.blocks.0.op.dt_projs_bias": (4, 96),
        "layers.0.blocks.0.op.in_proj.weight": (96, 96),
        "layers.0.blocks.0.op.conv2d.weight": (96, 1, 3, 3),
        "layers.0.blocks.0.op.out_norm.bias": (96,),
        "layers.0.blocks.0.op.out_proj.weight": (96, 96),
        "layers.0.blocks.0.mlp.fc1.weight": (384, 96),
        "layers.2.blocks.7.mlp.fc2.weight": (384, 1536),
        "layers.0.downsample.1.weight": (192, 96, 3, 3),
        "layers.2.downsample.3.weight": (768,),
    }.items():
        assert second[key] == shape, key
    assert not any(key.startswith(("layers.3.downsample", "layers.2.blocks.8.")) for key in second)
    assert "layers.0.blocks.0.op.conv2d.bias" not in second
    first = shapes("vmamba-base-v0")
    for key, shape in {
        "patch_embed.0.weight": (128, 3, 4, 4),
        "patch_embed.2.weight": (128,),
        "layers.0.blocks.0.op.in_proj.weight": (512, 128),
        "layers.0.blocks.0.op.x_proj_weight": (4, 40, 256),
        "layers.0.blocks.0.op.A_logs": (1024, 16),
        "layers.2.blocks.26.op.conv2d.bias": (1024,),
        "layers.1.downsample.1.weight": (1024,),
        "layers.1.downsample.2.weight": (512, 1024),
    }.items():
        assert first[key] == shape, key
    assert not any(".norm2." in key or ".mlp." in key or key == "layers.0.downsample.2.bias" for key in first)


def test_vim_has_the_official_names_and_shapes() -> None:
    C, R = 192, 12
    mixer = {
        "in_proj.weight": (4 * C, C),
        "out_proj.weight": (C, 2 * C),
        "A_log": (2 * C, 16),
        "A_b_log": (2 * C, 16),
        "D": (2 * C,),
        "D_b": (2 * C,),
        **{f"conv1d{half}.weight": (2 * C, 1, 4) for half in ("", "_b")},
        **{f"conv1d{half}.bias": (2 * C,) for half in ("", "_b")},
        **{f"x_proj{half}.weight": (R + 32, 2 * C) for half in ("", "_b")},
        **{f"dt_proj{half}.weight": (2 * C, R) for half in ("", "_b")},
        **{f"dt_proj{half}.bias": (2 * C,) for half in ("", "_b")},
    }
    official = {
        "patch_embed.proj.weight": (C, 3, 16, 16),
        "patch_embed.proj.bias": (C,),
        "cls_token": (1, 1, C),
        "pos_embed": (1, 197, C),
        "norm_f.weight": (C,),
        **{f"layers.{i}.norm.weight": (C,) for i in range(24)},
        **{f"layers.{i}.mixer.{key}": shape for i in range(24) for key, shape in mixer.items()},
    }
    ours = shapes("vim-tiny")
    assert {key: shape for key, shape in ours.items() if not key.startswith("feature_pyramid.")} == official


@pytest.mark.parametrize("name", ["vmamba-tiny-v0", "vmamba-tiny-s1l8", "vim-tiny"])
def test_four_scales_and_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    backbone, channels = build_backbone(name, drop_path=0.0)
    features = backbone.train()(torch.randn(1, 3, 32, 64))
    assert [tuple(f.shape) for f in features] == [
        (1, c, 32 // stride, 64 // stride) for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    sum(f.square().mean() for f in features).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_stochastic_depth_rises_to_the_rate() -> None:
    with torch.device("meta"):
        vmamba, _ = build_backbone("vmamba-tiny-s2l5", drop_path=0.2)
        vim, _ = build_backbone("vim-tiny", drop_path=0.23)
    rates = [block.drop_path.p for stage in vmamba.layers for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 10 for i in range(11)])
    # Vim's count one too many: 0 twice, and the last behind the last block
    rates = [*(layer.drop_path.p for layer in vim.layers), vim.drop_path.p]
    assert rates == pytest.approx([0.0, *(0.23 * i / 23 for i in range(23)), 0.23])


# ---- formulas, one step at a time, in float64 ----


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    """In float64 and eval mode, with no parameter left at 0 or 1."""
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def ssm(sequence: Tensor, x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor) -> Tensor:
    """One direction: sequence (L, D) -> (L, D)."""
    R, N = dt_weight.shape[1], A_log.shape[1]
    h = torch.zeros(A_log.shape, dtype=sequence.dtype)
    outputs = []
    for x in sequence:
        dt, B, C = (x_proj @ x).split([R, N, N])
        delta = torch.log1p(torch.exp(dt_weight @ dt + dt_bias))
        h = torch.exp(-delta[:, None] * A_log.exp()) * h + (delta * x)[:, None] * B
        outputs.append(h @ C + D * x)
    return torch.stack(outputs)


def ss2d(op: SS2D, picture: Tensor) -> Tensor:
    """picture (H, W, C) -> (H, W, C)."""
    H, W, _ = picture.shape
    x = picture @ op.in_proj.weight.T
    x, *gate = x.chunk(2, -1) if op.gated else [x]
    inner = x.shape[-1]
    x = silu(F.conv2d(x.permute(2, 0, 1)[None], op.conv2d.weight, op.conv2d.bias, padding=1, groups=inner))[0]
    by_rows = [(r, c) for r in range(H) for c in range(W)]
    by_columns = [(r, c) for c in range(W) for r in range(H)]
    y = torch.zeros(H, W, inner, dtype=x.dtype)
    for k, order in enumerate((by_rows, by_columns, by_rows[::-1], by_columns[::-1])):
        own = slice(k * inner, (k + 1) * inner)
        sequence = torch.stack([x[:, r, c] for r, c in order])
        weights = (op.x_proj_weight[k], op.dt_projs_weight[k], op.dt_projs_bias[k], op.A_logs[own], op.Ds[own])
        for (r, c), out in zip(order, ssm(sequence, *weights), strict=True):
            y[r, c] += out
    y = layer_norm(y, op.out_norm)
    return (y * silu(gate[0]) if gate else y) @ op.out_proj.weight.T


@pytest.mark.parametrize(
    "config", [VMambaConfig(1, vanilla=True), VMambaConfig(1), VMambaConfig(1, expand=1)], ids=["v0", "s2", "s1"]
)
@torch.no_grad()
def test_a_vmamba_block_against_its_formula(config: VMambaConfig) -> None:
    torch.manual_seed(0)
    block = noisy(VSSBlock(32, config, drop_path=0.1))
    pictures = 0.1 * torch.randn(2, 2, 3, 32, dtype=torch.float64)  # small, so that every eps shows
    expected = []
    for picture in pictures:
        x = picture + ss2d(block.op, layer_norm(picture, block.norm))
        if not config.vanilla:
            hidden = layer_norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
            gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
            x = x + gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        expected.append(x)
    torch.testing.assert_close(block(pictures), torch.stack(expected))


def test_patches_are_merged_rows_first() -> None:
    picture = torch.arange(2 * 4 * 3.0).view(1, 2, 4, 3)
    merged = MergePatches()(picture)
    for column in range(2):
        patch = [picture[0, r, 2 * column + c] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
        assert torch.equal(merged[0, 0, column], torch.cat(patch))


@pytest.mark.parametrize("vanilla", [True, False])
@torch.no_grad()
def test_vmamba_features_are_the_blocks_outputs_normalised(vanilla: bool) -> None:
    torch.manual_seed(0)
    network = noisy(VMamba(VMambaConfig(1, width=32, vanilla=vanilla)))
    picture = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    embed = network.patch_embed
    if vanilla:
        x = F.conv2d(picture, embed[0].weight, embed[0].bias, stride=4).permute(0, 2, 3, 1)
        x = layer_norm(x, embed[2])
    else:
        x = F.conv2d(picture, embed[0].weight, embed[0].bias, stride=2, padding=1).permute(0, 2, 3, 1)
        x = layer_norm(x, embed[2])
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        x = F.conv2d(x.permute(0, 3, 1, 2), embed[5].weight, embed[5].bias, stride=2, padding=1).permute(0, 2, 3, 1)
        x = layer_norm(x, embed[7])
    features = network(picture)
    for i, stage in enumerate(network.layers):
        for block in stage.blocks:
            x = block(x)
        torch.testing.assert_close(features[i], layer_norm(x, getattr(network, f"outnorm{i}")).permute(0, 3, 1, 2))
        if i == 3:
            break
        down = stage.downsample
        if vanilla:
            x = layer_norm(MergePatches()(x), down[1]) @ down[2].weight.T
        else:
            x = F.conv2d(x.permute(0, 3, 1, 2), down[1].weight, down[1].bias, stride=2, padding=1).permute(0, 2, 3, 1)
            x = layer_norm(x, down[3])


def mamba(mixer: BidirectionalMamba, u: Tensor) -> Tensor:
    """u (L, C) -> (L, C), the backward half as it is written: flip, run forwards, flip back."""
    x, z = (u @ mixer.in_proj.weight.T).chunk(2, -1)
    total = torch.zeros_like(x)
    for flip, conv, x_proj, dt_proj, A_log, D in (
        (False, mixer.conv1d, mixer.x_proj, mixer.dt_proj, mixer.A_log, mixer.D),
        (True, mixer.conv1d_b, mixer.x_proj_b, mixer.dt_proj_b, mixer.A_b_log, mixer.D_b),
    ):
        sequence, gate = (x.flip(0), z.flip(0)) if flip else (x, z)
        filtered = conv.bias.expand_as(sequence).clone()
        for tap in range(4):
            for t in range(3 - tap, len(sequence)):
                filtered[t] += conv.weight[:, 0, tap] * sequence[t - 3 + tap]
        out = ssm(silu(filtered), x_proj.weight, dt_proj.weight, dt_proj.bias, A_log, D) * silu(gate)
        total += out.flip(0) if flip else out
    return total / 2 @ mixer.out_proj.weight.T


@torch.no_grad()
def test_the_bidirectional_mixer_against_its_formula() -> None:
    torch.manual_seed(0)
    mixer = noisy(BidirectionalMamba(32, state_size=3))
    sequences = torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(mixer(sequences), torch.stack([mamba(mixer, u) for u in sequences]))


@torch.no_grad()
def test_vim_adds_normalises_and_mixes_with_the_class_token_in_the_middle() -> None:
    torch.manual_seed(0)
    network = noisy(Vim(VimConfig(32, depth=2)))
    picture = torch.randn(1, 3, 224, 224, dtype=torch.float64)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    patches = F.conv2d(picture, network.patch_embed.proj.weight, network.patch_embed.proj.bias, stride=16)
    tokens = patches[0].flatten(1).T
    x = torch.cat([tokens[:98], network.cls_token[0], tokens[98:]]) + network.pos_embed[0]
    for layer in network.layers:
        x = x + layer.mixer(rms(x, layer.norm.weight)[None])[0]
    x = rms(x, network.norm_f.weight)
    expected = torch.cat([x[:98], x[99:]]).T.view(1, 32, 14, 14)
    up4, up2, same, down = network(picture)
    torch.testing.assert_close(same, expected)
    torch.testing.assert_close(down, F.max_pool2d(expected, 2))
    assert (up4.shape, up2.shape) == ((1, 8, 56, 56), (1, 16, 28, 28))


@torch.no_grad()
def test_each_patch_of_the_pyramid_sees_its_own_token_alone() -> None:
    torch.manual_seed(0)
    pyramid = noisy(SimpleFeaturePyramid(32))
    feature = torch.randn(1, 32, 4, 4, dtype=torch.float64)
    before = pyramid(feature)
    feature[0, :, 1, 2] += 1.0
    for factor, a, b in zip((4, 2), before, pyramid(feature), strict=False):
        changed = (a != b).any(1)[0].nonzero()
        assert changed.shape[0] == factor * factor
        assert (changed // factor == torch.tensor([1, 2])).all()


@torch.no_grad()
def test_positions_are_resampled_for_another_grid() -> None:
    torch.manual_seed(0)
    network = noisy(Vim(VimConfig(32, depth=1)))
    assert network.position_embedding((14, 14)) is network.pos_embed
    resampled = network.position_embedding((28, 14))[0]
    assert torch.equal(resampled[28 * 14 // 2], network.pos_embed[0, 98])
    resampled = torch.cat([resampled[:196], resampled[197:]]).view(28, 14, 32)
    trained = torch.cat([network.pos_embed[0, :98], network.pos_embed[0, 99:]]).view(14, 14, 32)

    def cubic(distance: float) -> float:
        """Keys' kernel with a = -3/4."""
        d = abs(distance)
        return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)

    for row in range(28):
        centre = (row + 0.5) / 2 - 0.5
        near = range(int(centre // 1) - 1, int(centre // 1) + 3)
        expected = sum(cubic(centre - r) * trained[min(max(r, 0), 13)] for r in near)
        torch.testing.assert_close(resampled[row], expected)
