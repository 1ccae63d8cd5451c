from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.pvt_v2 import PVT_V2
from avsseg.model.vggish import CompactAudioEncoder, Vggish, build_audio_encoder

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "state_dict_shapes.json").read_text())


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", sorted(PVT_V2))
def test_pvt_v2_has_the_official_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        backbone, channels = build_backbone(name)
    official = {key: shape for key, shape in SHAPES[name].items() if not key.startswith("head.")}
    assert shapes(backbone) == official
    assert channels == PVT_V2[name].dims


def test_vggish_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        assert shapes(Vggish()) == SHAPES["vggish"]


def test_resnet50_has_torchvision_names_and_size() -> None:
    with torch.device("meta"):
        backbone, channels = build_backbone("resnet50")
    state = shapes(backbone)
    # torchvision's model has 25,557,032 parameters, of which its classifier 2048 * 1000 + 1000
    assert sum(p.numel() for p in backbone.parameters()) == 25_557_032 - 2_049_000
    assert state["layer3.5.conv2.weight"] == [256, 256, 3, 3]
    assert state["layer4.0.downsample.0.weight"] == [2048, 1024, 1, 1]
    assert state["layer1.0.downsample.1.running_var"] == [256]
    assert channels == (256, 512, 1024, 2048)


# published counts of all parameters (EfficientNet-Lite's own table gives 4.7, 5.4 and 6.1 million), of which the
# classifier has 1280 * (last width + 2) + 1280 * 1000 + 1000
@pytest.mark.parametrize(
    ("name", "millions", "blocks", "widths"),
    [
        ("efficientnet_lite0", 4.7, 16, (24, 40, 112, 320)),
        ("efficientnet_lite1", 5.4, 21, (24, 40, 112, 320)),
        ("efficientnet_lite2", 6.1, 21, (24, 48, 120, 352)),
    ],
)
def test_efficientnet_lite_has_the_published_size(
    name: str, millions: float, blocks: int, widths: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        backbone, channels = build_backbone(name)
    classifier = 1280 * (widths[-1] + 2) + 1280 * 1000 + 1000
    assert sum(p.numel() for p in backbone.parameters()) + classifier == pytest.approx(millions * 1e6, abs=5e4)
    assert (len(backbone.blocks), channels) == (blocks, widths)


def tensorflow_same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int) -> torch.Tensor:
    """The rule in TensorFlow's documentation of `tf.nn.convolution`, for any size."""
    kernel = weight.shape[-1]
    pads = []
    for side in (x.shape[-1], x.shape[-2]):
        whole = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [whole // 2, whole - whole // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


@torch.no_grad()
def test_efficientnet_lite_against_its_formula() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_lite0")[0].double().eval()
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point() and "running_var" not in name:
            tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.ndim == 1 else (2 / tensor[0].numel()) ** 0.5))
        elif tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    expected, x = [], torch.randn(1, 3, 64, 96, dtype=torch.float64)
    picture = x

    def layer(x: torch.Tensor, part: torch.nn.Module, stride: int = 1, groups: int = 1) -> torch.Tensor:
        y, norm = tensorflow_same(x, part[0].weight, stride, groups), part[1]
        scale = norm.weight / (norm.running_var + 1e-3).sqrt()
        return y * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]

    x = layer(x, backbone.stem, 2).clamp(0, 6)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # of the first blocks of stages 2, 3, 4 and 6
    for index, block in enumerate(backbone.blocks):
        y = x if block.expand is None else layer(x, block.expand).clamp(0, 6)
        y = layer(y, block.depthwise, strides.get(index, 1), y.shape[1]).clamp(0, 6)
        y = layer(y, block.project)
        x = x + y if x.shape == y.shape else y
        if index in (2, 4, 10, 15):
            expected.append(x)
    torch.testing.assert_close(backbone(picture), expected)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet50", "resnet18_slim", "efficientnet_lite0"])
