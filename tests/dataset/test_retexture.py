"""Random convolutions: other textures, the same outlines, one draw for all frames of a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.augment import Augmentation, augment, distort
from avsseg.data.retexture import retexture

NOTHING = Augmentation(flip=0, resize=(1, 1), photometric=0)


def halves(boundary: int, *, side: int = 32) -> NDArray[np.uint8]:
    """Two plain colours that meet at a column."""
    frame = np.full((side, side, 3), (60, 120, 180), np.uint8)
    frame[:, boundary:] = (200, 80, 40)
    return frame


def test_plain_areas_stay_plain_and_outlines_stay_where_they_are() -> None:
    changed = []
    for seed in range(60):
        (frame,) = retexture(halves(12)[None], np.random.default_rng(seed))
        assert frame.shape == (32, 32, 3)
        assert frame.dtype == np.uint8
        # a kernel reaches three pixels at most
        assert (frame[:, :9] == frame[0, 0]).all()
        assert (frame[:, 15:] == frame[0, 31]).all()
        changed.append(np.abs(frame.astype(int) - halves(12)).max() > 20)
    assert np.mean(changed) > 0.8


def test_frames_of_a_clip_change_alike() -> None:
    clip = np.stack([halves(10), halves(20)])
    for seed in range(10):
        first, second = retexture(clip, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[:, :7], second[:, :7])
        np.testing.assert_array_equal(first[:, 23:], second[:, 23:])
    again = [retexture(clip, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_a_single_colour_does_not_break_it() -> None:
    for seed in range(10):
        (frame,) = retexture(np.full((1, 8, 8, 3), 77, np.uint8), np.random.default_rng(seed))
        assert (frame == frame[0, 0]).all()


def test_as_often_as_it_is_asked_for_and_last_of_all_draws() -> None:
    augmentation = Augmentation(rotate=30, recolour=0.5)
    frame = Image.fromarray(halves(12))
    changed = []
    for seed in range(100):
        before, after = (
            augment([frame], [frame.getchannel(0)], a, np.random.default_rng(seed), size=(32, 32), truth_size=(32, 32))
            for a in (augmentation, replace(augmentation, retexture=0.5))
        )
        assert before[1][0].tobytes() == after[1][0].tobytes()
        changed.append(not np.array_equal(before[0], after[0]))
    assert 0.35 <= np.mean(changed) <= 0.65
    rng = np.random.default_rng(0)
    assert not np.array_equal(distort(halves(12), replace(NOTHING, retexture=1.0), rng), halves(12))
    np.testing.assert_array_equal(distort(halves(12), NOTHING, rng), halves(12))
