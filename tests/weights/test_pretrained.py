from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avsseg.errors import UsageError, WeightsError
from avsseg.model.avs_mamba import normalise
from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.efficientnet_lite import EFFICIENTNET_LITE, STAGES
from avsseg.model.backbones.pvt_v2 import PVT_V2
from avsseg.model.vggish import CompactAudioEncoder, Vggish
from avsseg.weights.conversion import convert_file
from avsseg.weights.official import guess_kind, read_tensors
from avsseg.weights.pretrained import load_audio_weights, load_backbone_weights

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "state_dict_shapes.json").read_text())


def official(name: str) -> dict[str, Tensor]:
    """A state dict with the official names and shapes."""
    torch.manual_seed(0)
    return {key: torch.rand(shape) for key, shape in SHAPES[name].items()}


def resnet50(prefix: str = "", frozen: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        state = build_backbone("resnet50")[0].state_dict()
    return {
        prefix + name: torch.tensor(7) if name.endswith("num_batches_tracked") else torch.rand(tensor.shape) + 0.1
        for name, tensor in state.items()
        if not (frozen and name.endswith("num_batches_tracked"))
    }


def assert_loaded(module: nn.Module, state: dict[str, Tensor]) -> None:
    ours = module.state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in ours)


@pytest.mark.parametrize("new_format", [True, False])
def test_official_pvt_v2(tmp_path: Path, new_format: bool) -> None:
    state = official("pvt_v2_b0")
    path = tmp_path / "pvt_v2_b0.pth"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    backbone, _ = build_backbone("pvt_v2_b0")
    load_backbone_weights(backbone, path)
    assert_loaded(backbone, state)


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_wrapped_and_distributed_files(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    state = official("pvt_v2_b0")
    torch.save(wrap({f"module.{name}": tensor for name, tensor in state.items()}), tmp_path / "x.pth")
    backbone, _ = build_backbone("pvt_v2_b0")
    load_backbone_weights(backbone, tmp_path / "x.pth")
    assert_loaded(backbone, state)


def test_distributed_weights_in_safetensors(tmp_path: Path) -> None:
    state = official("pvt_v2_b0")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "x.safetensors")
    assert convert_file(tmp_path / "x.safetensors", tmp_path / "out.safetensors") == "pvt_v2_b0"


@pytest.mark.slow
def test_official_vggish_and_what_we_convert_it_to(tmp_path: Path) -> None:
    state = official("vggish")
    torch.save({**state, "pproc.pca_means": torch.zeros(128, 1)}, tmp_path / "vggish.pth")
    assert convert_file(tmp_path / "vggish.pth", tmp_path / "v.safetensors") == "vggish"
    for name in ("vggish.pth", "v.safetensors"):
        with torch.device("meta"):
            vggish = Vggish()
        vggish.to_empty(device="cpu")
        load_audio_weights(vggish, tmp_path / name)
        assert_loaded(vggish, state)
        assert not any(parameter.requires_grad for parameter in vggish.parameters())


@pytest.mark.parametrize("name", sorted(PVT_V2))
def test_every_pvt_variant_is_told_from_its_names(name: str) -> None:
    assert guess_kind({key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}, "x") == name


@pytest.mark.parametrize(
    ("prefix", "frozen", "shift"),
    [("", False, 0.0), ("backbone.0.body.", True, 0.0), ("backbone.body.", True, 1e-5), ("backbone.body.", False, 0.0)],
)
def test_resnet50_alone_and_inside_detectors(tmp_path: Path, prefix: str, frozen: bool, shift: float) -> None:
    state = resnet50(prefix, frozen)
    rest = {"fc.weight": torch.zeros(1000, 2048)} if not prefix else {"class_embed.weight": torch.zeros(92, 256)}
    torch.save({"model": state | rest}, tmp_path / "r.pth")
    assert convert_file(tmp_path / "r.pth", tmp_path / "r.safetensors") == "resnet50"
    for name in ("r.pth", "r.safetensors"):
        backbone, _ = build_backbone("resnet50")
        load_backbone_weights(backbone, tmp_path / name)
        ours = backbone.state_dict()
        assert torch.equal(ours["layer4.2.conv3.weight"], state[f"{prefix}layer4.2.conv3.weight"])
        variance = state[f"{prefix}layer1.0.bn1.running_var"]
        torch.testing.assert_close(ours["layer1.0.bn1.running_var"], variance - shift, rtol=0, atol=1e-7)
        assert ours["bn1.num_batches_tracked"].item() == (0 if frozen else 7)


