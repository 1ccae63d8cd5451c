"""Moving scenes: the class map follows the picture, whatever moves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from avsseg.data.compose_scene import (
    Appearance,
    ComposedScene,
    Cutout,
    Motion,
    cut_out,
    draw_appearance,
    draw_motion,
    empty_part,
)

INKS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.int64)
PLAIN = Appearance()


def nearest_class(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    return ((frame[..., None, :].astype(np.int64) - INKS) ** 2).sum(-1).argmin(-1)


def inside(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose neighbours are all of their class: at borders colours mix."""
    image = Image.fromarray(classes)
    return np.asarray(image.filter(ImageFilter.MinFilter(3))) == np.asarray(image.filter(ImageFilter.MaxFilter(3)))


def flat_scene(*, seconds: float = 5, look: Appearance = PLAIN) -> ComposedScene:
    classes = Image.new("L", (200, 150))
    draw = ImageDraw.Draw(classes)
    draw.ellipse((30, 30, 100, 120), fill=1)
    draw.polygon([(120, 20), (180, 60), (140, 140)], fill=2)
    canvas = Image.fromarray(INKS[np.asarray(classes)].astype(np.uint8))
    shape = Image.new("L", (60, 60))
    ImageDraw.Draw(shape).polygon([(5, 5), (55, 20), (30, 55)], fill=3)
    cut = cut_out(Image.new("RGB", (60, 60), (0, 0, 255)), shape, 3)
    assert cut is not None
    rng = np.random.default_rng(3)
    camera = draw_motion(rng, (100, 75), (40, 30), zoom=0.3, seconds=seconds, moving=True)
    moved = draw_motion(rng, (0.5, 0.5), (0.5, 0.5), zoom=0.4, seconds=seconds, moving=True)
    turned = cut.rotate(20, Image.Resampling.BILINEAR, expand=True)
    return ComposedScene(
        canvas, classes, camera, (140, 110), (Cutout(turned, 3, moved, 0.4, 0.5),), look, seconds, 7, 1.0
    )


@pytest.mark.parametrize("size", [(96, 128), (224, 224), (240, 306)])
def test_the_class_map_is_where_the_colours_are(size: tuple[int, int]) -> None:
    scene = flat_scene()
    seen = set()
    for t in np.arange(0, 5, 0.25):
        frame, classes = scene.paint(float(t), *size)
        assert frame.shape == (*size, 3)
        sure = inside(classes)
        assert sure.mean() > 0.85
        assert np.array_equal(nearest_class(frame)[sure], classes[sure])
        # at borders, where colours mix, the nearer colour nearly always
        assert (nearest_class(frame) == classes).mean() > 0.985
        seen |= set(np.unique(classes).tolist())
    assert seen == {0, 1, 2, 3}


def test_things_move_and_end_where_they_should() -> None:
    scene = flat_scene()
    maps = [scene.paint(t, 96, 96)[1] for t in (0.0, 2.5, 5.0, 9.0)]
    assert (maps[0] != maps[1]).mean() > 0.01
    assert (maps[1] != maps[2]).mean() > 0.01
    still = Motion((1, 2, 0.5), (1, 2, 0.5), (0, 0), 0, 0, 5)
    assert still.at(0) == still.at(3.3) == (1, 2, 0.5)
    glide = Motion((0, 0, 0), (10, 20, 1), (0, 0), 0, 0, 5)
    assert glide.at(2.5) == (5, 10, 0.5)
    assert glide.at(9) == (10, 20, 1)


def test_motions_stay_within_their_reach() -> None:
    for seed in range(200):
        motion = draw_motion(np.random.default_rng(seed), (3, 4), (2, 1), zoom=0.1, seconds=5, moving=True)
        places = np.array([motion.at(t) for t in np.arange(0, 5.1, 0.1)])
        assert (np.abs(places - (3, 4, 0)) <= (0.62 * 2, 0.62, 0.1)).all()


def test_the_look_of_a_film_leaves_the_map_alone() -> None:
    rng = np.random.default_rng(0)
    plain = flat_scene().paint(1.5, 64, 64)
    for _ in range(20):
        frame, classes = flat_scene(look=draw_appearance(rng)).paint(1.5, 64, 64)
        assert np.array_equal(classes, plain[1])
        assert not np.array_equal(frame, plain[0])
    everything = Appearance((0.8, 1.2), (1.0, 0.9, 1.1), 2, 1.0, 5.0, 40)
    first, second = (flat_scene(look=everything).paint(1.5, 64, 64)[0] for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("size", [(17, 999), (999, 17), (33, 47), (224, 224)])
def test_a_view_larger_than_its_canvas_is_fitted_into_it(size: tuple[int, int]) -> None:
    canvas = Image.new("RGB", size)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        camera = Motion((*rng.uniform(-50, 1050, 2), rng.uniform(-1, 3)), (0, 0, 0), (9, 9), 1, 0, 5)
        view = (size[0] * rng.uniform(0.5, 3), size[1] * rng.uniform(0.5, 3))
        scene = ComposedScene(canvas, Image.new("L", size), camera, view, (), Appearance(), 5, 0, 1.0)
        assert scene.paint(float(rng.uniform(0, 5)), 24, 32)[0].shape == (24, 32, 3)


def test_cutouts_keep_no_rim_of_their_old_background() -> None:
    image = Image.new("RGB", (50, 50), (255, 255, 255))
    mask = Image.new("L", (50, 50))
    for target, ink in ((image, (200, 0, 0)), (mask, 5)):
        ImageDraw.Draw(target).ellipse((10, 5, 40, 45), fill=ink)
    cut = cut_out(image, mask, 5)
    assert cut is not None
    assert cut.size == (31, 41)
    pixels = np.asarray(cut)
    assert (pixels[pixels[..., 3] > 60][:, 1] == 0).all()
    assert cut_out(image, mask, 6) is None


def test_empty_parts_are_empty() -> None:
    image = Image.new("RGB", (90, 60), (9, 9, 9))
    mask = Image.new("L", (90, 60))
    for target, ink in ((image, (255, 0, 0)), (mask, 1)):
        ImageDraw.Draw(target).rectangle((0, 0, 30, 60), fill=ink)
    parts = [empty_part(image, mask, np.random.default_rng(seed)) for seed in range(30)]
    found = [part for part in parts if part is not None]
    assert len(found) > 20
    assert all(part.getextrema()[0] == (9, 9) for part in found)
    assert empty_part(image, Image.new("L", (90, 60), 255), np.random.default_rng(0)) is None
