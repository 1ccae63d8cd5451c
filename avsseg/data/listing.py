"""What `clips.json` says of the clips of a dataset that avsseg wrote: what is visible and what sounds, by second."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avsseg.data.avsbench_layout import MOST_SECONDS, Subset, subset_folder
from avsseg.data.layout_writer import LISTING_NAME
from avsseg.data.synthetic_shapes import CLASSES as RENDERED
from avsseg.errors import DataError, printable


@dataclass(frozen=True)
class ListedClip:
    """One clip's entry.

    Attributes:
        sources: how many visible things sound at once at most; two things may be of one class.
        truth: for each second the classes that are visible and sound, which its mask shows.
        sounding: for each second the classes that sound, off-screen ones as far as listed.
        visible: all classes in the picture at some time.
    """

    sources: int
    truth: tuple[frozenset[str], ...]
    sounding: tuple[frozenset[str], ...]
    visible: frozenset[str]

    @property
    def heard(self) -> frozenset[str]:
        """All classes that sound at some time."""
        return frozenset().union(*self.sounding)


def read_listing(root: Path, subset: Subset) -> dict[str, ListedClip]:
    """The entries of `clips.json` by clip name, none where the dataset has no such file.

    Raises DataError for a listing that cannot be read, or that has more seconds than the subset's clips.
    """
    table = subset_folder(root, subset) / LISTING_NAME
    if not table.is_file():
        return {}
    try:
        document = json.loads(table.read_text(encoding="utf-8"))
        classes = frozenset(document.get("classes", ()))
        listed = {entry["name"]: _listed(entry, classes) for entry in document["clips"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{printable(table)}: not a listing of clips ({error!r}). Write the dataset anew") from error
    for name, clip in listed.items():
        if len(clip.sounding) > MOST_SECONDS[subset]:
            raise DataError(
                f"{printable(table)}: {printable(name)} has {len(clip.sounding)} seconds, and clips have at most "
                f"{MOST_SECONDS[subset]}. Write the dataset anew"
            )
    return listed


def _listed(entry: dict[str, Any], classes: Collection[str]) -> ListedClip:
    seconds = list(zip(entry["visible"], entry["sounding"], strict=True))
    both = [set(seen) & set(heard) for seen, heard in seconds]
    return ListedClip(
        max(map(len, both), default=0),
        tuple(_classes(things, classes) for things in both),
        tuple(_classes(heard, classes) for _, heard in seconds),
        _classes([thing for seen, _ in seconds for thing in seen], classes),
    )


def _classes(things: Collection[str], classes: Collection[str]) -> frozenset[str]:
    # rendered scenes tell the things of a class apart: "star 0", "star 1" and "star off-screen"
    return frozenset(thing if thing in classes else re.sub(r" (\d+|off-screen)$", "", thing) for thing in things)


def rendered_families(clip: ListedClip) -> set[int]:
    """The rendered timbre families that belong to something visible: no off-screen sound may be of them."""
    return {index for index, family in enumerate(RENDERED) if family.name in clip.visible}