def published_lite(name: str) -> dict[str, Tensor]:
    """Names, shapes and order of the public PyTorch port, from the layout of its blocks."""
    torch.manual_seed(0)
    config = EFFICIENTNET_LITE[name]
    state: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = torch.randn(shape) * (2 / math.prod(shape[1:])) ** 0.5
        for key in ("weight", "running_var"):
            state[f"{norm}.{key}"] = torch.rand(shape[0]) + 0.5
        for key in ("bias", "running_mean"):
            state[f"{norm}.{key}"] = torch.randn(shape[0]) * 0.3
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    block, channels = 0, 32
    for stage, (_, kernel, _, expansion, _) in enumerate(STAGES):
        for _ in range(config.repeats(stage)):
            prefix, inner = f"_blocks.{block}.", channels * expansion
            if expansion > 1:
                layer(f"{prefix}_expand_conv", f"{prefix}_bn0", inner, channels, 1, 1)
            layer(f"{prefix}_depthwise_conv", f"{prefix}_bn1", inner, 1, kernel, kernel)
            channels = config.channels(stage)
            layer(f"{prefix}_project_conv", f"{prefix}_bn2", channels, inner, 1, 1)
            block += 1
    layer("_conv_head", "_bn1", 1280, channels, 1, 1)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(1000, 1280), torch.randn(1000)
    return state


@pytest.mark.parametrize("name", sorted(EFFICIENTNET_LITE))
def test_published_efficientnet_lite(tmp_path: Path, name: str) -> None:
    state = published_lite(name)
    torch.save(state, tmp_path / "lite.pth")
    assert convert_file(tmp_path / "lite.pth", tmp_path / "lite.safetensors") == name
    first, converted = (build_backbone(name)[0].eval() for _ in range(2))
    load_backbone_weights(first, tmp_path / "lite.pth")
    load_backbone_weights(converted, tmp_path / "lite.safetensors")
    assert_loaded(converted, first.state_dict())
    ours = first.state_dict()
    assert torch.equal(ours["blocks.3.depthwise.0.weight"], state["_blocks.3._depthwise_conv.weight"])
    assert torch.equal(ours["blocks.0.project.1.running_var"], state["_blocks.0._bn2.running_var"])
    assert torch.equal(ours["blocks.1.expand.1.bias"], state["_blocks.1._bn0.bias"])


