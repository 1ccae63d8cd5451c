"""What is known of the things in a clip: by `clips.json`, where the dataset has one, else by the subset's own table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avsseg.data.avsbench import ClipExample, ClipFiles, Subset
from avsseg.data.listing import ListedClip


@dataclass(frozen=True)
class Contents:
    """Of the clips of one subset; `listing` are the entries of `clips.json` by name, none where there is no such file.

    Without a listing the table's classes are taken for visible and for heard alike: S4's category, AVSS's `a_obj`;
    MS3's table has none.
    """

    subset: Subset
    listing: Mapping[str, ListedClip]

    def visible(self, clip: ClipFiles) -> frozenset[str]:
        """The classes in the picture, none if they are not known."""
        listed = self.listing.get(clip.name)
        return listed.visible if listed else self._in_table(clip)

    def heard(self, clip: ClipFiles) -> frozenset[str]:
        """The classes that sound, none if the clip is silent or they are not known."""
        listed = self.listing.get(clip.name)
        return listed.heard if listed else self._in_table(clip)

    def sources(self, clip: ClipExample) -> int | None:
        """How many things sound, None if it is not known: one in S4 by definition, those of the table in AVSS."""
        listed = self.listing.get(clip.name)
        if listed:
            return listed.sources
        if self.subset == "s4":
            return 1
        return clip.category.count("_") + 1 if self.subset == "avss" and clip.category else None

    def _in_table(self, clip: ClipFiles) -> frozenset[str]:
        # S4's categories have underscores of their own
        names = clip.category.split("_") if self.subset == "avss" else [clip.category]
        return frozenset(filter(None, names))
