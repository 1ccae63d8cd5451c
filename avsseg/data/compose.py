"""Composes clips from still pictures with masks and recordings: what is seen moves, what is heard decides the truth.

A clip's scene depends on (split, seed) alone and each of its sound variants on (split, seed, variant); a source of one
split occurs in no clip of another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.avsbench import SplitName
from avsseg.data.compose_scene import (
    ComposedScene,
    Cutout,
    colour_jitter,
    cut_out,
    draw_appearance,
    draw_motion,
    empty_part,
    read_flipped,
    shows_only,
)
from avsseg.data.compose_sound import Track, Waveform, draw_slots, draw_turns, lay_track, mix_tracks
from avsseg.data.compose_sources import Picture, Sources
from avsseg.data.compose_splits import SPLIT_NAMES, TABLE_NAME
from avsseg.errors import UsageError

Case = Literal["one", "two", "several", "none"]
_TRIES = 8
# of the second objects, how many are of a class that has no recordings
_MUTE_SHARE = 0.2


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
        self.visible = sources.visible
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
            raise UsageError(
                f"no class of the {split} split has both pictures that show it ({settings.smallest:.0%} of the frame "
                f"or more) and recordings. Add some, name their splits in {TABLE_NAME}, or ask for no {split} clips"
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


@dataclass(frozen=True)
class ComposedClip:
    """A scene and one sound to it.

    `objects` are the classes that the clip is about, `tracks` what is heard, off-screen classes included; `waveform`
    (n,) is their mix at 16 kHz.
    """

    scene: ComposedScene
    case: Case
    objects: tuple[int, ...]
    tracks: tuple[Track, ...]
    waveform: Waveform
    seconds: int

    def sounding(self) -> dict[int, NDArray[np.bool_]]:
        """class index -> (T,) in which seconds it is heard."""
        heard: dict[int, NDArray[np.bool_]] = {}
        for track in self.tracks:
            heard[track.class_index] = heard.get(track.class_index, np.zeros(self.seconds, bool)) | track.sounding
        return heard

    def masks(self, class_maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """class maps of seconds 0..T-1, (H, W) each -> the pixels of what sounds in that second (T, H, W).

        Unknown pixels (255) count as silent.
        """
        heard = self.sounding()
        masks = np.zeros((len(class_maps), *class_maps[0].shape), bool)
        for t, classes in enumerate(class_maps):
            audible = [k for k, sounding in heard.items() if sounding[t]]
            masks[t] = np.isin(classes, audible)
        return masks


def draw_scene(sources: SplitSources, seed: int) -> tuple[Case, tuple[int, ...], ComposedScene]:
    """The case of a clip, the classes of the objects that it is about (they sound, or could), and its scene."""
    rng = np.random.default_rng([SPLIT_NAMES.index(sources.split), seed])
    case = sources.settings.case(float(rng.uniform()))
    pair = case in ("two", "several") or (case == "none" and rng.uniform() < 0.5)
    drawn = _draw_two(sources, rng, voiced=case == "several") if pair else _draw_one(sources, rng)
    if len(drawn.objects) == 1 and case in ("two", "several"):
        case = "one"  # the split has one class only
    moving = rng.uniform() < 0.75
    motion = sources.settings.motion
    view, centre = _draw_view(rng, drawn.classes, drawn.objects, tight=pair)
    camera = draw_motion(
        rng, centre, (0.2 * motion * view[0], 0.2 * motion * view[1]), zoom=0.1 * motion,
        seconds=sources.settings.seconds, moving=moving,
    )  # fmt: skip
    look = draw_appearance(rng)
    scene = ComposedScene(
        drawn.canvas,
        drawn.classes,
        camera,
        view,
        drawn.cutouts,
        look,
        sources.settings.seconds,
        seed,
        weight=min(picture.weight for picture in drawn.pictures),
        pictures=(*(picture.name for picture in drawn.pictures), *drawn.behind),
    )
    return case, drawn.objects, scene


@dataclass(frozen=True)
class _Drawn:
    """`pictures` are those of the objects, `behind` the names of those that only their background comes from."""

    objects: tuple[int, ...]
    canvas: Image.Image
    classes: Image.Image
    pictures: tuple[Picture, ...]
    cutouts: tuple[Cutout, ...] = ()
    behind: tuple[str, ...] = ()


def _draw_one(sources: SplitSources, rng: np.random.Generator) -> _Drawn:
    class_index = sources.draw_class(rng)
    picture = sources.draw_picture(rng, class_index)
    if picture.kind == "cutout":
        canvas, classes, behind = _backdrop(sources, rng, {class_index})
        cutout = _as_cutout(sources, rng, picture, class_index, centre=(0.5, 0.5), spread=0.22)
        return _Drawn((class_index,), canvas, classes, (picture,), () if cutout is None else (cutout,), behind)
    image, classes = read_flipped(picture, rng)
    return _Drawn((class_index,), image, classes, (picture,))


def _draw_two(sources: SplitSources, rng: np.random.Generator, *, voiced: bool) -> _Drawn:
    way = rng.uniform()
    if way < 0.35 and sources.pairs:
        picture = sources.pairs[int(rng.integers(len(sources.pairs)))]
        image, classes = read_flipped(picture, rng)
        present = [k for k, area in picture.areas if area >= sources.settings.smallest and k in sources.recordings]
        return _Drawn((present[0], present[1]), image, classes, (picture,))
    first = sources.draw_class(rng)
    second = sources.draw_class(rng, without=(first,))
    if sources.mute and rng.uniform() < _MUTE_SHARE and not voiced:
        second = sources.mute[int(rng.integers(len(sources.mute)))]
    if second == first:  # the split has one class only
        return _draw_one(sources, rng)
    pictures = sources.draw_picture(rng, first), sources.draw_picture(rng, second)
    scenes = [picture.kind == "scene" for picture in pictures]
    if all(scenes) and way < 0.7:
        image, classes = _side_by_side(rng, pictures, (first, second))
        return _Drawn((first, second), image, classes, pictures)
    if any(scenes):
        base = scenes.index(True)
        image, classes = read_flipped(pictures[base], rng)
        objects = (first, second) if base == 0 else (second, first)
        free = _free_side(classes, objects[0])
        cutout = _as_cutout(sources, rng, pictures[1 - base], objects[1], centre=(free, 0.55), spread=0.12)
        return _Drawn(objects, image, classes, pictures, () if cutout is None else (cutout,))
    canvas, classes, behind = _backdrop(sources, rng, {first, second})
    cutouts = [
        _as_cutout(sources, rng, picture, k, centre=(x, 0.5), spread=0.1)
        for picture, k, x in zip(pictures, (first, second), (0.28, 0.72), strict=True)
    ]
    pasted = tuple(c for c in cutouts if c is not None)
    return _Drawn((first, second), canvas, classes, pictures, pasted, behind)


def _side_by_side(
    rng: np.random.Generator, pictures: tuple[Picture, Picture], objects: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """Two pictures, each cropped around its object, next to each other."""
    height, halves = 224, []
    for picture, class_index in zip(pictures, objects, strict=True):
        image, classes = read_flipped(picture, rng)
        side = float(rng.uniform(0.7, 1.0)) * min(image.size)
        width = side * float(rng.uniform(0.5, 0.8))
        x, y = _centroid(classes, class_index)
        left = min(max(0.0, x - width / 2), image.width - width)
        top = min(max(0.0, y - side / 2), image.height - side)
        box = (left, top, left + width, top + side)
        out = (round(width / side * height), height)
        halves.append(
            (image.resize(out, Image.Resampling.BILINEAR, box=box), classes.resize(out, Image.Resampling.NEAREST, box))
        )
    if rng.uniform() < 0.5:
        halves.reverse()
    (left_image, left_classes), (right_image, right_classes) = halves
    canvas = Image.new("RGB", (left_image.width + right_image.width, height))
    classes = Image.new("L", canvas.size)
    for target, first, second in ((canvas, left_image, right_image), (classes, left_classes, right_classes)):
        target.paste(first, (0, 0))
        target.paste(second, (left_image.width, 0))
    return canvas, classes


def _as_cutout(
    sources: SplitSources,
    rng: np.random.Generator,
    picture: Picture,
    class_index: int,
    *,
    centre: tuple[float, float],
    spread: float,
) -> Cutout | None:
    image, classes = read_flipped(picture, rng)
    cut = cut_out(image, classes, class_index)
    if cut is None:
        return None
    cut = cut.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BILINEAR, expand=True)
    area = float(np.exp(rng.uniform(np.log(0.06), np.log(0.45))))  # of the box, in shares of the view
    aspect = cut.width / cut.height * float(np.exp(rng.uniform(-0.35, 0.15)))
    width, height = min(0.95, (area * aspect) ** 0.5), min(0.95, (area / aspect) ** 0.5)
    x, y = (float(np.clip(c + rng.uniform(-spread, spread), 0.1, 0.9)) for c in centre)
    motion = sources.settings.motion
    moved = draw_motion(
        rng, (x, y), (0.25 * motion, 0.2 * motion), zoom=0.15 * motion,
        seconds=sources.settings.seconds, moving=bool(rng.uniform() < 0.7),
    )  # fmt: skip
    return Cutout(cut, class_index, moved, width, height)


def _backdrop(
    sources: SplitSources, rng: np.random.Generator, objects: set[int]
) -> tuple[Image.Image, Image.Image, tuple[str, ...]]:
    """A picture or the empty part of one, its map and name, to paste objects onto: nothing of their classes is in it.

    Plain grey if none is found soon.
    """
    # a split may have nothing but cutouts
    for _ in range(_TRIES if sources.scenes else 0):
        picture = sources.scenes[int(rng.integers(len(sources.scenes)))]
        if picture.kind == "backdrop":
            image, classes = picture.read()
            return colour_jitter(image, rng), classes, (picture.name,)
        image, classes = read_flipped(picture, rng)
        if rng.uniform() < 0.6:
            part = empty_part(image, classes, rng)
            if part is not None:
                return part, Image.new("L", part.size), (picture.name,)
        elif not objects & {k for k, _ in picture.areas}:
            return image, classes, (picture.name,)
    grey = tuple(int(level) for level in rng.integers(40, 216, 3))
    return Image.new("RGB", (224, 224), grey), Image.new("L", (224, 224)), ()


def _draw_view(
    rng: np.random.Generator, classes: Image.Image, objects: Sequence[int], *, tight: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The view's size and centre in canvas pixels: about the objects, wider than high as films are."""
    share = float(rng.uniform(0.85, 1.0) if tight else rng.uniform(0.55, 1.0))
    aspect = float(np.exp(rng.uniform(-0.2, 0.6)))  # a wide view squashed to a square, as videos are
    width, height = classes.width, classes.height
    if not tight:
        if width / height > aspect:
            width = round(height * aspect)
        else:
            height = round(width / aspect)
    view = (share * width, share * height)
    present = [k for k in objects if k in np.unique(np.asarray(classes))]
    centre = (classes.width / 2, classes.height / 2)
    if present and not tight:
        x, y = _centroid(classes, present[0])
        centre = (x + float(rng.uniform(-0.25, 0.25)) * view[0], y + float(rng.uniform(-0.25, 0.25)) * view[1])
    return view, centre


