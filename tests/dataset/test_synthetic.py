"""Rendered scenes: determinism, truth, and splits that share nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.data.synthetic import (
    SAMPLE_RATE,
    Scene,
    SoundEvent,
    draw_events,
    mix,
    off_screen_seconds,
    render_scene,
    sounding_masks,
    sounding_seconds,
)
from avsseg.data.synthetic_draws import HELD_OUT_CELLS, Bank, Range, generator
from avsseg.data.synthetic_scene import NOBODY, Camera, SceneDescription, ScenePainter, SceneSettings, draw_scene
from avsseg.data.synthetic_shapes import CLASSES, TEXTURES
from avsseg.data.synthetic_sound import FAMILIES, draw_timbre, synthesise

SIZE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, split="train", size=SIZE) for seed in range(40)]


def test_same_seed_same_scene(scenes: list[Scene]) -> None:
    again = render_scene(3, split="train", size=SIZE)
    assert np.array_equal(again.frames, scenes[3].frames)
    assert np.array_equal(again.waveform, scenes[3].waveform)
    assert np.array_equal(again.masks, scenes[3].masks)
    assert not np.array_equal(again.frames, scenes[4].frames)


def test_splits_have_their_own_seed_spaces() -> None:
    drawn = {split: draw_scene(5, split=split) for split in ("train", "val", "test", "example")}
    backdrops = {scene.backdrop for scene in drawn.values()}
    assert len(backdrops) == 4


def test_shapes_and_types(scenes: list[Scene]) -> None:
    scene = scenes[0]
    assert scene.frames.shape == (5, SIZE, SIZE, 3)
    assert scene.frames.dtype == np.uint8
    assert scene.masks.shape == (5, SIZE, SIZE)
    assert scene.waveform.shape == (5 * SAMPLE_RATE,)
    assert scene.waveform.dtype == np.float32
    assert np.abs(scene.waveform).max() <= 1


def test_the_truth_is_the_visible_pixels_of_what_sounds(scenes: list[Scene]) -> None:
    sounding_frames = silent_frames = 0
    for scene in scenes:
        for t in range(5):
            expected = np.zeros((SIZE, SIZE), bool)
            for index in np.flatnonzero(scene.sounding[:, t]):
                expected |= scene.owner[t] == index
            assert np.array_equal(scene.masks[t], expected)
            assert np.array_equal(scene.labels[t] > 0, expected)
            sounding_frames += bool(expected.any())
            silent_frames += not expected.any()
    assert sounding_frames > 60
    assert silent_frames > 20


def test_several_classes_and_several_objects_occur(scenes: list[Scene]) -> None:
    assert {len(s.description.objects) for s in scenes} == {1, 2, 3, 4}
    assert {thing.class_index for s in scenes for thing in s.description.objects} == set(range(len(CLASSES)))
    for scene in scenes:
        classes = [thing.class_index for thing in scene.description.objects]
        assert len(set(classes)) == len(classes)


def test_some_scenes_hold_sounds_of_classes_that_are_not_visible() -> None:
    off_screen = 0
    for seed in range(60):
        description = draw_scene(seed, split="train")
        visible = {thing.class_index for thing in description.objects}
        for event in draw_events(description):
            if event.object_index == NOBODY:
                off_screen += 1
                assert event.timbre.family not in visible
            else:
                assert event.timbre.family == description.objects[event.object_index].class_index
    assert off_screen >= 3


def test_a_look_alike_wears_the_dress_of_another_object_and_never_sounds() -> None:
    plain, dressed = SceneSettings(), SceneSettings(look_alikes=1.0)
    seen = 0
    for seed in range(40):
        without = draw_scene(seed, split="train", settings=plain)
        description = draw_scene(seed, split="train", settings=dressed)
        others = description.objects[: len(without.objects)]
        assert others == without.objects
        assert replace(description, objects=()) == replace(without, objects=())
        if len(others) == 4:  # no room
            assert description == without
            continue
        seen += 1
        (double,) = description.objects[len(others) :]
        assert double.silent
        assert not any(thing.silent for thing in others)
        assert double.class_index not in {thing.class_index for thing in others}
        assert (double.texture, double.outline) in [(thing.texture, thing.outline) for thing in others]
        for variant in range(4):
            events = draw_events(description, dressed, variant=variant)
            assert {event.object_index for event in events} <= {NOBODY, *range(len(others))}
            families = {event.timbre.family for event in events}
            assert double.class_index not in families
    assert seen >= 20


def test_look_alikes_stand_in_the_given_share_of_scenes() -> None:
    settings = SceneSettings(objects=(2, 2), look_alikes=0.35)
    drawn = [len(draw_scene(seed, split="train", settings=settings).objects) for seed in range(300)]
    assert set(drawn) == {2, 3}
    assert 80 <= drawn.count(3) <= 130


def test_voices_of_nobody_are_told_by_class_and_second() -> None:
    description = draw_scene(2, split="train", settings=SceneSettings(objects=(2, 2)))
    own, other = (replace(description.objects[0].timbre, family=family) for family in (1, 6))
    events = [
        SoundEvent(0, own, 0, 80_000),
        SoundEvent(NOBODY, other, 12_001, 40_000),  # a sample short of a quarter of the first second
        SoundEvent(NOBODY, other, 64_000, 66_000),
        SoundEvent(NOBODY, other, 70_000, 72_000),  # together a quarter of the last
    ]
    heard = off_screen_seconds(events, 5)
    assert heard.shape == (len(CLASSES), 5)
    assert heard[6].tolist() == [False, True, True, False, True]
    assert heard.any(1).nonzero()[0].tolist() == [6]


def test_variants_change_the_sound_and_not_the_pictures() -> None:
    variants = [render_scene(11, split="train", size=SIZE, variant=v) for v in range(4)]
    assert all(np.array_equal(v.frames, variants[0].frames) for v in variants)
    assert len({v.sounding.tobytes() for v in variants}) > 1


def test_onsets_and_offsets_are_exact_to_the_sample() -> None:
    description = draw_scene(2, split="train", settings=SceneSettings(objects=(2, 2)))
    voice = replace(description.objects[0].timbre, family=4, gain=1.0)
    quiet = next(v for v in range(50) if not mix(description, (), v).any())
    waveform = mix(description, (SoundEvent(0, voice, 20_001, 52_003),), quiet)
    heard = np.flatnonzero(waveform)
    assert not waveform[:20_001].any()
    assert not waveform[52_003:].any()
    assert heard[0] <= 20_001 + 3  # the ramp starts at 0
    assert heard[-1] >= 52_003 - 4


def test_a_second_sounds_when_a_quarter_of_it_does() -> None:
    description = draw_scene(2, split="train", settings=SceneSettings(objects=(2, 2)))
    voice = description.objects[1].timbre
    start, stop = 16_000 + 12_000, 3 * 16_000 + 3_999
    sounding = sounding_seconds(description, [SoundEvent(1, voice, start, stop)])
    assert sounding.tolist() == [[False] * 5, [False, True, True, False, False]]


def test_sounding_masks_ignore_pixels_of_nobody() -> None:
    owner = np.array([[[NOBODY, 0], [1, NOBODY]]], np.int8)
    assert sounding_masks(owner, np.array([[False], [True]])).tolist() == [[[False, False], [True, False]]]


def test_scenes_may_last_a_second() -> None:
    scenes = [draw_scene(seed, split="train", seconds=1) for seed in range(40)]
    assert all(description.seconds == 1 for description in scenes)


def test_motion_is_continuous() -> None:
    for seed in range(20):
        for thing in draw_scene(seed, split="train").objects:
            track = np.array([thing.motion.position(t) for t in np.arange(0, 5, 0.04)])
            assert np.abs(np.diff(track, axis=0)).max() < 0.35


def pixels_of(description: SceneDescription, index: int, time_s: float) -> int:
    return int((ScenePainter(description, SIZE, SIZE).paint(time_s)[1] == index).sum())


def test_objects_enter_and_leave() -> None:
    entering = leaving = 0
    drawn = [draw_scene(seed, split="train") for seed in range(60)]
    for scene in drawn:
        for index, thing in enumerate(scene.objects):
            if thing.motion.enters_s > 0:
                entering += 1
                assert pixels_of(scene, index, 0.0) == 0
            if thing.motion.leaves_s < scene.seconds:
                leaving += 1
                assert pixels_of(scene, index, scene.seconds) == 0
    objects = sum(len(scene.objects) for scene in drawn)
    assert 0.15 < (entering + leaving) / objects < 0.35
    assert min(entering, leaving) > 0.05 * objects


def test_what_enters_or_leaves_is_in_view_in_between() -> None:
    for seed in range(20):
        scene = draw_scene(seed, split="train", settings=SceneSettings(objects=(1, 1), entrances=1.0))
        (thing,) = scene.objects
        come, gone = max(0.0, thing.motion.enters_s + 0.5), min(5.0, thing.motion.leaves_s - 0.5)
        assert pixels_of(scene, 0, (come + gone) / 2) > 0
        assert pixels_of(scene, 0, 0.0 if thing.motion.enters_s > 0 else 5.0) == 0


def test_the_camera_moves_in_most_scenes() -> None:
    moved = []
    for seed in range(40):
        scene = draw_scene(seed, split="train")
        scene = replace(scene, objects=(), photometry=replace(scene.photometry, noise=0.0, jpeg_quality=0))
        painter = ScenePainter(scene, SIZE, SIZE)
        pictures = [painter.paint(t)[0].astype(float) for t in (0.0, 1.5, 3.0)]
        moved.append(max(float(np.abs(picture - pictures[0]).mean()) for picture in pictures) > 0.1)
    assert 0.4 < np.mean(moved) < 0.8


def test_a_pan_moves_objects_and_background_together() -> None:
    """A camera that stands n pixels further to the right shows everything n pixels further to the left."""
    n = 6
    for seed in range(10):
        scene = draw_scene(seed, split="train", aspect=1.0)
        scene = replace(scene, photometry=replace(scene.photometry, noise=0.0, jpeg_quality=0))
        away = Camera((2 * n / SIZE, 0.0), 0.0, 0.0, 0.0, np.pi / 2)
        views = [replace(scene, camera=replace(away, pan=pan)) for pan in ((0.0, 0.0), away.pan)]
        (still, whose), (panned, whose_panned) = (ScenePainter(view, SIZE, SIZE).paint(2.5) for view in views)
        assert (whose[:, n:] != whose_panned[:, :-n]).mean() < 0.002
        assert np.abs(still[:, n:].astype(float) - panned[:, :-n]).mean() < 0.5
        assert np.abs(still.astype(float) - panned).mean() > 2


def test_ranges_keep_cells_for_the_held_out_splits() -> None:
    wide = Range(100, 1000, logarithmic=True)
    rng = np.random.default_rng(0)
    assert {wide.cell(wide.draw(rng, "test")) for _ in range(200)} == set(HELD_OUT_CELLS)
    assert {wide.cell(wide.draw(rng, "train")) for _ in range(400)} == set(range(10)) - set(HELD_OUT_CELLS)


def test_test_split_uses_textures_shapes_pitches_and_tempi_never_seen() -> None:
    for split, held_out in (("train", False), ("val", False), ("test", True), ("example", True)):
        for seed in range(15):
            for thing in draw_scene(seed, split=split).objects:
                assert (thing.texture.kind in TEXTURES.held_out) == held_out
                family = FAMILIES[thing.timbre.family]
                assert (family.pitch.cell(thing.timbre.pitch_hz) in HELD_OUT_CELLS) == held_out
                assert (family.tempo.cell(thing.timbre.tempo_hz) in HELD_OUT_CELLS) == held_out
                shape = CLASSES[thing.class_index]
                for drawn, value in zip(shape.ranges, thing.parameters, strict=True):
                    if isinstance(drawn, Bank):
                        assert (value in drawn.held_out) == held_out
                    else:
                        assert (drawn.cell(value) in HELD_OUT_CELLS) == held_out


@pytest.fixture(scope="module")
def looks() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of objects in view, without their outlines' shape: colours and textures (N, 12), and class (N,)."""
    found, classes = [], []
    for seed in range(420):
        scene = draw_scene(seed, split="train")
        picture, owner = ScenePainter(scene, SIZE, SIZE).paint(2.5)
        values = picture.astype(float)
        across, down = (np.abs(np.diff(values, axis=axis)) for axis in (1, 0))
        for index, thing in enumerate(scene.objects):
            own = owner == index
            if own.sum() < 60:
                continue
            beside, below = own[:, 1:] & own[:, :-1], own[1:] & own[:-1]
            parts = (values[own].mean(0), values[own].std(0), across[beside].mean(0), down[below].mean(0))
            found.append(np.concatenate(parts))
            classes.append(thing.class_index)
    features = np.array(found)
    return (features - features.mean(0)) / features.std(0), np.array(classes)


