"""The models that have a name, and the manifest of weights that come with the package. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from avsseg.errors import WeightsError, printable

DEFAULT_MODEL = "avs-mamba-tiny"
MANIFEST_NAME = "manifest.json"

# In an installed package the files lie beside this module; in a checkout they are the repository's weights/ folder.
_FOLDERS = (Path(__file__).parent / "files", Path(__file__).parents[2] / "weights")


@dataclass(frozen=True)
class ShippedWeights:
    """One entry of the manifest: a file inside the package and what it must hash to."""

    name: str
    path: Path
    sha256: str
    description: str
    licence: str


def shipped_weights() -> dict[str, ShippedWeights]:
    """The weights that this installation carries, by model name; empty if it carries none.

    Raises WeightsError if the manifest cannot be read or names a file that is missing.
    """
    for folder in _FOLDERS:
        manifest = folder / MANIFEST_NAME
        if not manifest.is_file():
            continue
        try:
            entries = json.loads(manifest.read_text())
            shipped = {
                name: ShippedWeights(
                    name, folder / entry["file"], entry["sha256"], entry["description"], entry["licence"]
                )
                for name, entry in entries.items()
            }
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(
                f"{printable(manifest)}: not a manifest of weights ({error!r}). Reinstall avsseg"
            ) from error
        for weights in shipped.values():
            if not weights.path.is_file():
                raise WeightsError(
                    f"{printable(weights.path)}: missing although the manifest lists it. Reinstall avsseg"
                )
        return shipped
    return {}