def _centroid(classes: Image.Image, class_index: int) -> tuple[float, float]:
    rows, columns = np.nonzero(np.asarray(classes) == class_index)
    if len(rows) == 0:
        return classes.width / 2, classes.height / 2
    return float(columns.mean()), float(rows.mean())


def _free_side(classes: Image.Image, class_index: int) -> float:
    """Where beside the object a pasted one hides least of it: a share of the width."""
    return 0.25 if _centroid(classes, class_index)[0] > classes.width / 2 else 0.75


def draw_sound(
    sources: SplitSources,
    seed: int,
    variant: int,
    case: Case,
    objects: Sequence[int],
    seen: set[int],
) -> tuple[tuple[Track, ...], Waveform]:
    """The tracks and the mixed waveform of one variant; `seen` are all classes that the scene shows."""
    rng = np.random.default_rng([SPLIT_NAMES.index(sources.split), seed, 1 + variant])
    seconds = sources.settings.seconds
    voiced = [k for k in objects if k in sources.recordings]
    slots: list[tuple[int, NDArray[np.bool_]]] = []
    if case == "none" or not voiced:
        slots += _off_screen(sources, rng, seen, np.ones(seconds, bool) if rng.uniform() < 0.6 else None)
    elif case == "one" or len(voiced) == 1:
        on = draw_slots(rng, seconds)
        slots.append((voiced[variant % len(voiced)], on))
        if rng.uniform() < 0.3:
            slots += _off_screen(sources, rng, seen, ~on)
    elif case == "two":
        chosen = (int(rng.integers(2)) if variant == 0 else variant) % 2
        if rng.uniform() < 0.5:
            slots.append((voiced[chosen], draw_slots(rng, seconds)))
        else:
            slots += zip(voiced, draw_turns(rng, seconds), strict=False)
    else:
        slots += [(k, draw_slots(rng, seconds)) for k in voiced]
    tracks = tuple(lay_track(rng, k, sources.recordings[k], on) for k, on in slots if on.any())
    return tracks, mix_tracks(rng, tracks, seconds)


