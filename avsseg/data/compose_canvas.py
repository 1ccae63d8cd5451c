"""Draws the scene of a composed clip: which pictures, whole, side by side or pasted, and the camera over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avsseg.data.compose_pool import Case, SplitSources
from avsseg.data.compose_scene import (
    ComposedScene,
    Cutout,
    colour_jitter,
    cut_out,
    draw_appearance,
    draw_motion,
    empty_part,
    read_flipped,
)
from avsseg.data.compose_sources import Picture
from avsseg.data.compose_splits import SPLIT_NAMES

_TRIES = 8
# of the second objects, how many are of a class that has no recordings
_MUTE_SHARE = 0.2


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
