"""Writes composed clips as a dataset in AVSBench's MS3 layout, and beside it what each clip is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsseg.data.avsbench import SECONDS, SplitName
from avsseg.data.compose import ComposedClip, compose_clip
from avsseg.data.compose_pool import ComposeSettings, SplitSources
from avsseg.data.compose_scene import ComposedScene
from avsseg.data.compose_sources import VOID, Sources, check_splits
from avsseg.data.layout_writer import (
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
from avsseg.errors import UsageError

# a panorama would make a video of some thousand pixels a row
_ASPECTS = (1 / 3, 3.0)


@dataclass(frozen=True)
class ComposedDatasetSettings:
    """A dataset to write: how many clips a split (0: none), what they show, rate a second and sizes in pixels.

    `size` is the side of the stored frames and masks, `height` that of the video.
    """

    train: int = 400
    val: int = 40
    test: int = 40
    seed: int = 0
    clips: ComposeSettings = field(default_factory=ComposeSettings)
    frame_rate: int = 20
    size: int = 224
    height: int = 240

    def __post_init__(self) -> None:
        if self.clips.seconds != SECONDS:
            raise UsageError(f"clips of {self.clips.seconds} s: AVSBench's layout has clips of {SECONDS} s")

    def counts(self) -> dict[SplitName, int]:
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class _Context:
    data: Path
    settings: ComposedDatasetSettings
    sources: dict[SplitName, SplitSources]


def write_composed_dataset(
    folder: Path, sources: Sources, settings: ComposedDatasetSettings, *, jobs: int = 1
) -> Iterator[tuple[SplitName, str]]:
    """Composes the dataset under `folder` and yields (split, clip name) as each clip is done.

    The clips are the same for the same sources and settings, whatever `jobs`; each process holds a copy of the
    recordings. `clips.json` beside the metadata table lists what every clip is made of; the table is written last, so a
    folder without it is unfinished, and is written anew.

    Raises UsageError for a folder that already holds a dataset of this layout, or for a split in which no class is both
    seen and heard; DataError for a file that stands in two splits; OutputError if writing fails.
    """
    counts = settings.counts()
    table, data = dataset_paths(folder, "ms3", counts.values())
    context = _Context(data, settings, split_sources(sources, settings))
    check_splits(sources)
    make_folder(folder)
    listing: list[dict[str, Any]] = []
    for entry in write_clips(_write_one, context, clip_seeds(counts, settings.seed), jobs):
        listing.append(entry)
        yield entry["split"], entry["name"]
    write_listing(table.parent, {"classes": list(sources.classes), "settings": asdict(settings)}, listing)
    write_table(table, [("name", "split"), *((entry["name"], entry["split"]) for entry in listing)])


def split_sources(sources: Sources, settings: ComposedDatasetSettings) -> dict[SplitName, SplitSources]:
    """The sources of each split that has clips. Raises UsageError if in one of them no class is both seen and heard."""
    return {split: SplitSources(sources, split, settings.clips) for split, count in settings.counts().items() if count}


def _write_one(context: _Context, split: SplitName, seed: int) -> dict[str, Any]:
    settings, sources = context.settings, context.sources[split]
    clip = compose_clip(sources, seed)
    name = f"{split}_{seed:08d}"
    painted = [
        clip.scene.paint(t, settings.size, settings.size)
        for t in frame_times(settings.clips.seconds, settings.frame_rate)
    ]
    frames, maps = np.stack([frame for frame, _ in painted]), [classes for _, classes in painted]
    video = write_clip_files(context.data, "ms3", split, "", name, frames, clip.masks(maps), clip.waveform)
    _encode(video, clip, settings)
    return {"name": name, "split": split, "seed": seed, **_describe(clip, maps, sources)}


def _encode(path: Path, clip: ComposedClip, settings: ComposedDatasetSettings) -> None:
    height, width = 2 * round(settings.height / 2), 2 * round(settings.height * _aspect(clip.scene) / 2)
    rate = settings.frame_rate
    frames = (clip.scene.paint(index / rate, height, width)[0] for index in range(settings.clips.seconds * rate))
    encode_video(path, frames, clip.waveform, (width, height), rate)


def _aspect(scene: ComposedScene) -> float:
    return min(max(scene.view[0] / scene.view[1], _ASPECTS[0]), _ASPECTS[1])


def _describe(clip: ComposedClip, maps: list[NDArray[np.uint8]], sources: SplitSources) -> dict[str, Any]:
    visible = [[int(k) for k in np.unique(classes) if k not in (0, VOID)] for classes in maps]
    heard = clip.sounding()
    return {
        "case": clip.case,
        "objects": [sources.classes[k] for k in clip.objects],
        "visible": [[sources.classes[k] for k in present] for present in visible],
        "sounding": [
            [sources.classes[k] for k in sorted(heard) if heard[k][t]] for t in range(clip.seconds)
        ],
        "pictures": list(clip.scene.pictures),
        "recordings": [sources.recording_names[track.class_index][track.recording] for track in clip.tracks],
        "weight": clip.scene.weight,
    }  # fmt: skip