def _off_screen(
    sources: SplitSources, rng: np.random.Generator, seen: set[int], where: NDArray[np.bool_] | None
) -> list[tuple[int, NDArray[np.bool_]]]:
    unseen = sources.draw_unseen(rng, seen)
    return [] if where is None or unseen is None else [(unseen, where)]


def compose_clip(sources: SplitSources, seed: int) -> ComposedClip:
    """The clip of that seed."""
    case, objects, scene = draw_scene(sources, seed)
    return with_sound(sources, seed, 0, case, objects, scene)


def with_sound(
    sources: SplitSources, seed: int, variant: int, case: Case, objects: tuple[int, ...], scene: ComposedScene
) -> ComposedClip:
    """The scene with one of its sounds: other variants change who sounds, and when, but nothing that is seen."""
    seen = scene.classes_present() | set(objects)
    tracks, waveform = draw_sound(sources, seed, variant, case, objects, seen)
    return ComposedClip(scene, case, objects, tracks, waveform, sources.settings.seconds)


def class_counts(sources: Sources) -> Mapping[str, dict[str, tuple[int, int]]]:
    """class -> split -> (pictures that show it, recordings of it)."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for index, name in enumerate(sources.classes[1:], 1):
        counts[name] = {
            split: (
                sum(p.split == split and any(k == index for k, _ in p.areas) for p in sources.pictures),
                sum(s.split == split and s.class_index == index for s in sources.sounds),
            )
            for split in SPLIT_NAMES
        }
    return counts
