"""Small sources to compose from, and miniature AVSBench folders.

Sources: shapes of a colour a class on grey textures, tones and noise bursts. AVSBench: its exact layouts, with every
variant that is seen in the wild.
"""

from __future__ import annotations

import csv
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.compose_sources import Sources, read_sources

COLOURS = {"dog": (255, 0, 0), "cat": (0, 255, 0), "bird": (0, 0, 255), "cup": (255, 255, 0)}
RATE = 16_000


def draw_picture(folder: Path, name: str, classes: Mapping[str, int], seed: int, size: tuple[int, int]) -> None:
    """A picture and its mask: the classes' shapes beside each other on a grey texture."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(60, 190, (size[1], size[0], 1), np.uint8).repeat(3, 2)
    image, mask = Image.fromarray(grey), Image.new("L", size)
    step = size[0] / len(classes)
    for place, (label, index) in enumerate(classes.items()):
        left, top = step * (place + rng.uniform(0.05, 0.2)), size[1] * rng.uniform(0.05, 0.2)
        box = (left, top, left + step * rng.uniform(0.55, 0.75), top + size[1] * rng.uniform(0.5, 0.75))
        for target, ink in ((image, COLOURS[label]), (mask, index)):
            draw = ImageDraw.Draw(target)
            (draw.ellipse if index % 2 else draw.rectangle)(box, fill=ink)
    for kind, result in (("images", image), ("masks", mask)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)


def write_sound(path: Path, seed: int, *, seconds: float = 2.0, noise: bool = False) -> None:
    """A tone, or noise bursts, of its own for each seed, as a 16 kHz wav."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    samples = 0.3 * np.sin(2 * np.pi * (200 + 37 * seed) * t)
    if noise:
        samples = 0.2 * rng.standard_normal(len(t)) * (np.sin(2 * np.pi * 3 * t) > 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="session")
def write_sources() -> Callable[..., Path]:
    """Writes images/, masks/ with classes.txt, and sounds/; `pictures` and `recordings` say how many a class."""

    def write(
        folder: Path,
        pictures: Mapping[str, int],
        recordings: Mapping[str, int],
        *,
        pairs: int = 0,
        size: tuple[int, int] = (80, 60),
    ) -> Path:
        labels = {name: index for index, name in enumerate(pictures, 1)}
        for name, count in pictures.items():
            for number in range(count):
                # letters at the end: numbers there would make all of them frames of one recording
                draw_picture(folder, f"{name}_{number}x", {name: labels[name]}, 100 * labels[name] + number, size)
        for number in range(pairs):
            first, second = list(labels)[:2]
            both = {first: labels[first], second: labels[second]}
            draw_picture(folder, f"both_{number}x", both, 5000 + number, size)
        (folder / "masks/classes.txt").write_text("\n".join(("background", *labels)) + "\n")
        for place, (name, count) in enumerate(recordings.items()):
            for number in range(count):
                write_sound(folder / "sounds" / name / f"{number}x.wav", 20 * place + number, noise=place % 2 == 1)
        return folder

    return write


