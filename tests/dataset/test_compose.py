"""Composed clips: masks are what is heard, off-screen sounds are never seen, a seed is a clip."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from avsseg.data import compose_canvas, compose_scene
from avsseg.data.compose import ComposedClip, class_counts, compose_clip, with_sound
from avsseg.data.compose_pool import ComposeSettings, SplitSources
from avsseg.data.compose_scene import Appearance
from avsseg.data.compose_sources import Sources, read_sources
from avsseg.errors import UsageError

RATE = 16_000
# the colours of the shapes are 255 in one or two channels and 0 in the others, the ground is grey
COLOURS = {1: (1, 0, 0), 2: (0, 1, 0), 3: (0, 0, 1), 4: (1, 1, 0)}


@pytest.fixture(scope="module")
def train(sources: Sources) -> SplitSources:
    return SplitSources(sources, "train", ComposeSettings())


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours as they are in the pictures; the random numbers that changed them are still drawn."""
    jitter, look = compose_canvas.colour_jitter, compose_canvas.draw_appearance

    def unchanged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        jitter(image, rng)
        return image

    def neutral(rng: np.random.Generator) -> Appearance:
        look(rng)
        return Appearance()

    monkeypatch.setattr(compose_canvas, "colour_jitter", unchanged)
    monkeypatch.setattr(compose_scene, "colour_jitter", unchanged)
    monkeypatch.setattr(compose_canvas, "draw_appearance", neutral)


