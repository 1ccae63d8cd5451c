"""Writes rendered scenes to disk: as one video clip with sound, or as a folder in AVSBench's S4 or MS3 layout."""

from __future__ import annotations

import csv
import multiprocessing
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.synthetic import SoundEvent, draw_events, mix, render_pictures, sounding_masks, sounding_seconds
from avsseg.data.synthetic_draws import Split
from avsseg.data.synthetic_scene import SceneDescription, ScenePainter, SceneSettings, draw_scene
from avsseg.data.synthetic_shapes import CLASSES
from avsseg.data.synthetic_sound import SAMPLE_RATE
from avsseg.errors import OutputError, UsageError, printable
from avsseg.media.ffmpeg import FfmpegProcess, command, file_url
from avsseg.writers.base import output_errors, written_whole

Subset = Literal["s4", "ms3"]
# AVSBench keeps sample 15 of 16 a second, so its frame of second t is the one at t + 15/16.
FRAME_OFFSET_S = 15 / 16
SINGLE_SOURCE = SceneSettings(objects=(2, 4), entrances=0.0, sound_modes={"single": 1.0})
ROOTS: dict[Subset, tuple[str, str]] = {"s4": ("Single-source", "s4"), "ms3": ("Multi-sources", "ms3")}


@dataclass(frozen=True)
class SynthSettings:
    """A dataset to write: how many clips a split, their length, rate and sizes in pixels.

    `size` is the side of the stored frames and masks, `height` that of the video.
    """

    subset: Subset = "ms3"
    train: int = 400
    val: int = 40
    test: int = 40
    seed: int = 0
    seconds: int = 5
    frame_rate: int = 20
    size: int = 224
    height: int = 240


@dataclass(frozen=True)
class _Clip:
    split: Split
    seed: int
    name: str
    description: SceneDescription
    events: tuple[SoundEvent, ...]
    waveform: NDArray[np.float32]
    category: str


def write_dataset(folder: Path, settings: SynthSettings, *, jobs: int = 1) -> Iterator[tuple[str, str]]:
    """Renders the dataset under `folder` and yields (split, clip name) as each clip is done.

    The metadata table is written last, so a folder without it is unfinished; clips are the same for the same settings,
    whatever `jobs`. Raises UsageError for a folder that already holds this subset, OutputError if writing fails.
    """
    root, short = ROOTS[settings.subset]
    table = folder / root / f"{short}_meta_data.csv"
    if table.exists():
        raise UsageError(f"{printable(table)} exists: the dataset is already there. Choose another folder")
    if settings.train + settings.val + settings.test == 0:
        raise UsageError("a dataset of no clips: ask for at least one")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    counts: dict[Split, int] = {"train": settings.train, "val": settings.val, "test": settings.test}
    first = settings.seed * 1_000_000
    seeds = [(split, first + index) for split, count in counts.items() for index in range(count)]
    rows = []
    for split, seed, name, category in _write_all(folder / root / f"{short}_data", settings, seeds, jobs):
        rows.append((name, f"{seed}", category, split) if settings.subset == "s4" else (name, split))
        yield split, name
    header = ("name", "start", "category", "split") if settings.subset == "s4" else ("name", "split")
    with written_whole(table) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_clip(
    path: Path,
    seed: int,
    *,
    split: Split = "example",
    seconds: int = 8,
    height: int = 240,
    width: int = 320,
    frame_rate: int = 20,
) -> SceneDescription:
    """One mp4 of a scene with two objects that sound in turn: the first in the first half, the other in the second.

    Raises UsageError for a name that is taken or does not end in .mp4, OutputError if ffmpeg fails.
    """
    if path.suffix.lower() != ".mp4":
        raise UsageError(f"{printable(path)}: the clip is an MP4 file; give a name that ends in .mp4")
    if path.exists():
        raise UsageError(f"{printable(path)} exists already. Remove it or choose another name")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    description, events = two_in_turn(seed, split=split, seconds=seconds, aspect=width / height)
    _encode(path, description, mix(description, events), height, width, frame_rate)
    return description


def two_in_turn(
    seed: int, *, split: Split, seconds: int, aspect: float | None = None, swapped: bool = False
) -> tuple[SceneDescription, tuple[SoundEvent, ...]]:
    """A scene of two lasting objects and their events in turn; `swapped` lets the other one begin."""
    settings = SceneSettings(objects=(2, 2), entrances=0.0, clutter=(2, 5), radius=(0.36, 0.5))
    description = draw_scene(seed, split=split, seconds=seconds, settings=settings, aspect=aspect)
    half = seconds // 2 * SAMPLE_RATE
    first, second = (1, 0) if swapped else (0, 1)
    voices = [replace(thing.timbre, gain=1.0) for thing in description.objects]
    return description, (
        SoundEvent(first, voices[first], 0, half),
        SoundEvent(second, voices[second], half, seconds * SAMPLE_RATE),
    )