@pytest.fixture(scope="session")
def source_folder(write_sources: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dog, cat and bird are seen and heard, cup is only seen, bell and siren are only heard. Read only."""
    return write_sources(
        tmp_path_factory.mktemp("sources"),
        {"dog": 10, "cat": 10, "bird": 10, "cup": 5},
        {"dog": 6, "cat": 6, "bird": 6, "bell": 4, "siren": 4},
        pairs=6,
    )


@pytest.fixture(scope="session")
def sources(source_folder: Path) -> Sources:
    return read_sources(source_folder / "images", source_folder / "masks", source_folder / "sounds")


WIDTH, HEIGHT = 12, 8  # of AVSBench's miniature pictures; not square: what mixes them up must fail


def red_picture(value: int) -> Image.Image:
    """A flat RGB picture, its red channel the value."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[..., 0] = value
    return Image.fromarray(pixels)


def index_map(class_index: int) -> NDArray[np.uint8]:
    """The class in the left quarter, background elsewhere."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, : WIDTH // 4] = class_index
    return values


def binary_mask(subset: str) -> Image.Image:
    """As distributed: one bit a pixel for S4, a palette whose entries 0 and 255 are in use for MS3."""
    mask = index_map(255)
    if subset == "s4":
        return Image.fromarray(mask).convert("1")
    image = Image.frombytes("P", (WIDTH, HEIGHT), mask.tobytes())
    # a palette in which the object's entry is black: only the index may count
    image.putpalette([0] * 768)
    return image


def save_picture(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_tone(path: Path, seconds: float, *, rate: int = RATE, channels: int = 1, hertz: float = 440.0) -> None:
    """A wav of a tone of amplitude 0.5; in two channels, one at 0.8 and one at 0.2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    levels = [0.5] if channels == 1 else [0.8, 0.2]
    samples = np.round(np.stack([tone * level for level in levels], 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


def write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_object_set(
    folder: Path,
    subset: str,
    *,
    base: int = 1,
    literal: bool | None = None,
    frame_suffix: str = ".png",
    splits: Sequence[str] = ("train", "val", "test"),
) -> Path:
    """AVSBench's S4 or MS3 inside `folder`, a clip a split named `clip_SPLIT`; second t has red 20 (t + 1).

    `literal`: frames have `.mp4` in their names; None: as distributed. Returns the data folder.
    """
    single = subset == "s4"
    literal = not single if literal is None else literal
    data = folder / f"{subset}_data"
    rows: list[Sequence[object]] = [("name", "start", "category", "split") if single else ("video_id", "split")]
    for split in splits:
        name = f"clip_{split}"
        rows.append((name, 0, "dog_barking", split) if single else (name, split))
        place = Path(split, "dog_barking") if single else Path(split)
        frames = data / "visual_frames" / (place if single else "") / name
        for t in range(5):
            path = frames / f"{name}{'.mp4' if literal else ''}_{t + base}{frame_suffix}"
            save_picture(path, red_picture(20 * (t + 1)))
        for t in range(1 if single and split == "train" else 5):
            save_picture(data / "gt_masks" / place / name / f"{name}_{t + base}.png", binary_mask(subset))
        write_tone(data / "audio_wav" / place / f"{name}.wav", 5)
    write_rows(folder / f"{subset}_meta_data.csv", rows)
    return data


def write_semantic_set(
    folder: Path,
    *,
    doubled: bool = False,
    base: int = 0,
    frames: str = "frames",
    labels: Sequence[str] = ("labels_semantic", "labels_rgb"),
    label_base: int | None = 1,
) -> None:
    """AVSS inside `folder`: `v1s_train`, `v1s_test` and `v1m_train` of 5 s, `v2_train` of 10 s; the class is 70."""
    rows: list[Sequence[object]] = [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    palette = np.zeros((71, 3), np.uint8)
    palette[70] = (32, 128, 128)  # by AVSBench's own table
    for label, split in (("v1s", "train"), ("v1s", "test"), ("v1m", "train"), ("v2", "train")):
        uid = f"{label}_{split}"
        seconds = 10 if label == "v2" else 5
        rows.append(("x", uid, 0, 0, "background_woman_off-the-screen_h orse", split, label))
        place = folder / label / label / uid if doubled else folder / label / uid
        for t in range(seconds):
            save_picture(place / frames / f"{t + base}.jpg", red_picture(20 * (t + 1)))
        for t in range(1 if uid == "v1s_train" else seconds):
            for name in labels:
                values = index_map(70)
                image = Image.fromarray(palette[values]) if name == "labels_rgb" else Image.fromarray(values)
                save_picture(place / name / f"{t + base}.png", image)
        write_tone(place / "audio.wav", seconds, rate=44_100, channels=2)
    write_rows(folder / "metadata.csv", rows)
    if label_base is not None:
        numbers = {name: index + label_base for index, name in enumerate(CLASS_NAMES)}
        (folder / "label2idx.json").write_text(json.dumps(numbers))


@pytest.fixture
def object_set() -> Callable[..., Path]:
    """Writes AVSBench's S4 or MS3: `object_set(folder, subset, ...)`."""
    return write_object_set


@pytest.fixture
def semantic_set() -> Callable[..., None]:
    """Writes AVSBench's AVSS: `semantic_set(folder, ...)`."""
    return write_semantic_set


@pytest.fixture
def sound_file() -> Callable[..., None]:
    """Writes a wav: `sound_file(path, seconds, ...)`."""
    return write_tone
