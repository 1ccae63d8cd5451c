"""The weights that come with the package: on material that training never saw, their masks follow the sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import safe_open

from avsseg.data.synthetic import mix, render_pictures, sounding_masks, sounding_seconds
from avsseg.data.synthetic_dataset import two_in_turn
from avsseg.media.audio import log_mel_examples
from avsseg.model.avs_mamba import normalise
from avsseg.pipeline.segment import segment
from avsseg.weights import load_model
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

# two photographs side by side under a moving camera: an astronaut who speaks from 1 s to 5.8 s, and a cat (see
# examples/README.md)
SPEAKING = Path(__file__).parents[2] / "examples" / "speaking.mp4"
WIDTH, HEIGHT, RATE = 720, 360, 25
# drawn by hand, in pixels of the pictures before the camera moves
PERSON = [
    (105, 45), (116, 20), (158, 6), (205, 16), (222, 45), (215, 86), (200, 100), (200, 124), (224, 165), (256, 206),
    (270, 262), (218, 294), (208, 360), (0, 360), (0, 198), (68, 170), (82, 130), (118, 115), (108, 80),
]  # fmt: skip
CAT = [(320, 95), (440, 0), (600, 0), (690, 120), (680, 205), (600, 300), (520, 360), (320, 360)]


@dataclass(frozen=True)
class Second:
    """One mask, and the truth at its time."""

    mask: NDArray[np.bool_]
    person: NDArray[np.bool_]
    cat: NDArray[np.bool_]
    speaks: bool
    silent: bool
    name: str


def drawn(outline: list[tuple[int, int]], time_s: float, side: int) -> NDArray[np.bool_]:
    """An outline as the camera of examples/README.md shows it, squashed to a square."""
    zoom = 1.02 + 0.0008 * time_s * RATE
    left = (WIDTH - WIDTH / zoom) * (0.5 + 0.3 * math.sin(time_s * RATE / 40))
    top = (HEIGHT - HEIGHT / zoom) * 0.4
    points = [((x - left) * zoom * side / WIDTH, (y - top) * zoom * side / HEIGHT) for x, y in outline]
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image)


@pytest.fixture(scope="module")
def seconds() -> list[Second]:
    model = load_model(DEFAULT_MODEL)
    side = model.input_size
    with segment(SPEAKING, model=model) as track:
        masks = list(track)
    return [
        Second(
            mask.probability[0] > 0.5,
            drawn(PERSON, mask.timestamp_s, side),
            drawn(CAT, mask.timestamp_s, side),
            1 < mask.timestamp_s < 5,
            not 1 <= mask.timestamp_s < 6,
            model.heard[int(mask.heard.argmax())],
        )
        for mask in masks
    ]


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


# rendered with textures, shapes, pitches and tempi that no training has seen: two objects sound in turn
SCENES, SCENE_SECONDS = 6, 6


@dataclass(frozen=True)
class Scene:
    """Truths and predictions (T, H, W) with its own voices, with the two voices swapped, in silence and in hiss."""

    truth: NDArray[np.bool_]
    swapped_truth: NDArray[np.bool_]
    heard: NDArray[np.bool_]
    swapped: NDArray[np.bool_]
    silent: NDArray[np.bool_]
    hiss: NDArray[np.bool_]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    model = load_model(DEFAULT_MODEL).model
    size, times = model.config.input_size, [float(t) for t in range(SCENE_SECONDS)]

    def scene(seed: int) -> Scene:
        description, events = two_in_turn(seed, split="test", seconds=SCENE_SECONDS)
        _, swapped = two_in_turn(seed, split="test", seconds=SCENE_SECONDS, swapped=True)
        frames, owner = render_pictures(description, size, size, [t + 0.5 for t in times])
        waveform = mix(description, events)
        hiss = np.random.default_rng(seed).normal(0, 1e-3, waveform.shape).astype(np.float32)  # -60 dBFS
        with torch.inference_mode():
            own, other, silent, faint = (
                model(normalise(torch.from_numpy(frames))[None], log_mel_examples(torch.from_numpy(sound), times)[None])
                for sound in (waveform, mix(description, swapped), np.zeros_like(waveform), hiss)
            )
        truths = (sounding_masks(owner, sounding_seconds(description, each)) for each in (events, swapped))
        return Scene(*truths, *((logits[0, :, 0] > 0).numpy() for logits in (own, other, silent, faint)))

    return [scene(seed) for seed in range(SCENES)]


def test_the_default_model_is_shipped_trained() -> None:
    assert DEFAULT_MODEL in shipped_weights()
    assert load_model(DEFAULT_MODEL).trained


def test_the_file_is_small_and_in_float16() -> None:
    path = shipped_weights()[DEFAULT_MODEL].path
    assert path.stat().st_size <= 30e6
    with safe_open(path, framework="np") as file:
        bits: dict[str, int] = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            bits[part.get_dtype()] = bits.get(part.get_dtype(), 0) + math.prod(part.get_shape())
    assert bits["F16"] > 0.97 * sum(bits.values())


def test_a_scene_s_masks_beat_a_floor_and_marking_both(scenes: list[Scene]) -> None:
    own = [iou(scene.heard, scene.truth) for scene in scenes]
    both = [iou(scene.truth | scene.swapped_truth, scene.truth) for scene in scenes]
    assert np.mean(own) > 0.47
    assert np.mean(own) > np.mean(both)


def test_masks_move_to_the_other_object_with_the_voices(scenes: list[Scene]) -> None:
    moved = [
        (scene.heard & scene.truth).sum() > (scene.heard & scene.swapped_truth).sum()
        and (scene.swapped & scene.swapped_truth).sum() > (scene.swapped & scene.truth).sum()
        for scene in scenes
    ]
    assert sum(moved) >= 4


def test_scenes_in_silence_and_hiss_are_left_alone(scenes: list[Scene]) -> None:
    assert max(scene.silent.mean() for scene in scenes) < 0.001
    assert max(scene.hiss.mean() for scene in scenes) < 0.01


def test_the_mask_is_on_the_one_who_speaks(seconds: list[Second]) -> None:
    speaking = [second for second in seconds if second.speaks]
    assert len(speaking) == 4
    assert np.mean([iou(second.mask, second.person) for second in speaking]) > 0.5


def test_it_beats_marking_everything_that_could_sound(seconds: list[Second]) -> None:
    for second in seconds:
        if second.speaks:
            assert iou(second.mask, second.person) > iou(second.person | second.cat, second.person)
            assert (second.mask & second.cat).sum() < 0.1 * second.cat.sum()


def test_in_silence_nothing_is_marked(seconds: list[Second]) -> None:
    silent = [second.mask.mean() for second in seconds if second.silent]
    assert len(silent) == 3
    assert max(silent) < 0.01


def test_the_one_who_speaks_is_called_a_person(seconds: list[Second]) -> None:
    assert [second.name for second in seconds if second.speaks] == ["person"] * 4
