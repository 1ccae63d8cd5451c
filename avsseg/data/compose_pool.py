"""What the clips of one split are drawn from: its pictures and recordings by class, and what is asked for."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avsseg.data.avsbench import SplitName
from avsseg.data.compose_scene import shows_only
from avsseg.data.compose_sources import Picture, Sources
from avsseg.data.compose_splits import FEWEST_GROUPS, TABLE_NAME
from avsseg.errors import UsageError

Case = Literal["one", "two", "several", "none"]
_TRIES = 8


@dataclass(frozen=True)
class ComposeSettings:
    """What clips are drawn.

    `one`: an object that sounds; `two`: two objects of which one sounds at a time; `several`: two that sound together;
    `none`: silence or a sound from off-screen. Shares are relative; a split of one class has `one` in the place of
    `two` and `several`. `smallest` is the least share of its picture that an object must cover; `motion` scales how
    far the camera and pasted objects move (0: a still picture).
    """

    seconds: int = 5
    one: float = 0.4
    two: float = 0.3
    several: float = 0.1
    none: float = 0.2
    smallest: float = 0.03
    motion: float = 1.0

    def __post_init__(self) -> None:
        shares = (self.one, self.two, self.several, self.none)
        if not (all(0 <= share < math.inf for share in shares) and sum(shares) > 0):
            raise UsageError(f"shares of one, two, several and none are {shares}: none below 0, and not all 0")
        if not 0 <= self.motion < math.inf:
            raise UsageError(f"motion is {self.motion}: 0 for still pictures, or more")
        if not 0 <= self.smallest < 1:
            raise UsageError(f"smallest share of a picture is {self.smallest}: from 0 to below 1")
        if self.seconds < 1:
            raise UsageError(f"clips of {self.seconds} s: one second at least")

    def case(self, draw: float) -> Case:
        """The case for a draw from 0..1."""
        shares = {"one": self.one, "two": self.two, "several": self.several, "none": self.none}
        position = draw * sum(shares.values())
        names: tuple[Case, ...] = ("one", "two", "several", "none")
        for name in names:
            position -= shares[name]
            if position < 0:
                return name
        return [name for name in names if shares[name] > 0][-1]


class SplitSources:
    """The sources of one split by class. Raises UsageError if no class of the split is both seen and heard."""

    def __init__(self, sources: Sources, split: SplitName, settings: ComposeSettings) -> None:
        self.split = split
        self.classes = sources.classes
        self.settings = settings
        self.pictures: dict[int, list[Picture]] = defaultdict(list)
        self.recordings: dict[int, list[NDArray[np.int16]]] = defaultdict(list)
        self.recording_names: dict[int, list[str]] = defaultdict(list)
        self.pairs: list[Picture] = []
        self.scenes: list[Picture] = []
        for sound in sources.sounds:
            if sound.split == split:
                self.recordings[sound.class_index].append(sound.samples)
                self.recording_names[sound.class_index].append(sound.name)
        for picture in sources.pictures:
            if picture.split == split:
                self._add(picture)
        self.sounding = sorted(k for k in self.pictures if k in self.recordings)
        if not self.sounding:
            rule, rename = "", ""
            if split != "train":
                rule = (
                    " Names that differ in a number at their end only (dog_001, dog_002) count as one recording, and a "
                    f"class of fewer than {FEWEST_GROUPS} such groups of pictures, or of recordings, is in train alone."
                )
                rename = "rename files, "
            raise UsageError(
                f"no class of the {split} split has both pictures that show it ({settings.smallest:.0%} of the frame "
                f"or more) and recordings.{rule} Add some, {rename}name their splits in {TABLE_NAME}, or ask for no "
                f"{split} clips"
            )
        self.mute = sorted(k for k in self.pictures if k not in self.recordings)
        rooted = np.sqrt([len(self.pictures[k]) for k in self.sounding])
        self._weights = rooted / rooted.sum()

    def _add(self, picture: Picture) -> None:
        large = [k for k, area in picture.areas if area >= self.settings.smallest]
        if picture.kind != "cutout":
            self.scenes.append(picture)
        for k in large:
            self.pictures[k].append(picture)
        if picture.kind == "scene" and sum(k in self.recordings for k in large) >= 2:
            self.pairs.append(picture)

    def draw_class(self, rng: np.random.Generator, *, without: Sequence[int] = ()) -> int:
        """A class that is seen and heard, rarer ones more often than their share."""
        weights = np.where(np.isin(self.sounding, without), 0, self._weights)
        if weights.sum() == 0:
            return self.sounding[int(rng.integers(len(self.sounding)))]
        return self.sounding[int(rng.choice(len(self.sounding), p=weights / weights.sum()))]

    def draw_picture(self, rng: np.random.Generator, class_index: int) -> Picture:
        """A picture of the class, of nothing else if one is found soon."""
        choices = self.pictures[class_index]
        for _ in range(_TRIES):
            picture = choices[int(rng.integers(len(choices)))]
            if shows_only(picture, class_index):
                break
        return picture

    def draw_unseen(self, rng: np.random.Generator, seen: set[int]) -> int | None:
        """A class with recordings that is not in `seen`."""
        choices = [k for k in sorted(self.recordings) if k not in seen]
        return choices[int(rng.integers(len(choices)))] if choices else None
