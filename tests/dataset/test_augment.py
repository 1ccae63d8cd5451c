"""Augmentation: one draw for all frames, truth that follows the picture, and nothing but what was asked for."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avsseg.data.augment import Augmentation, augment, augment_sound
from avsseg.errors import UsageError

NOTHING = Augmentation(flip=0, resize=(1, 1), photometric=0)


def scene(width: int = 60, height: int = 40) -> tuple[Image.Image, Image.Image]:
    """A white rectangle on black, off the middle, and its mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[8:20, 10:24] = 1
    return Image.fromarray(np.stack([mask * 255] * 3, -1)), Image.fromarray(mask)


def changed(
    augmentation: Augmentation,
    seed: int,
    frames: list[Image.Image],
    masks: list[Image.Image],
    size: tuple[int, int] = (64, 64),
    truth_size: tuple[int, int] = (64, 64),
) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(seed)
    pictures, truths = augment(frames, masks, augmentation, rng, size=size, truth_size=truth_size)
    return pictures, [np.asarray(truth) for truth in truths]


def test_nothing_is_a_plain_resize() -> None:
    frame, mask = scene()
    pictures, (truth,) = changed(NOTHING, 0, [frame], [mask])
    assert np.array_equal(pictures[0], np.asarray(frame.resize((64, 64), Image.Resampling.BILINEAR)))
    assert np.array_equal(truth, np.asarray(mask.resize((64, 64), Image.Resampling.NEAREST)))


def test_one_draw_for_all_frames_and_another_for_the_next_clip() -> None:
    frame, mask = scene()
    pictures, truths = changed(Augmentation(), 5, [frame] * 5, [mask] * 5)
    for t in range(1, 5):
        assert np.array_equal(pictures[t], pictures[0])
        assert np.array_equal(truths[t], truths[0])
    again, _ = changed(Augmentation(), 5, [frame] * 5, [mask] * 5)
    assert np.array_equal(again, pictures)
    different = [changed(Augmentation(), seed, [frame], [mask])[0].tobytes() for seed in range(20)]
    assert len(set(different)) == 20


def test_pictures_turn_with_their_truth_and_other_draws_stay() -> None:
    frame, mask = scene(64, 64)
    turned = [changed(replace(NOTHING, rotate=180), seed, [frame], [mask]) for seed in range(20)]
    for pictures, (truth,) in turned:
        assert ((pictures[0, ..., 0] > 127) == truth).mean() > 0.98
        assert 0.8 * np.asarray(mask).sum() < truth.sum() < 1.2 * np.asarray(mask).sum()
    assert len({truth.tobytes() for _, (truth,) in turned}) > 15
    wide = replace(NOTHING, photometric=1)
    plain, upright = changed(wide, 3, [frame], [mask])
    still, _ = changed(replace(wide, rotate=1e-6), 3, [frame], [mask])
    assert np.abs(plain.astype(int) - still).max() <= 1
    assert upright[0].any()


@pytest.mark.parametrize("resize", [(0.5, 0.7), (1.0, 1.0), (1.5, 2.0)])
@pytest.mark.parametrize("truth_size", [(64, 64), (60, 40)])
def test_truth_follows_the_picture(resize: tuple[float, float], truth_size: tuple[int, int]) -> None:
    frame, mask = scene()
    augmentation = replace(NOTHING, resize=resize, flip=0.5)
    for seed in range(20):
        pictures, (truth,) = changed(augmentation, seed, [frame], [mask], truth_size=truth_size)
        assert truth.shape == truth_size[::-1]
        assert set(np.unique(truth)) <= {0, 1}
        seen = np.asarray(Image.fromarray(pictures[0]).resize(truth_size, Image.Resampling.BILINEAR))[..., 0] > 127
        outline = 2 * sum(seen.shape)
        assert (seen != (truth > 0)).sum() <= outline // 2


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.7])
def test_truth_is_never_interpolated(scale: float) -> None:
    frame, mask = scene()
    labels = Image.fromarray(np.asarray(mask) * np.uint8(70))
    for seed in range(10):
        _, (truth,) = changed(replace(NOTHING, resize=(scale, scale), crop=False), seed, [frame], [labels])
        assert set(np.unique(truth)) == {0, 70}


def test_scale_and_place() -> None:
    frame, mask = scene()
    _, (whole,) = changed(NOTHING, 0, [frame], [mask])
    for scale in (0.5, 2.0):
        sizes, places = [], set()
        for seed in range(30):
            _, (truth,) = changed(replace(NOTHING, resize=(scale, scale)), seed, [frame], [mask])
            sizes.append(int((truth > 0).sum()))
            places.add(truth.tobytes())
        assert max(sizes) == pytest.approx(whole.sum() * scale**2, rel=0.25)
        assert len(places) > 20
        centred = {
            changed(replace(NOTHING, resize=(scale, scale), crop=False), seed, [frame], [mask])[1][0].tobytes()
            for seed in range(5)
        }
        assert len(centred) == 1


def test_a_smaller_picture_has_black_around_it_and_no_truth_there() -> None:
    white, everywhere = Image.new("RGB", (30, 30), "white"), Image.new("L", (30, 30), 1)
    pictures, (truth,) = changed(replace(NOTHING, resize=(0.5, 0.5)), 3, [white], [everywhere])
    assert (truth > 0).sum() == (pictures[0, ..., 0] == 255).sum() == 32 * 32
    assert np.array_equal(truth > 0, pictures[0, ..., 0] > 0)


