"""Fills a visual backbone or an audio encoder with published weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from avsseg.errors import WeightsError, printable
from avsseg.weights.cache import find_weights
from avsseg.weights.official import AVS_MAMBA, guess_kind, module_state, read_tensors


def load_backbone_weights(module: nn.Module, source: Path | str) -> None:
    """Loads a visual backbone from a file, official or converted, or from the catalogue by NAME; in place.

    A classifier in the file is left out. Raises WeightsError, before anything is changed, when the file cannot be read
    or holds another module.
    """
    _load(module, source)


def load_audio_weights(module: nn.Module, source: Path | str) -> None:
    """Loads an audio encoder as `load_backbone_weights` loads a backbone; the PCA of VGGish is left out."""
    _load(module, source)


def _load(module: nn.Module, source: Path | str) -> None:
    path = find_weights(source)
    tensors = read_tensors(path)
    expected = module.state_dict()
    _check_kind(tensors, expected, printable(path))
    # what no published file has keeps its values
    module.load_state_dict({**expected, **module_state(tensors, expected, printable(path))})


def _check_kind(tensors: dict[str, Tensor], expected: dict[str, Tensor], shown: str) -> None:
    """One clear line instead of hundreds of misfits, where both sides have a name."""
    try:
        wanted = guess_kind(expected, shown)
    except WeightsError:
        return  # a module that was never published: its names and shapes decide alone
    found = guess_kind(tensors, shown)
    if found == AVS_MAMBA:
        raise WeightsError(f"{shown}: holds a whole AVS-Mamba, not {wanted}. Convert it: avsseg weights convert")
    if found != wanted:
        raise WeightsError(f"{shown}: holds {found}, not {wanted}. Take the file of {wanted}")
