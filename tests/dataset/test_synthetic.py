"""Rendered scenes: determinism, truth, and splits that share nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

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
from avsseg.data.synthetic_scene import NOBODY, SceneSettings, draw_scene
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


def test_colour_does_not_tell_the_class() -> None:
    colours: dict[int, list[tuple[float, float, float]]] = {c: [] for c in range(len(CLASSES))}
    for seed in range(400):
        for thing in draw_scene(seed, split="train").objects:
            colours[thing.class_index].append(thing.texture.first)
    means = np.array([np.mean(c, axis=0) for c in colours.values()])
    within = np.mean([np.std(c, axis=0) for c in colours.values()])
    assert np.std(means, axis=0).max() < 0.25 * within


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=[f.name for f in FAMILIES])
def test_every_second_of_a_voice_sounds(family: int) -> None:
    for seed in range(5):
        wave = synthesise(draw_timbre(generator("train", seed), "train", family), 3 * SAMPLE_RATE)
        level = np.sqrt(np.mean(wave.reshape(3, -1) ** 2, axis=1))
        assert np.isfinite(wave).all()
        assert level.min() > 0.3 * level.max() > 0