@pytest.mark.usefixtures("plain")
def test_the_class_map_follows_the_picture_in_every_kind_of_clip(sources: Sources) -> None:
    pictures = tuple(replace(p, kind="cutout") if i % 3 == 0 else p for i, p in enumerate(sources.pictures))
    train = SplitSources(replace(sources, pictures=pictures), "train", ComposeSettings(motion=2.0))
    with_cutouts = moved = 0
    for seed in range(60):
        scene = compose_clip(train, seed).scene
        with_cutouts += bool(scene.cutouts)
        maps = []
        for t in (0.0, 1.9, 4.9):
            frame, classes = scene.paint(t, 36, 48)
            image = Image.fromarray(classes)
            # a small picture may still be enlarged, so colours mix over two pixels at borders
            lowest, highest = (
                np.asarray(image.filter(kind(5))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
            )
            sure = lowest == highest
            assert sure.mean() > 0.3
            pixels = frame[sure].astype(int)
            shown = np.zeros(len(pixels), int)
            for k, channels in COLOURS.items():
                shown[(abs(pixels - 255 * np.array(channels)) < 100).all(1)] = k
            assert (shown == classes[sure]).all()
            maps.append(classes)
        moved += not np.array_equal(maps[0], maps[2])
    assert with_cutouts > 10
    assert moved > 40


def test_masks_are_the_pixels_of_what_is_audible(train: SplitSources) -> None:
    checked = Counter[bool]()
    for seed in range(80):
        clip = compose_clip(train, seed)
        maps = [clip.scene.paint(t + 0.5, 48, 48)[1] for t in range(5)]
        masks = clip.masks(maps)
        assert masks.shape == (5, 48, 48)
        for t, classes in enumerate(maps):
            loud = {track.class_index for track in clip.tracks if track.samples[t * RATE : (t + 1) * RATE].any()}
            assert loud == {k for k, sounding in clip.sounding().items() if sounding[t]}
            expected = np.zeros((48, 48), bool)
            for k in loud:
                expected |= classes == k
            assert np.array_equal(masks[t], expected)
            checked[bool(masks[t].any())] += 1
    assert min(checked.values()) > 50


def test_unknown_pixels_never_sound(train: SplitSources) -> None:
    clip = next(c for c in (compose_clip(train, seed) for seed in range(50)) if c.tracks)
    assert not clip.masks([np.full((4, 4), 255, np.uint8)] * 5).any()


def test_shares_of_the_cases(train: SplitSources) -> None:
    cases = Counter(compose_canvas.draw_scene(train, seed)[0] for seed in range(400))
    for case, share in {"one": 0.4, "two": 0.3, "several": 0.1, "none": 0.2}.items():
        assert cases[case] / 400 == pytest.approx(share, abs=0.07)


def test_what_each_case_lets_be_heard(train: SplitSources) -> None:
    silent = []
    for seed in range(300):
        clip = compose_clip(train, seed)
        seen = clip.scene.classes_present() | set(clip.objects)
        visible = [k for k in clip.sounding() if k in seen]
        assert set(visible) <= set(clip.objects)
        heard = np.array([clip.sounding()[k] for k in visible]).reshape(-1, 5)
        if clip.case == "none":
            assert not visible
        elif clip.case == "several":
            assert len(set(clip.objects)) == 2
        else:
            assert (heard.sum(0) <= 1).all()
            if clip.case == "one":
                assert len(clip.objects) == 1
                silent.append(1 - heard.sum(0))
            else:
                assert len(clip.objects) == 2
    assert np.mean(silent) == pytest.approx(0.15, abs=0.06)


def test_off_screen_classes_are_never_visible(train: SplitSources) -> None:
    off_screen = Counter[int]()
    for seed in range(200):
        clip = compose_clip(train, seed)
        for k in set(clip.sounding()) - set(clip.objects):
            off_screen[k] += 1
            assert all(k not in clip.scene.paint(t + 0.5, 64, 64)[1] for t in range(5))
    assert {5, 6} < set(off_screen)  # what is never seen, and others too


def test_other_variants_change_the_sound_alone(train: SplitSources) -> None:
    differing = 0
    for seed in range(30):
        first = compose_clip(train, seed)
        second = with_sound(train, seed, 1, first.case, first.objects, first.scene)
        assert second.scene is first.scene
        assert (second.case, second.objects) == (first.case, first.objects)
        differing += not np.array_equal(second.waveform, first.waveform)
    assert differing >= 25


def _digest(clip: ComposedClip) -> str:
    frame, classes = clip.scene.paint(2.4, 56, 56)
    return hashlib.sha256(frame.tobytes() + classes.tobytes() + clip.waveform.tobytes()).hexdigest()


def test_a_seed_is_the_same_clip_in_another_process(source_folder: Path, train: SplitSources) -> None:
    program = """if True:
        import hashlib, sys
        from pathlib import Path
        from avsseg.data.compose import *
        from avsseg.data.compose_pool import ComposeSettings, SplitSources
        from avsseg.data.compose_sources import read_sources
        folder = Path(sys.argv[1])
        found = read_sources(folder / "images", folder / "masks", folder / "sounds", jobs=1)
        train = SplitSources(found, "train", ComposeSettings())
        for seed in range(8):
            clip = compose_clip(train, seed)
            frame, classes = clip.scene.paint(2.4, 56, 56)
            print(hashlib.sha256(frame.tobytes() + classes.tobytes() + clip.waveform.tobytes()).hexdigest())
    """
    done = subprocess.run([sys.executable, "-c", program, source_folder], capture_output=True, text=True, check=True)
    digests = done.stdout.split()
    assert digests == [_digest(compose_clip(train, seed)) for seed in range(8)]
    assert len(set(digests)) == 8


def test_no_source_is_in_clips_of_two_splits(sources: Sources) -> None:
    used: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        part = SplitSources(sources, split, ComposeSettings())
        for seed in range(60):
            clip = compose_clip(part, seed)
            names = {f"picture {name}" for name in clip.scene.pictures}
            names |= {f"sound {part.recording_names[track.class_index][track.recording]}" for track in clip.tracks}
            for name in names:
                used.setdefault(name, set()).add(split)
    assert all(len(splits) == 1 for splits in used.values())
    split_of = {f"picture {p.name}": p.split for p in sources.pictures}
    split_of |= {f"sound {s.name}": s.split for s in sources.sounds}
    assert {name: splits.pop() for name, splits in used.items()}.items() <= split_of.items()


def _read(folder: Path) -> Sources:
    return read_sources(folder / "images", folder / "masks", folder / "sounds")


def test_a_single_class_with_one_recording(write_sources: Callable[..., Path], tmp_path: Path) -> None:
    found = _read(write_sources(tmp_path, {"dog": 2}, {"dog": 1}))
    train = SplitSources(found, "train", ComposeSettings())
    clips = [compose_clip(train, seed) for seed in range(60)]
    assert {clip.objects for clip in clips} == {(1,)}
    assert {clip.case for clip in clips} == {"one", "none"}  # never two of what there is one of
    assert all(set(clip.sounding()) <= {1} for clip in clips)
    assert sum(not clip.tracks for clip in clips if clip.case == "one") < 5
    with pytest.raises(UsageError, match=r"no class of the val split.*or ask for no val clips"):
        SplitSources(found, "val", ComposeSettings())


def test_cutouts_without_any_backdrop(write_sources: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_sources(tmp_path, {"dog": 2, "cat": 2}, {"dog": 1, "cat": 1})
    rows = [f"{name}_{i}x,train,cutout" for name in ("dog", "cat") for i in range(2)]
    (folder / "images/splits.csv").write_text("name,split,kind\n" + "\n".join(rows))
    train = SplitSources(_read(folder), "train", ComposeSettings())
    for seed in range(40):
        clip = compose_clip(train, seed)
        assert len(clip.scene.cutouts) == len(clip.objects)
        assert set(np.unique(clip.scene.paint(1.0, 64, 64)[1])) <= {0, *clip.objects}


def test_class_counts(sources: Sources) -> None:
    counts = class_counts(sources, ComposeSettings())
    assert sum(pictures for pictures, _ in counts["cup"].values()) == 5
    assert sum(recordings for _, recordings in counts["bell"].values()) == 4
    assert sum(pictures for pictures, _ in counts["dog"].values()) == 16
    assert sum(recordings for _, recordings in counts["cup"].values()) == 0
    # what is too small to be drawn is not counted
    none = class_counts(sources, ComposeSettings(smallest=0.99))
    assert sum(pictures for by_split in none.values() for pictures, _ in by_split.values()) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"one": -0.1},
        {"one": float("nan")},
        {"one": 0, "two": 0, "several": 0, "none": 0},
        {"seconds": 0},
        {"motion": -1},
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(ComposeSettings(), **changes)  # type: ignore[arg-type]


def test_a_case_without_a_share_is_never_drawn() -> None:
    settings = ComposeSettings(one=0, two=0.3, several=0.1, none=0)
    assert {settings.case(draw) for draw in (0.0, 0.5, 0.8, 1 - 2**-53)} == {"two", "several"}