def test_four_scales(name: str) -> None:
    backbone, channels = build_backbone(name)
    features = backbone.eval()(torch.randn(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // stride, 96 // stride) for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_pvt_attention_against_plain_softmax() -> None:
    torch.manual_seed(0)
    backbone, _ = build_backbone("pvt_v2_b0")
    attention = backbone.block2[0].attn.double()
    x = torch.randn(1, 8 * 8, 64, dtype=torch.float64)
    reduced = attention.norm(attention.sr(x.transpose(1, 2).reshape(1, 64, 8, 8)).flatten(2).transpose(1, 2))
    key, value = attention.kv(reduced).chunk(2, dim=-1)
    heads = []
    for q, k, v in zip(attention.q(x).chunk(2, -1), key.chunk(2, -1), value.chunk(2, -1), strict=True):
        heads.append((q @ k.transpose(1, 2) * 32**-0.5).softmax(-1) @ v)
    torch.testing.assert_close(attention(x, 8, 8), attention.proj(torch.cat(heads, -1)))


# heads, MLP ratios and spatial reductions of the official configurations; shapes alone do not show the heads
OFFICIAL = {
    **dict.fromkeys(("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4"), (8, 8, 4, 4)),
    "pvt_v2_b5": (4, 4, 4, 4),
}


@pytest.mark.parametrize("name", sorted(PVT_V2))
def test_pvt_v2_has_the_official_configuration(name: str) -> None:
    config = PVT_V2[name]
    assert (config.heads, config.mlp_ratios, config.reductions) == ((1, 2, 5, 8), OFFICIAL[name], (8, 4, 2, 1))


def layer_norm(x: torch.Tensor, norm: torch.nn.LayerNorm, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


@torch.no_grad()
def test_a_pvt_stage_against_its_formula() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("pvt_v2_b0")[0].double().eval()
    for parameter in backbone.parameters():
        parameter.mul_(0.3).add_(0.02 * torch.randn_like(parameter))  # small, so that every eps shows
    picture = 0.1 * torch.randn(1, 3, 64, 64, dtype=torch.float64)
    embed, (block, second), last = backbone.patch_embed1, backbone.block1, backbone.norm1
    patches = F.conv2d(picture, embed.proj.weight, embed.proj.bias, stride=4, padding=3)
    x = layer_norm(patches.flatten(2).transpose(1, 2), embed.norm, 1e-5)
    for part in (block, second):
        attention, mlp = part.attn, part.mlp
        y = layer_norm(x, part.norm1, 1e-6)
        picture_of_y = y.transpose(1, 2).reshape(1, 32, 16, 16)
        reduced = F.conv2d(picture_of_y, attention.sr.weight, attention.sr.bias, stride=8).flatten(2).transpose(1, 2)
        key, value = attention.kv(layer_norm(reduced, attention.norm, 1e-5)).chunk(2, -1)
        x = x + attention.proj((attention.q(y) @ key.transpose(1, 2) * 32**-0.5).softmax(-1) @ value)  # one head
        hidden = mlp.fc1(layer_norm(x, part.norm2, 1e-6)).transpose(1, 2).reshape(1, 256, 16, 16)
        hidden = F.conv2d(hidden, mlp.dwconv.dwconv.weight, mlp.dwconv.dwconv.bias, padding=1, groups=256)
        gelu = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        x = x + mlp.fc2(gelu.flatten(2).transpose(1, 2))
    expected = layer_norm(x, last, 1e-6).transpose(1, 2).reshape(1, 32, 16, 16)
    torch.testing.assert_close(backbone(picture)[0], expected)


@torch.no_grad()
def test_a_resnet_bottleneck_strides_in_its_middle_convolution() -> None:
    torch.manual_seed(0)
    block = build_backbone("resnet50")[0].layer2[0].double().eval()

    def norm(x: torch.Tensor, bn: torch.nn.BatchNorm2d) -> torch.Tensor:
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return x * scale[:, None, None] + (bn.bias - bn.running_mean * scale)[:, None, None]

    for bn in (block.bn1, block.bn2, block.bn3, block.downsample[1]):
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            tensor.uniform_(0.1, 1)
    x = torch.randn(1, 256, 8, 8, dtype=torch.float64)
    y = norm(F.conv2d(x, block.conv1.weight), block.bn1).relu()
    y = norm(F.conv2d(y, block.conv2.weight, stride=2, padding=1), block.bn2).relu()
    y = norm(F.conv2d(y, block.conv3.weight), block.bn3)
    residual = norm(F.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), (y + residual).relu())


def test_audio_encoders() -> None:
    compact = build_audio_encoder("compact").eval()
    assert isinstance(compact, CompactAudioEncoder)
    assert sum(p.numel() for p in compact.parameters()) < 5_000_000
    assert compact(torch.randn(3, 1, 96, 64)).shape == (3, 128)


def test_vggish_flattens_channels_last() -> None:
    with torch.device("meta"):
        vggish = build_audio_encoder("vggish")
    vggish = vggish.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in vggish.parameters():
            parameter.zero_()
        # position (row 5, column 3) of channel 511 is the last of 6 * 4 * 512 inputs when channels come last
        vggish.features[-3].bias[511] = 2.0
        vggish.embeddings[0].weight[0, 12287] = 1.0
        vggish.embeddings[2].weight[0, 0] = 1.0
        vggish.embeddings[4].weight[7, 0] = 1.0
        out = vggish(torch.zeros(1, 1, 96, 64))
        vggish.embeddings[4].bias[9] = -1.0  # the last layer has a ReLU too
        below = vggish(torch.zeros(1, 1, 96, 64))
    assert out[0, 7].item() == 2.0
    assert out.sum().item() == 2.0
    assert torch.equal(below, out)
