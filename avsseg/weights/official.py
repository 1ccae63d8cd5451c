"""Reads the files that others publish: which module they fill, and its state dict out of them.

pvt_v2_b0 .. b5   official names; `head.*` is the classifier
vmamba-*          official names, of the first release (`self_attention`) or the second (`op`), also with weights of 1x1
                  convolutions for linear layers; `classifier.*`, or `norm.*` and `head.*`, is the classifier
vim-*             official names; `head.*` is the classifier
resnet50          torchvision's names; `fc.*` is the classifier; or inside a detector, whose other parts are left:
                  DETR keeps it under `backbone.0.body.`, torchvision's detectors under `backbone.body.`
efficientnet_*    names of the public PyTorch port; `_conv_head.*`, `_bn1.*` and `_fc.*` are the classifier. They take
                  pictures as (255 x - 127) / 128, which is folded into the stem
vggish            the public PyTorch port; `pproc.*` is the PCA
yamnet            what weights/unpack_yamnet.py reads out of Google's file; `classifier.*` is the classifier
avs-mamba         the authors' whole model
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from avsseg.errors import WeightsError, first_of, printable
from avsseg.model.avs_mamba import IMAGENET_MEAN, IMAGENET_STD
from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.efficientnet_lite import EFFICIENTNET_LITE
from avsseg.model.backbones.pvt_v2 import PVT_V2
from avsseg.model.backbones.vim import VIM
from avsseg.model.backbones.vmamba import VMAMBA
from avsseg.model.vggish import build_audio_encoder

AVS_MAMBA = "avs-mamba"
AUDIO_KINDS = ("vggish", "yamnet")
KINDS = (AVS_MAMBA, *PVT_V2, *VMAMBA, *VIM, "resnet50", *EFFICIENTNET_LITE, *AUDIO_KINDS)
DETR_PREFIX, DETECTOR_PREFIX = "backbone.0.body.", "backbone.body."

# where trainers put the state dict when they save more than that
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_CLASSIFIERS = re.compile(r"(head|fc|pproc|classifier|_conv_head|_bn1|_fc)\.")
# what a backbone here has and its published file has not: it starts anew
_OURS_ALONE = re.compile(r"(outnorm\d|feature_pyramid|projection)\.")
_VMAMBA_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(op|self_attention)\.")
# first release -> second
_VMAMBA_RENAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"(\.blocks\.\d+\.)ln_1\."), r"\1norm."),
    (re.compile(r"(\.blocks\.\d+\.)self_attention\."), r"\1op."),
    (re.compile(r"(\.downsample\.)norm\."), r"\g<1>1."),
    (re.compile(r"(\.downsample\.)reduction\."), r"\g<1>2."),
    (re.compile(r"^norm\."), "classifier.norm."),
)
_LITE_BLOCK = re.compile(r"_?blocks\.(\d+)\.(_depthwise_conv|depthwise\.0)\.weight")
_LITE_RENAMES = (
    (re.compile(r"^_conv_stem\."), "stem.0."),
    (re.compile(r"^_bn0\."), "stem.1."),
    (re.compile(r"^_blocks\.(\d+)\._expand_conv\."), r"blocks.\1.expand.0."),
    (re.compile(r"^_blocks\.(\d+)\._bn0\."), r"blocks.\1.expand.1."),
    (re.compile(r"^_blocks\.(\d+)\._depthwise_conv\."), r"blocks.\1.depthwise.0."),
    (re.compile(r"^_blocks\.(\d+)\._bn1\."), r"blocks.\1.depthwise.1."),
    (re.compile(r"^_blocks\.(\d+)\._project_conv\."), r"blocks.\1.project.0."),
    (re.compile(r"^_blocks\.(\d+)\._bn2\."), r"blocks.\1.project.1."),
)
_LITE_MEAN, _LITE_STD = 127 / 255, 128 / 255  # of the pictures that the published files were trained on
# DeiT's trainer, which Vim uses, and Swin's, which VMamba uses, save the run's settings beside the weights: they are
# read as plain values and thrown away
_SETTINGS_CLASSES = ((argparse.Namespace, "argparse.Namespace"), (OrderedDict, "yacs.config.CfgNode"))
_BATCH_NORM_EPS = 1e-5
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_FOREIGN = (
    (re.compile(r"stages\.\d+\.blocks\.\d+\.attn\."), "a PVT-v2 with timm's names; take the official pvt_v2_*.pth"),
    (re.compile(r"pyramid\.levels\.\d"), "an avsseg model already; give it to --model"),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch.save file, unwrapped from `model` or `state_dict` and `module.`.

    Only tensors are read, never code. Raises WeightsError, also as `check_values` does.
    """
    shown = printable(path)
    if not os.path.isfile(path):
        raise WeightsError(f"{shown}: no such file. Give a .pth or .safetensors file")
    try:
        content = read_safetensors(path)[0] if path.suffix == ".safetensors" else load_untrusted(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{shown}: cannot be read ({printable(str(error))}). Download it again") from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        # no more of PyTorch's text: it teaches to load the file without these precautions
        unknown = re.search(r"\bGLOBAL (\S+)", str(error))
        reason = f"holds Python objects: {printable(unknown[1])}" if unknown else "damaged or no PyTorch file"
        hint = "Download it again, or save its state dict alone"
        raise WeightsError(f"{shown}: cannot be read as a file of tensors ({reason}). {hint}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {}
    if isinstance(content, dict):
        tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{shown}: holds no state dict. Save one with torch.save(model.state_dict(), FILE)")
    check_values(tensors, shown)
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file. Raises OSError or SafetensorError."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def check_values(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError, which names `source` and the tensor, unless all are dense and of finite floats.

    A single whole number will do: batch norms count their batches.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            fault = "is sparse or without values"
        elif tensor.dtype not in _FLOATS and (tensor.ndim or tensor.is_complex() or tensor.is_floating_point()):
            fault = f"has values of type {str(tensor.dtype).removeprefix('torch.')}"
        # a NaN makes both its extremes NaN; unlike isfinite, this copies nothing
        elif tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, tensor.detach().aminmax())):
            fault = "holds NaN or infinite values"
        else:
            continue
        raise WeightsError(f"{source}: its tensor {printable(name)} {fault}. Take a file of dense, finite floats")


