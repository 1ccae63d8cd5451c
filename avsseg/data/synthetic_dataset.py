"""Writes rendered scenes to disk: as one video clip with sound, or as a folder in AVSBench's S4 or MS3 layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsseg.data.avsbench_layout import SECONDS
from avsseg.data.layout_writer import (
    Subset,
    clip_seeds,
    dataset_paths,
    encode_video,
    frame_times,
    make_folder,
    write_clip_files,
    write_clips,
    write_listing,
    write_table,
)
from avsseg.data.synthetic import (
    SoundEvent,
    draw_events,
    mix,
    off_screen_seconds,
    render_pictures,
    sounding_masks,
    sounding_seconds,
)
from avsseg.data.synthetic_draws import Split
from avsseg.data.synthetic_scene import SceneDescription, ScenePainter, SceneSettings, draw_scene
from avsseg.data.synthetic_shapes import CLASSES
from avsseg.data.synthetic_sound import SAMPLE_RATE
from avsseg.errors import UsageError, printable
from avsseg.writers.base import output_errors

SCENES = SceneSettings(look_alikes=0.35)
SINGLE_SOURCE = replace(SCENES, objects=(2, 4), entrances=0.0, sound_modes={"single": 1.0})


@dataclass(frozen=True)
class SynthSettings:
    """A dataset to write: how many clips a split, their length, rate and sizes in pixels.

    `size` is the side of the stored frames and masks, `height` that of the video.
    """

    subset: Subset = "ms3"
    train: int = 400
    val: int = 40
    test: int = 200  # with 40 M_J is uncertain by 0.09 either way
    seed: int = 0
    seconds: int = 5
    frame_rate: int = 20
    size: int = 224
    height: int = 240

    def __post_init__(self) -> None:
        if self.seconds != SECONDS:
            raise UsageError(f"clips of {self.seconds} s: AVSBench's layout has clips of {SECONDS} s")


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
    counts: dict[Split, int] = {"train": settings.train, "val": settings.val, "test": settings.test}
    table, data = dataset_paths(folder, settings.subset, counts.values())
    make_folder(folder)
    rows: list[tuple[str, ...]] = [
        ("name", "start", "category", "split") if settings.subset == "s4" else ("name", "split")
    ]
    listing: list[dict[str, Any]] = []
    for entry in write_clips(_write_one, (data, settings), clip_seeds(counts, settings.seed), jobs):
        split, name = entry["split"], entry["name"]
        listing.append(entry)
        rows.append((name, str(entry["seed"]), entry["category"], split) if settings.subset == "s4" else (name, split))
        yield split, name
    write_listing(table.parent, {"classes": [c.name for c in CLASSES], "settings": asdict(settings)}, listing)
    write_table(table, rows)


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


def _write_one(context: tuple[Path, SynthSettings], split: Split, seed: int) -> dict[str, Any]:
    data, settings = context
    clip = _draw_clip(settings, split, seed)
    times = frame_times(settings.seconds, settings.frame_rate)
    frames, owner = render_pictures(clip.description, settings.size, settings.size, times)
    sounding = sounding_seconds(clip.description, clip.events)
    masks = sounding_masks(owner, sounding)
    video = write_clip_files(data, settings.subset, split, clip.category, clip.name, frames, masks, clip.waveform)
    width = 2 * round(settings.height * clip.description.aspect / 2)
    _encode(video, clip.description, clip.waveform, settings.height, width, settings.frame_rate)
    # two objects of one class are two things
    names = [f"{CLASSES[thing.class_index].name} {k}" for k, thing in enumerate(clip.description.objects)]
    voices = np.concatenate([sounding, off_screen_seconds(clip.events, settings.seconds)])
    voice_names = [*names, *(f"{family.name} off-screen" for family in CLASSES)]
    return {
        "name": clip.name,
        "split": split,
        "seed": seed,
        "category": clip.category,
        "visible": [[name for k, name in enumerate(names) if (picture == k).any()] for picture in owner],
        "sounding": [[voice_names[k] for k in np.flatnonzero(second)] for second in voices.T],
    }


def _draw_clip(settings: SynthSettings, split: Split, seed: int) -> _Clip:
    scenes = SINGLE_SOURCE if settings.subset == "s4" else SCENES
    description = draw_scene(seed, split=split, seconds=settings.seconds, settings=scenes)
    events = draw_events(description, scenes)
    if settings.subset == "s4" and split == "train":
        # their first second alone is annotated: silent, it would teach nothing
        silent = events[0].start // SAMPLE_RATE * SAMPLE_RATE
        events = tuple(replace(event, start=event.start - silent, stop=event.stop - silent) for event in events)
    category = CLASSES[description.objects[events[0].object_index].class_index].name if settings.subset == "s4" else ""
    name = f"{split}_{seed:08d}"
    return _Clip(split, seed, name, description, events, mix(description, events), category)


def _encode(
    path: Path,
    description: SceneDescription,
    waveform: NDArray[np.float32],
    height: int,
    width: int,
    frame_rate: int,
) -> None:
    painter = ScenePainter(description, height, width)
    frames = (painter.paint(index / frame_rate)[0] for index in range(description.seconds * frame_rate))
    encode_video(path, frames, waveform, (width, height), frame_rate)