@torch.no_grad()
def test_efficientnet_lite_takes_the_pictures_that_we_give(tmp_path: Path) -> None:
    state = published_lite("efficientnet_lite0")
    torch.save(state, tmp_path / "lite.pth")
    backbone = build_backbone("efficientnet_lite0")[0].eval()
    load_backbone_weights(backbone, tmp_path / "lite.pth")
    frames = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    theirs = F.conv2d((frames.movedim(-1, 1).float() - 127) / 128, state["_conv_stem.weight"], stride=2)
    norm = [state[f"_bn0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    theirs = F.batch_norm(theirs, *norm, eps=1e-3)
    found = backbone.stem(normalise(frames))
    # theirs is without padding: one pixel fewer, at the right and the bottom
    torch.testing.assert_close(found[..., :-1, :-1], theirs, atol=1e-4, rtol=1e-4)


def test_another_module_is_named(tmp_path: Path) -> None:
    torch.save(official("pvt_v2_b0"), tmp_path / "b0.pth")
    with torch.device("meta"):
        larger, _ = build_backbone("pvt_v2_b1")
    with pytest.raises(WeightsError, match="holds pvt_v2_b0, not pvt_v2_b1"):
        load_backbone_weights(larger, tmp_path / "b0.pth")
    slim, _ = build_backbone("resnet18_slim")
    with pytest.raises(WeightsError, match=r"does not fit: \d+ missing"):
        load_backbone_weights(slim, tmp_path / "b0.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        load_audio_weights(CompactAudioEncoder(), tmp_path / "b0.pth")


def test_misfits_are_listed_and_change_nothing(tmp_path: Path) -> None:
    state = official("pvt_v2_b0")
    del state["norm4.bias"]
    state |= {f"surprise{i}": torch.zeros(1) for i in range(5)} | {"norm1.weight": torch.zeros(31)}
    torch.save(state, tmp_path / "x.pth")
    backbone, _ = build_backbone("pvt_v2_b0")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_backbone_weights(backbone, tmp_path / "x.pth")
    text = str(caught.value)
    assert "1 missing (norm4.bias)" in text
    assert "5 unexpected (surprise0, surprise1, surprise2 and 2 more)" in text
    assert "1 of another shape (norm1.weight (31,) instead of (32,))" in text
    assert "\n" not in text
    assert_loaded(backbone, before)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 torn", b"\x80\x02}q\x00."])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"cannot be read|no state dict") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_code_in_a_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Payload()}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"cannot be read as a file of tensors \(holds Python objects: print\)\. Dow"
    ):
        read_tensors(tmp_path / "x.pth")
    assert capsys.readouterr().out == ""


def test_what_is_no_file_of_tensors_is_said_in_words_of_our_own(tmp_path: Path) -> None:
    for content in (b"\x1b[31mtext", b"PK\x03\x04 torn", b"\x80\x02cos\n\x1b[31msystem\n."):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(
            WeightsError, match=r"tensors \((damaged or no PyTorch file|holds Python objects: os\.\\x1b\[31msystem)\)"
        ) as caught:
            read_tensors(tmp_path / "x.pth")
        assert "weights_only" not in str(caught.value)


ODD_TENSORS = {
    "sparse": (torch.zeros(32, 3, 7, 7).to_sparse(), "is sparse or without values"),
    "meta": (torch.zeros(32, 3, 7, 7, device="meta"), "is sparse or without values"),
    "complex": (torch.zeros(32, 3, 7, 7, dtype=torch.complex64), "has values of type complex64"),
    "int8": (torch.zeros(32, 3, 7, 7, dtype=torch.int8), "has values of type int8"),
    "float8": (torch.zeros(32, 3, 7, 7).to(torch.float8_e4m3fn), "has values of type float8_e4m3fn"),
    "nan": (torch.full((32, 3, 7, 7), math.nan), "holds NaN or infinite values"),
    "inf": (torch.full((32, 3, 7, 7), -math.inf, dtype=torch.float16), "holds NaN or infinite values"),
}


@pytest.mark.parametrize("odd", ODD_TENSORS)
def test_odd_tensors_are_named(tmp_path: Path, odd: str) -> None:
    tensor, fault = ODD_TENSORS[odd]
    torch.save({**official("pvt_v2_b0"), "patch_embed1.proj.weight": tensor}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"x\.pth: its tensor patch_embed1\.proj\.weight {fault}\. Take"):
        convert_file(tmp_path / "x.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "beside",
    [
        ("patch_embed1.proj.weight",),
        ("cls_token", "layers.0.mixer.A_b_log"),
        ("layers.0.blocks.0.norm.weight", "layers.0.blocks.0.op.out_norm.weight"),
    ],
)
def test_single_numbers_do_not_fit(tmp_path: Path, beside: tuple[str, ...]) -> None:
    torch.save({name: torch.tensor(1.0) for name in beside}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"of another shape \({beside[0]} \(\) instead of"):
        convert_file(tmp_path / "x.pth", tmp_path / "out.safetensors")


def test_float16_and_parameters_are_taken(tmp_path: Path) -> None:
    state = {name: nn.Parameter(tensor.half()) for name, tensor in official("pvt_v2_b0").items()}
    torch.save(state, tmp_path / "x.pth")
    assert convert_file(tmp_path / "x.pth", tmp_path / "out.safetensors") == "pvt_v2_b0"


def test_names_from_a_file_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    save_file({"a\nb": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"no known kind \(a\\nb\)"):
        convert_file(tmp_path / "x.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stages.0.blocks.0.attn.q.weight"], "timm's names"),
        (["pyramid.levels.0.adapter.weight"], "an avsseg model already"),
        (["something.else"], r"no known kind \(something\.else"),
    ],
)
def test_kinds_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        convert_file(tmp_path / "x.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_conversion_keeps_the_tensors_and_leaves_the_classifier(tmp_path: Path) -> None:
    state = official("pvt_v2_b0")
    torch.save(state, tmp_path / "b0.pth")
    convert_file(tmp_path / "b0.pth", tmp_path / "b0.safetensors")
    converted = load_file(tmp_path / "b0.safetensors")
    assert set(state) - set(converted) == {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in converted.items())
    with pytest.raises(UsageError, match=r"\.safetensors"):
        convert_file(tmp_path / "b0.pth", tmp_path / "b0.pt")
    with pytest.raises(UsageError, match="unknown kind 'vgg'"):
        convert_file(tmp_path / "b0.pth", tmp_path / "o.safetensors", "vgg")
    with pytest.raises(WeightsError, match="does not fit"):
        convert_file(tmp_path / "b0.pth", tmp_path / "o.safetensors", "pvt_v2_b5")
    with pytest.raises(WeightsError, match="no such file"):
        convert_file(tmp_path / "absent.pth", tmp_path / "o.safetensors")