def load_untrusted(path: Path) -> Any:
    """What torch.save wrote, of tensors and plain values; no code of the file runs. Raises whatever torch raises."""
    with torch.serialization.safe_globals(list(_SETTINGS_CLASSES)):
        return torch.load(path, map_location="cpu", weights_only=True)


def guess_kind(tensors: Mapping[str, Tensor], source: str) -> str:
    """One of KINDS, from names and shapes. Raises WeightsError, which names `source`, if it is none of them."""
    if any(name.startswith(("vision_backbone.", "mamba_encoder.")) for name in tensors):
        return AVS_MAMBA
    if "patch_embed1.proj.weight" in tensors:
        return _pvt_variant(tensors)
    if "features.13.weight" in tensors and "embeddings.0.weight" in tensors:
        return "vggish"
    if "stem.bias" in tensors and "blocks.0.pointwise.bias" in tensors:
        return "yamnet"
    if any(map(_VMAMBA_BLOCK.match, tensors)):
        return _vmamba_variant(tensors)
    if "layers.0.mixer.A_b_log" in tensors and "cls_token" in tensors:
        return _vim_variant(tensors)
    if any(map(_LITE_BLOCK.match, tensors)):
        return _lite_variant(tensors)
    prefix = _resnet_prefix(tensors)
    if f"{prefix}layer4.2.conv3.weight" in tensors and f"{prefix}layer3.6.conv1.weight" not in tensors:
        return "resnet50"
    found = next((what for pattern, what in _FOREIGN if any(map(pattern.match, tensors))), "")
    if found:
        raise WeightsError(f"{source}: holds {found}")
    raise WeightsError(
        f"{source}: holds weights of no known kind ({first_of(list(tensors))}). Known: {', '.join(KINDS)}"
    )


def module_of(kind: str) -> nn.Module:
    """The module of that kind without values, on the meta device: names and shapes only."""
    with torch.device("meta"):
        return build_audio_encoder(kind) if kind in AUDIO_KINDS else build_backbone(kind)[0]