def test_flip_mirrors_and_its_probability_counts() -> None:
    frame, mask = scene()
    plain, (straight,) = changed(NOTHING, 0, [frame], [mask])
    mirrored, (turned,) = changed(replace(NOTHING, flip=1), 0, [frame], [mask])
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    assert np.array_equal(turned, straight[:, ::-1])
    flips = [
        not np.array_equal(changed(replace(NOTHING, flip=0.3), seed, [frame], [mask])[1][0], straight)
        for seed in range(200)
    ]
    assert 35 <= sum(flips) <= 85


def photometric(colour: tuple[int, int, int], **strengths: Any) -> Any:
    """The colour after photometric changes of these strengths and no others."""
    off = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}
    augmentation = replace(NOTHING, photometric=1.0, **{**off, **strengths})
    pictures, _ = changed(augmentation, 1, [Image.new("RGB", (4, 4), colour)], [], (4, 4))
    return pictures[0, 0, 0].astype(int)


def test_recoloured_pictures_keep_their_edges_and_lose_their_colours() -> None:
    frame = Image.new("RGB", (8, 8), (60, 120, 180))
    frame.paste((140, 110, 90), (4, 0, 8, 8))
    augmentation = replace(NOTHING, recolour=1.0)
    left, right = [], []
    for seed in range(200):
        pictures, _ = changed(augmentation, seed, [frame], [], (8, 8))
        assert (pictures[0, :, :4] == pictures[0, 0, 0]).all()
        assert (pictures[0, :, 4:] == pictures[0, 0, 7]).all()
        left.append(pictures[0, 0, 0].astype(int))
        right.append(pictures[0, 0, 7].astype(int))
    steps = np.array(left) - np.array(right)  # of red -80, of green 10, of blue 90 before
    clear = np.abs(steps).min(1) > 3
    rising = steps[clear & ((steps < 0).sum(1) == 1)]
    assert {int(one.argmin()) for one in rising} == {0, 1, 2}  # what red was may be any of the three
    falling = clear & ((steps > 0).sum(1) == 1)
    assert 0.2 <= falling.mean() <= 0.5  # two of three channels rise; in the negative they fall
    untouched = [changed(replace(NOTHING, recolour=0.4), seed, [frame], [], (8, 8))[0][0] for seed in range(200)]
    unchanged = sum(np.array_equal(picture, np.asarray(frame)) for picture in untouched)
    assert 90 <= unchanged <= 150


def test_each_photometric_change() -> None:
    colour = (200, 100, 50)
    assert photometric(colour).tolist() == list(colour)
    brighter = photometric(colour, brightness=30.0) - colour
    assert brighter.min() == brighter.max() != 0
    assert abs(brighter[0]) <= 30
    assert photometric(colour, contrast=(0.5, 0.5)).tolist() == pytest.approx([163.75, 113.75, 88.75], abs=1)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert photometric(colour, saturation=(0.5, 0.5)).tolist() == pytest.approx(
        [grey + (c - grey) / 2 for c in colour], abs=1
    )
    turned = photometric(colour, hue=18.0)
    assert turned.tolist() != list(colour)
    hues = [colorsys.rgb_to_hsv(*(c / 255 for c in rgb))[0] * 360 for rgb in (colour, turned)]
    assert 1 < abs(hues[1] - hues[0]) < 25
    assert np.dot(turned, [0.299, 0.587, 0.114]) == pytest.approx(grey, abs=2)
    # grey has neither hue nor saturation
    assert photometric((90, 90, 90), hue=18.0, saturation=(0.5, 1.5)).tolist() == [90, 90, 90]


def test_photometric_changes_spare_the_truth() -> None:
    frame, mask = scene()
    _, (plain,) = changed(NOTHING, 2, [frame], [mask])
    _, (truth,) = changed(replace(NOTHING, photometric=1), 2, [frame], [mask])
    assert np.array_equal(truth, plain)


def test_sound_is_left_alone_by_default() -> None:
    waveform = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    assert np.array_equal(augment_sound(waveform, Augmentation(), np.random.default_rng(0)), waveform)


def test_gain_noise_and_mixing() -> None:
    tone = np.sin(np.arange(16_000) / 5).astype(np.float32) * np.float32(0.1)
    gains = [
        20 * np.log10(augment_sound(tone, Augmentation(gain_db=6), np.random.default_rng(seed)).std() / tone.std())
        for seed in range(50)
    ]
    assert -6.01 <= min(gains) < -4
    assert 4 < max(gains) <= 6.01
    noisy = augment_sound(tone, Augmentation(noise_db=-40), np.random.default_rng(0)) - tone
    assert noisy.std() == pytest.approx(0.01, rel=0.05)
    other = np.zeros(16_000, np.float32)
    other[8000:] = 0.5
    mixed = augment_sound(tone, Augmentation(mix=1, mix_db=-20), np.random.default_rng(0), other=other) - tone
    assert mixed[:8000] == pytest.approx(0, abs=1e-6)
    assert mixed[8000:] == pytest.approx(0.05, abs=1e-6)


def test_sound_stays_in_range_and_the_original_as_it_was() -> None:
    loud = np.full(100, 0.9, np.float32)
    result = augment_sound(loud, Augmentation(mix_db=0.0), np.random.default_rng(0), other=loud)
    assert result.max() == 1
    assert loud.max() == np.float32(0.9)


@pytest.mark.parametrize(
    "wrong", [{"flip": 1.5}, {"mix": -0.1}, {"resize": (0.0, 1.0)}, {"contrast": (2.0, 1.0)}, {"saturation": (-1, 1)}]
)
def test_impossible_strengths(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"augmentation: {next(iter(wrong))} is"):
        Augmentation(**wrong)
