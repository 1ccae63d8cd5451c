"""Reads and writes checkpoints: safetensors with the model's configuration in the metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from avsseg.errors import AvssegError, WeightsError, printable
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import PRESETS, AvsMambaConfig
from avsseg.weights.official import check_values, misfit, read_safetensors
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights
from avsseg.weights.turn import SharedTurn
from avsseg.writers.base import written_whole

METADATA_KEY = "avsseg"
BINARY_CATEGORIES = ("sounding",)
UNTRAINED_SEED = 0
# log-decays, skips and step biases enter exponentials or run over thousands of steps: 16 bits are not enough
_KEEP_FLOAT32 = (
    *(".A_logs", ".Ds", ".dt_projs_bias"),
    *(".A_log", ".A_b_log", ".D", ".D_b", ".dt_proj.bias", ".dt_proj_b.bias"),  # Vim's
    *(".running_mean", ".running_var"),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what is known of its weights.

    `categories` names the classes of the output channels: one for a binary model, else background first.
    `sha256` is the digest of the weights file, or "" for an untrained model. `heard` names the classes of sound that
    the model tells apart beside its masks, "" for one that it gives no name; () if it tells none.
    """

    model: AvsMamba
    name: str
    sha256: str
    categories: tuple[str, ...]
    trained: bool
    # the provenance that `save_model` was given
    training: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    turn: SharedTurn = field(default_factory=SharedTurn, repr=False, compare=False)
    heard: tuple[str, ...] = ()

    @property
    def config(self) -> AvsMambaConfig:
        return self.model.config

    @property
    def input_size(self) -> int:
        """Side in pixels of the square that frames are squashed to unless told otherwise."""
        return self.config.input_size


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL, *, allow_untrained: bool = False, device: str | torch.device = "cpu"
) -> LoadedModel:
    """The model of that name or file, in eval mode and float32 on `device`.

    A name is one of the presets and needs weights inside the package; anything that is a file, or no such name, is read
    as a checkpoint. Without trained weights the model is refused unless `allow_untrained`, which gives it random ones
    from a fixed seed. Raises WeightsError.
    """
    name = str(name_or_path)
    path = Path(name_or_path)
    if os.path.isfile(path) or name not in PRESETS:
        return _read(path, path.stem, None, allow_untrained, device)
    shipped = shipped_weights()
    if name not in shipped:
        return _untrained(name, allow_untrained, device)
    return _read(shipped[name].path, name, shipped[name].sha256, allow_untrained, device)


def save_model(
    path: Path,
    model: AvsMamba,
    *,
    categories: Sequence[str] = BINARY_CATEGORIES,
    heard: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
    trained: bool = True,
    half: bool = False,
) -> str:
    """Writes a model to a .safetensors file, finished or not at all, and returns the file's sha256.

    `training` is free-form provenance (data, seeds, steps, scores). A model that is not `trained` is refused when it is
    loaded, unless asked for. `heard` names each of the model's `heard_classes`. `half` stores float16, save for what
    needs float32.
    Raises OutputError.
    """
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() and not name.endswith(_KEEP_FLOAT32) else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    description = {
        "config": model.config.to_dict(),
        "categories": list(categories),
        "heard": list(heard),
        "trained": trained,
        "training": dict(training or {}),
    }
    payload = save(tensors, metadata={METADATA_KEY: json.dumps(description)})
    with written_whole(path) as partial:
        partial.write_bytes(payload)
    return hashlib.sha256(payload).hexdigest()


def _untrained(name: str, allowed: bool, device: str | torch.device) -> LoadedModel:
    if not allowed:
        with_weights = ", ".join(shipped_weights()) or "none"
        raise WeightsError(
            f"{name}: no trained weights come with this installation (it has: {with_weights}). Give a checkpoint with "
            "--model FILE.safetensors, or --allow-untrained to see noise"
        )
    # the seed must not disturb the caller's random state
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        model = AvsMamba(PRESETS[name])
    return LoadedModel(model.to(device).eval(), name, "", BINARY_CATEGORIES, trained=False)


def _exported_to(folder: Path) -> str:
    """Which models a training run left there, to be given instead."""
    files = (folder / f"{name}.safetensors" for name in ("best", "last"))
    return " or ".join(printable(file) for file in files if os.path.isfile(file))


def _names(value: object, count: int, what: str) -> tuple[str, ...]:
    """Raises ValueError unless there are `count` of them."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"no list of names for its {what}")
    if len(value) != count:
        raise ValueError(f"{len(value)} names for {count} {what}")
    return tuple(value)


def _read(path: Path, name: str, expected: str | None, allowed: bool, device: str | torch.device) -> LoadedModel:
    shown = printable(path)
    if os.path.isdir(path):
        found = _exported_to(path) or "the .safetensors file inside it"
        raise WeightsError(f"{shown}: a folder, not a .safetensors checkpoint of avsseg. Give {found}")
    if path.suffix != ".safetensors":
        if not os.path.exists(path):
            raise WeightsError(f"{shown}: neither a model nor a file. Models: {', '.join(PRESETS)}")
        # only `avsseg train --resume` reads a .pt
        found = _exported_to(path.parent) if path.suffix == ".pt" else ""
        raise WeightsError(f"{shown}: not a .safetensors checkpoint of avsseg" + (f". Give {found}" if found else ""))
    if os.path.exists(path) and not os.path.isfile(path):  # a named pipe would be waited for without end
        raise WeightsError(f"{shown}: is not a regular file. Save the checkpoint to a file first")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        tensors, metadata = read_safetensors(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{shown}: no such file. Models that have a name: {', '.join(PRESETS)}") from error
    except (OSError, SafetensorError) as error:
        reason = printable(str(error))
        raise WeightsError(f"{shown}: cannot be read as safetensors ({reason}). Download or export it again") from error
    if expected is not None and digest != expected:
        raise WeightsError(f"{shown}: sha256 is {digest[:12]}…, the manifest says {expected[:12]}…. Reinstall avsseg")
    if METADATA_KEY not in metadata:
        raise WeightsError(f"{shown}: holds no avsseg model description. It is not a checkpoint written by avsseg")
    check_values(tensors, shown)
    try:
        description = json.loads(metadata[METADATA_KEY])
        config = AvsMambaConfig.from_dict(description["config"])
        categories = _names(description["categories"], config.num_classes, "classes")
        heard = _names(description.get("heard", []), config.heard_classes, "classes of sound")
        trained, training = bool(description["trained"]), description.get("training")
        model = AvsMamba(config)
        if found := misfit(tensors, model.state_dict()):
            raise ValueError(found)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except (ValueError, KeyError, TypeError, RuntimeError, AvssegError) as error:
        reason = printable(str(error).splitlines()[0]) if str(error) else repr(error)
        raise WeightsError(
            f"{shown}: its model description does not fit its weights ({reason}). Export it again"
        ) from error
    if not trained and not allowed:
        raise WeightsError(
            f"{shown}: holds an untrained model, which marks nothing yet (stage=encoders teaches the encoders alone: "
            "`avsseg train --from` goes on from there). Give trained weights, or --allow-untrained to see noise"
        )
    provenance = training if isinstance(training, dict) else {}
    return LoadedModel(model.to(device).eval(), name, digest, categories, trained, provenance, heard=heard)