def _write_all(
    data: Path, settings: SynthSettings, seeds: list[tuple[Split, int]], jobs: int
) -> Iterator[tuple[Split, int, str, str]]:
    if jobs <= 1:
        for split, seed in seeds:
            yield _write_one(data, settings, split, seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_write_one, data, settings, split, seed) for split, seed in seeds]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the clips not begun are not rendered


def _write_one(data: Path, settings: SynthSettings, split: Split, seed: int) -> tuple[Split, int, str, str]:
    clip = _draw_clip(settings, split, seed)
    times = [int((t + FRAME_OFFSET_S) * settings.frame_rate) / settings.frame_rate for t in range(settings.seconds)]
    frames, owner = render_pictures(clip.description, settings.size, settings.size, times)
    masks = sounding_masks(owner, sounding_seconds(clip.description, clip.events))
    single = settings.subset == "s4"
    place = Path(split) / clip.category if single else Path()
    annotated = 1 if single and split == "train" else settings.seconds
    frame_name = f"{clip.name}_" if single else f"{clip.name}.mp4_"
    mask_place = place if single else Path(split)
    for t in range(settings.seconds):
        _save(data / "visual_frames" / place / clip.name / f"{frame_name}{t + 1}.png", Image.fromarray(frames[t]))
    for t in range(annotated):
        _save(data / "gt_masks" / mask_place / clip.name / f"{clip.name}_{t + 1}.png", _mask_image(masks[t], single))
    write_wav(data / "audio_wav" / mask_place / f"{clip.name}.wav", clip.waveform)
    video = data / "raw_videos" / place / f"{clip.name}.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    width = 2 * round(settings.height * clip.description.aspect / 2)
    _encode(video, clip.description, clip.waveform, settings.height, width, settings.frame_rate)
    return split, seed, clip.name, clip.category


def _draw_clip(settings: SynthSettings, split: Split, seed: int) -> _Clip:
    scenes = SINGLE_SOURCE if settings.subset == "s4" else SceneSettings()
    description = draw_scene(seed, split=split, seconds=settings.seconds, settings=scenes)
    events = draw_events(description, scenes)
    category = CLASSES[description.objects[events[0].object_index].class_index].name if settings.subset == "s4" else ""
    name = f"{split}_{seed:08d}"
    return _Clip(split, seed, name, description, events, mix(description, events), category)


def _mask_image(mask: NDArray[np.bool_], single: bool) -> Image.Image:
    """S4 stores one bit a pixel, MS3 a palette whose entries 0 and 255 are in use."""
    if single:
        return Image.fromarray(mask.astype(np.uint8) * 255).convert("1")
    palette = Image.frombytes("P", mask.shape[::-1], (mask.astype(np.uint8) * 255).tobytes())
    palette.putpalette([level for level in range(256) for _ in range(3)])
    return palette


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_wav(path: Path, waveform: NDArray[np.float32]) -> None:
    """16 kHz mono 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())


def _encode(
    path: Path,
    description: SceneDescription,
    waveform: NDArray[np.float32],
    height: int,
    width: int,
    frame_rate: int,
) -> None:
    """All frames of the scene and its sound as H.264 and AAC; nothing is left behind at `path` on failure."""
    sound = path.with_name(path.name + ".wav")
    partial = path.with_name(path.name + ".partial")
    write_wav(sound, waveform)
    painter = ScenePainter(description, height, width)
    pictures = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=frame_rate)
    output = ffmpeg.output(
        pictures,
        ffmpeg.input(file_url(sound)).audio,
        file_url(partial),
        format="mp4",
        vcodec="libx264",
        pix_fmt="yuv420p",
        preset="veryfast",
        crf=26,
        acodec="aac",
        audio_bitrate="96k",
        ar=48000,
        movflags="+faststart",
    )
    try:
        with FfmpegProcess(command(output), stdin=True) as process:
            try:
                for index in range(description.seconds * frame_rate):
                    process.write(painter.paint(index / frame_rate)[0].tobytes())
                process.close_stdin()
            except BrokenPipeError:
                pass  # ffmpeg has ended early; its exit code and messages say why
            if process.wait() != 0:
                lines, _ = process.messages()
                raise OutputError(f"{printable(path)}: ffmpeg failed ({lines[-1] if lines else 'no message'})")
        partial.replace(path)
    finally:
        sound.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