def told_by_the_nearest(features: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Share whose class is the commonest among the fifteen most alike of all others."""
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = classes[np.argsort(distances, axis=1)[:, :15]]
    votes = np.array([np.bincount(row, minlength=len(CLASSES)).argmax() for row in nearest])
    return float((votes == classes).mean())


def test_no_lookup_of_colours_or_textures_tells_the_class(
    looks: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    features, classes = looks
    assert len(classes) > 600
    chance = 1 / len(CLASSES)
    assert told_by_the_nearest(features, classes) < chance + 0.06
    # the probe does see a class in one of the twelve
    hinted = features.copy()
    hinted[:, 4] += 2.5 * (classes - np.mean(classes)) / np.std(classes)
    assert told_by_the_nearest(hinted, classes) > chance + 0.12


def test_no_texture_belongs_to_a_class() -> None:
    things = [thing for seed in range(500) for thing in draw_scene(seed, split="train").objects]
    shares = np.zeros((len(CLASSES), len(TEXTURES.seen) + 1))
    kinds = list(TEXTURES.seen)
    for thing in things:
        shares[thing.class_index, kinds.index(thing.texture.kind)] += 1
        shares[thing.class_index, -1] += thing.outline is not None
    shares /= np.bincount([thing.class_index for thing in things], minlength=len(CLASSES))[:, None]
    assert np.ptp(shares, axis=0).max() < 0.25
    assert shares.min() > 0


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=[f.name for f in FAMILIES])
def test_every_second_of_a_voice_sounds(family: int) -> None:
    for seed in range(5):
        wave = synthesise(draw_timbre(generator("train", seed), "train", family), 3 * SAMPLE_RATE)
        level = np.sqrt(np.mean(wave.reshape(3, -1) ** 2, axis=1))
        assert np.isfinite(wave).all()
        assert level.min() > 0.3 * level.max() > 0