def module_state(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`fitted` for a backbone or an audio encoder; classifier, PCA and detector are left out.

    What no published file has may be absent from both: `outnorm` of VMamba, `feature_pyramid` of Vim and `projection`
    of YAMNet.
    """
    part = _backbone_part(tensors)
    published = {n: tensor for n, tensor in expected.items() if n in part or not _OURS_ALONE.match(n)}
    return fitted(_linear(part, published), published, source)


def fitted(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors, which have the names and shapes of `expected`; counts of batches are filled in.

    Raises WeightsError, which names `source`, when names are missing or left over, or shapes differ.
    """
    ours = dict(tensors)
    for name in expected:
        # frozen batch norms count no batches
        if name.endswith(".num_batches_tracked") and name not in ours:
            ours[name] = torch.zeros((), dtype=torch.long)
    found = misfit(ours, expected)
    if found:
        raise WeightsError(f"{source}: does not fit: {found}. Take the file of this very module")
    return ours


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Which names are missing or left over, and which shapes are not as in `expected`; "" if all fits."""
    faults = (
        ("missing", [name for name in expected if name not in tensors]),
        ("unexpected", [name for name in tensors if name not in expected]),
        (
            "of another shape",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in tensors and tensors[name].shape != tensor.shape
            ],
        ),
    )
    return "; ".join(f"{len(names)} {fault} ({first_of(names)})" for fault, names in faults if names)


def _length(tensor: Tensor, side: int = 0) -> int:
    """Of one side; 0 for a single number, whose misfit is reported later."""
    return tensor.shape[side] if tensor.ndim else 0


def _pvt_variant(tensors: Mapping[str, Tensor]) -> str:
    """The variant with this width and these depths; the nearest in depth, whose misfit is reported later, if none."""
    width = _length(tensors["patch_embed1.proj.weight"])
    depths = [sum(bool(re.fullmatch(rf"block{i}\.\d+\.norm1\.weight", n)) for n in tensors) for i in range(1, 5)]

    def distance(name: str) -> int:
        config = PVT_V2[name]
        return 100 * (config.dims[0] != width) + sum(abs(a - b) for a, b in zip(config.depths, depths, strict=True))

    return min(PVT_V2, key=distance)


def _vmamba_variant(tensors: Mapping[str, Tensor]) -> str:
    """The variant with this width, release, inner width and these depths; the nearest, as for PVT-v2, if none."""
    names = _renamed(tensors)
    vanilla = not any(".norm2." in name for name in names)
    width = next((_length(t) for n, t in names.items() if n.endswith("layers.0.blocks.0.norm.weight")), 0)
    inner = next((_length(t) for n, t in names.items() if n.endswith("layers.0.blocks.0.op.out_norm.weight")), 0)
    blocks = {(m[1], m[2]) for m in map(_VMAMBA_BLOCK.match, names) if m}

    def distance(name: str) -> int:
        config = VMAMBA[name]
        differences = (config.vanilla != vanilla, config.width != width, config.expand * config.width != inner)
        return 100 * sum(differences) + abs(sum(config.depths) - len(blocks))

    return min(VMAMBA, key=distance)


def _vim_variant(tensors: Mapping[str, Tensor]) -> str:
    width = _length(tensors["cls_token"], -1)
    return min(VIM, key=lambda name: abs(VIM[name].dim - width))


def _lite_variant(tensors: Mapping[str, Tensor]) -> str:
    """The variant with so many blocks, of which the last is so wide; the nearest, as for PVT-v2, if none."""
    blocks = {int(m[1]) for m in map(_LITE_BLOCK.match, tensors) if m}
    last = max(blocks)
    names = (f"_blocks.{last}._project_conv.weight", f"blocks.{last}.project.0.weight")
    width = next((_length(tensors[name]) for name in names if name in tensors), 0)

    def distance(name: str) -> int:
        config = EFFICIENTNET_LITE[name]
        return 1000 * abs(config.blocks - len(blocks)) + abs(config.dims[-1] - width)

    return min(EFFICIENTNET_LITE, key=distance)


def _with_our_pictures(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An EfficientNet-Lite's with a stem that takes ImageNet's mean 0 and deviation 1, as `normalise` gives.

    Exact but at the rim, where the picture is padded with its mean instead of almost the same grey.
    """
    weight, mean = tensors.get("stem.0.weight"), tensors.get("stem.1.running_mean")
    if weight is None or mean is None or weight.ndim != 4 or weight.shape[1] != 3 or mean.shape != weight.shape[:1]:
        return tensors  # whose misfit is reported later
    shift = (torch.tensor(IMAGENET_MEAN) - _LITE_MEAN) / _LITE_STD
    scale = torch.tensor(IMAGENET_STD) / _LITE_STD
    added = (weight.float() * shift[:, None, None]).sum((1, 2, 3))
    return {
        **tensors,
        "stem.0.weight": weight * scale[:, None, None],
        "stem.1.running_mean": mean - added,
    }


def _renamed(
    tensors: Mapping[str, Tensor], renames: Iterable[tuple[re.Pattern[str], str]] = _VMAMBA_RENAMES
) -> dict[str, Tensor]:
    """Our names, as VMamba's second release has them, for published ones; others stay."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return renamed


def _linear(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 1x1 convolutions (D, C, 1, 1) as those of linear layers (D, C), where these are expected."""
    return {
        name: tensor.flatten(1)
        if name in expected and tensor.shape[2:] == (1, 1) and expected[name].ndim == 2 and tensor.ndim == 4
        else tensor
        for name, tensor in tensors.items()
    }


def _resnet_prefix(tensors: Mapping[str, Tensor]) -> str:
    return next((p for p in (DETR_PREFIX, DETECTOR_PREFIX) if f"{p}conv1.weight" in tensors), "")


def _backbone_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(map(_VMAMBA_BLOCK.match, tensors)):
        tensors = _renamed(tensors)
    if "_conv_stem.weight" in tensors:
        own = {name: tensor for name, tensor in tensors.items() if not _CLASSIFIERS.match(name)}
        return _with_our_pictures(_renamed(own, _LITE_RENAMES))
    prefix = _resnet_prefix(tensors)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    part = {name: tensor for name, tensor in inside.items() if not _CLASSIFIERS.match(name)}
    if prefix == DETECTOR_PREFIX and "bn1.num_batches_tracked" not in part:
        # torchvision's COCO detectors with frozen batch norms run with eps 0, ours adds one: sqrt(var - eps + eps)
        for name in part:
            if name.endswith(".running_var"):
                part[name] = part[name] - _BATCH_NORM_EPS
    return part
