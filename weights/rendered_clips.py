"""Endless training data for the recipe beside it: rendered scenes, drawn by seed while training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avsseg.data.synthetic import (
    SAMPLE_RATE,
    SOUNDING_SAMPLES,
    SceneSettings,
    SoundEvent,
    class_map,
    draw_events,
    mix,
    render_pictures,
    sounding_masks,
    sounding_seconds,
)
from avsseg.data.synthetic_draws import Split, generator
from avsseg.data.synthetic_scene import SceneDescription, draw_scene
from avsseg.data.synthetic_sound import FAMILIES
from avsseg.media.audio import log_mel_examples

FULL = SceneSettings()
EASY = replace(
    FULL, objects=(2, 3), entrances=0.0, sound_modes={"single": 0.4, "turns": 0.45, "silent": 0.08, "off-screen": 0.07}
)


@dataclass(frozen=True)
class ClipSettings:
    """What one training clip looks like; `variants` are different sounds to the same pictures."""

    size: int = 128
    seconds: int = 5
    variants: int = 2
    easy_fraction: float = 0.5


def clip(seed: int, split: Split, settings: ClipSettings) -> dict[str, Tensor]:
    """frames (T, H, W, 3) uint8, labels (T, H, W) uint8 of all visible objects and, a variant each, log_mel
    (V, T, 1, 96, 64), masks (V, T, H, W) bool and heard (V, T, 8), the families that sound."""
    scene = EASY if generator(split, seed, 1_000_000).uniform() < settings.easy_fraction else FULL
    description = draw_scene(seed, split=split, seconds=settings.seconds, settings=scene)
    seconds = [float(t) for t in range(settings.seconds)]
    frames, owner = render_pictures(description, settings.size, settings.size, [t + 0.5 for t in seconds])
    log_mels, masks, families = [], [], []
    for variant in range(settings.variants):
        events = draw_events(description, scene, variant=variant)
        waveform = mix(description, events, variant)
        log_mels.append(log_mel_examples(torch.from_numpy(waveform), seconds))
        masks.append(sounding_masks(owner, sounding_seconds(description, events)))
        families.append(heard_families(events, settings.seconds))
    return {
        "frames": torch.from_numpy(frames),
        "weight": torch.ones(()),
        "labels": torch.from_numpy(class_map(description, owner)),
        "log_mel": torch.stack(log_mels),
        "masks": torch.from_numpy(np.stack(masks)),
        "heard": torch.from_numpy(np.stack(families)),
    }


def picture(seed: int, split: Split, size: int) -> dict[str, Tensor]:
    """One frame (H, W, 3) uint8 of a scene at any time and its class map (H, W) uint8."""
    description: SceneDescription = draw_scene(seed, split=split)
    time_s = float(generator(split, seed, 1_000_001).uniform(0, description.seconds))
    frames, owner = render_pictures(description, size, size, [time_s])
    return {"frames": torch.from_numpy(frames[0]), "labels": torch.from_numpy(class_map(description, owner)[0])}


def sound(seed: int, split: Split) -> dict[str, Tensor]:
    """log_mel (T, 1, 96, 64) of a scene and heard (T, 8), the families that sound in it; no picture."""
    description = draw_scene(seed, split=split)
    events = draw_events(description)
    waveform = torch.from_numpy(mix(description, events))
    return {
        "log_mel": log_mel_examples(waveform, [float(t) for t in range(description.seconds)]),
        "heard": torch.from_numpy(heard_families(events, description.seconds)),
    }


def heard_families(events: tuple[SoundEvent, ...], seconds: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(T, 8) of 0 and 1: the timbre families heard in each second, visible or not."""
    heard = np.zeros((seconds, len(FAMILIES)), np.float32)
    for event in events:
        for t in range(seconds):
            if min(event.stop, (t + 1) * SAMPLE_RATE) - max(event.start, t * SAMPLE_RATE) >= SOUNDING_SAMPLES:
                heard[t, event.timbre.family] = 1
    return heard


class RenderedStream(IterableDataset[dict[str, Tensor]]):
    """render(seed) for seed, seed + 1, ... shared out among the workers."""

    def __init__(self, render: Callable[[int], dict[str, Tensor]], first_seed: int) -> None:
        self.render = render
        self.first_seed = first_seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        seed = self.first_seed + offset
        while True:
            yield self.render(seed)
            seed += stride


def batches(
    render: Callable[[int], dict[str, Tensor]],
    first_seed: int,
    batch_size: int,
    workers: int,
    collate: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]] | None = None,
) -> DataLoader[dict[str, Tensor]]:
    """Endless batches from `first_seed` on."""
    return DataLoader(
        RenderedStream(render, first_seed),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )
