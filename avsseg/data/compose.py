"""Composes clips from still pictures with masks and recordings: what is seen moves, what is heard decides the truth.

A clip's scene depends on (split, seed) alone and each of its sound variants on (split, seed, variant); a source of one
split occurs in no clip of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avsseg.data.compose_canvas import draw_scene
from avsseg.data.compose_pool import Case, ComposeSettings, SplitSources
from avsseg.data.compose_scene import ComposedScene
from avsseg.data.compose_sound import Track, Waveform, draw_slots, draw_turns, lay_track, mix_tracks
from avsseg.data.compose_sources import Sources
from avsseg.data.compose_splits import SPLIT_NAMES


@dataclass(frozen=True)
class ComposedClip:
    """A scene and one sound to it.

    `objects` are the classes that the clip is about, `tracks` what is heard, off-screen classes included; `waveform`
    (n,) is their mix at 16 kHz.
    """

    scene: ComposedScene
    case: Case
    objects: tuple[int, ...]
    tracks: tuple[Track, ...]
    waveform: Waveform
    seconds: int

    def sounding(self) -> dict[int, NDArray[np.bool_]]:
        """class index -> (T,) in which seconds it is heard."""
        heard: dict[int, NDArray[np.bool_]] = {}
        for track in self.tracks:
            heard[track.class_index] = heard.get(track.class_index, np.zeros(self.seconds, bool)) | track.sounding
        return heard

    def masks(self, class_maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """class maps of seconds 0..T-1, (H, W) each -> the pixels of what sounds in that second (T, H, W).

        Unknown pixels (255) count as silent.
        """
        heard = self.sounding()
        masks = np.zeros((len(class_maps), *class_maps[0].shape), bool)
        for t, classes in enumerate(class_maps):
            audible = [k for k, sounding in heard.items() if sounding[t]]
            masks[t] = np.isin(classes, audible)
        return masks


def draw_sound(
    sources: SplitSources,
    seed: int,
    variant: int,
    case: Case,
    objects: Sequence[int],
    seen: set[int],
) -> tuple[tuple[Track, ...], Waveform]:
    """The tracks and the mixed waveform of one variant; `seen` are all classes that the scene shows."""
    rng = np.random.default_rng([SPLIT_NAMES.index(sources.split), seed, 1 + variant])
    seconds = sources.settings.seconds
    voiced = [k for k in objects if k in sources.recordings]
    slots: list[tuple[int, NDArray[np.bool_]]] = []
    if case == "none" or not voiced:
        slots += _off_screen(sources, rng, seen, np.ones(seconds, bool) if rng.uniform() < 0.6 else None)
    elif case == "one" or len(voiced) == 1:
        on = draw_slots(rng, seconds)
        slots.append((voiced[variant % len(voiced)], on))
        if rng.uniform() < 0.3:
            slots += _off_screen(sources, rng, seen, ~on)
    elif case == "two":
        chosen = (int(rng.integers(2)) if variant == 0 else variant) % 2
        if rng.uniform() < 0.5:
            slots.append((voiced[chosen], draw_slots(rng, seconds)))
        else:
            slots += zip(voiced, draw_turns(rng, seconds), strict=False)
    else:
        slots += [(k, draw_slots(rng, seconds)) for k in voiced]
    tracks = tuple(lay_track(rng, k, sources.recordings[k], on) for k, on in slots if on.any())
    return tracks, mix_tracks(rng, tracks, seconds)


def _off_screen(
    sources: SplitSources, rng: np.random.Generator, seen: set[int], where: NDArray[np.bool_] | None
) -> list[tuple[int, NDArray[np.bool_]]]:
    unseen = sources.draw_unseen(rng, seen)
    return [] if where is None or unseen is None else [(unseen, where)]


def compose_clip(sources: SplitSources, seed: int) -> ComposedClip:
    """The clip of that seed."""
    case, objects, scene = draw_scene(sources, seed)
    return with_sound(sources, seed, 0, case, objects, scene)


def with_sound(
    sources: SplitSources, seed: int, variant: int, case: Case, objects: tuple[int, ...], scene: ComposedScene
) -> ComposedClip:
    """The scene with one of its sounds: other variants change who sounds, and when, but nothing that is seen."""
    seen = scene.classes_present() | set(objects)
    tracks, waveform = draw_sound(sources, seed, variant, case, objects, seen)
    return ComposedClip(scene, case, objects, tracks, waveform, sources.settings.seconds)


def class_counts(sources: Sources, settings: ComposeSettings) -> Mapping[str, dict[str, tuple[int, int]]]:
    """class -> split -> (pictures that show it large enough to be used, recordings of it)."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for index, name in enumerate(sources.classes[1:], 1):
        counts[name] = {
            split: (
                sum(
                    p.split == split and any(k == index and area >= settings.smallest for k, area in p.areas)
                    for p in sources.pictures
                ),
                sum(s.split == split and s.class_index == index for s in sources.sounds),
            )
            for split in SPLIT_NAMES
        }
    return counts
