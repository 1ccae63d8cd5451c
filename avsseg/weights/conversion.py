"""Turns published files into safetensors: a module's state dict, or the authors' AVS-Mamba as a whole checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.errors import UsageError, WeightsError, printable
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig, backbone_name
from avsseg.weights.convert import convert_authors_state_dict
from avsseg.weights.download import sha256_of
from avsseg.weights.official import AVS_MAMBA, KINDS, fitted, guess_kind, module_of, module_state, read_tensors
from avsseg.weights.store import BINARY_CATEGORIES, METADATA_KEY, save_model
from avsseg.writers.base import written_whole

# the authors trained S4 and MS3 at 512, AVSS at 224
_BINARY_SIZE, _SEMANTIC_SIZE = 512, 224


def convert_file(source: Path, target: Path, kind: str | None = None) -> str:
    """Writes `source`, a .pth or .safetensors, as safetensors to `target` and returns its kind, one of KINDS.

    The kind is read off the names and shapes unless given. A backbone or VGGish becomes its module's state dict, the
    authors' AVS-Mamba a checkpoint for `load_model`. Raises UsageError on an unknown kind or a target that is not
    .safetensors, WeightsError when the file cannot be read or does not fit, OutputError.
    """
    kind = kind and backbone_name(kind)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}. Choose one of: {', '.join(KINDS)}")
    if target.suffix != ".safetensors":
        raise UsageError(f"{printable(target)}: must end in .safetensors")
    shown = printable(source)
    tensors = read_tensors(source)
    kind = kind or guess_kind(tensors, shown)
    origin = {"converted_from": source.name, "sha256": sha256_of(source)}
    if kind == AVS_MAMBA:
        model = authors_model(tensors, shown)
        categories = CLASS_NAMES if model.config.num_classes == len(CLASS_NAMES) else BINARY_CATEGORIES
        save_model(target, model, categories=categories, training=origin)
        return kind
    state = module_state(tensors, module_of(kind).state_dict(), shown)
    # copies: safetensors takes no views, and frozen files may share tensors
    whole = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    payload = save(whole, metadata={METADATA_KEY + "-module": json.dumps({"kind": kind, **origin})})
    with written_whole(target) as partial:
        partial.write_bytes(payload)
    return kind


def authors_model(theirs: Mapping[str, Tensor], source: str) -> AvsMamba:
    """Our model with the weights of the authors' state dict. Raises WeightsError, which names `source`."""
    try:
        config = authors_config(theirs, source)
        converted = convert_authors_state_dict(theirs)
        with torch.device("meta"):
            model = AvsMamba(config)
    except KeyError as error:
        raise WeightsError(
            f"{source}: not the authors' AVS-Mamba: {printable(error.args[0])} is missing or unknown. Known are the "
            "released files"
        ) from error
    except (IndexError, ValueError) as error:  # a shape of too few or too many sides
        raise WeightsError(f"{source}: not the authors' AVS-Mamba: odd shapes ({error})") from error
    state = fitted(converted, model.state_dict(), source)
    # two pyramid levels share one Temporal Mamba in their file; a checkpoint keeps two
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return model.eval()


def authors_config(theirs: Mapping[str, Tensor], source: str) -> AvsMambaConfig:
    """The configuration that their shapes tell. Raises KeyError when a name is missing, WeightsError on odd values."""
    backbone = {
        name.removeprefix("vision_backbone."): tensor
        for name, tensor in theirs.items()
        if name.startswith("vision_backbone.")
    }
    dim, inner_dim = theirs["mamba_encoder.0.mamba_block.out_proj.weight"].shape
    num_classes = theirs["fc.4.weight"].shape[0]
    if num_classes not in (1, len(CLASS_NAMES)):
        raise WeightsError(f"{source}: has {num_classes} classes. The released files have 1 or {len(CLASS_NAMES)}")
    try:
        return AvsMambaConfig(
            backbone=guess_kind(backbone, source),
            dim=dim,
            state_size=theirs["mamba_encoder.0.mamba_block.A_logs"].shape[1],
            expand=inner_dim // dim,
            encoder_layers=_layers(theirs, "mamba_encoder"),
            temporal_directions=theirs["mamba_encoder.0.temporal_mamba.dt_projs_bias"].shape[0],
            decoder_layers=_layers(theirs, "mamba_decoder"),
            upsample="nearest",  # the paper says bilinear, their code does this
            head_hidden=theirs["mlp.layers.0.weight"].shape[0],
            head_channels=(theirs["fc.0.weight"].shape[0], theirs["fc.2.weight"].shape[0]),
            num_classes=num_classes,
            input_size=_BINARY_SIZE if num_classes == 1 else _SEMANTIC_SIZE,
        )
    except UsageError as error:
        raise WeightsError(f"{source}: not the authors' AVS-Mamba: {error}") from error


def _layers(theirs: Mapping[str, Tensor], part: str) -> int:
    return len({name.split(".")[1] for name in theirs if name.startswith(f"{part}.")})
