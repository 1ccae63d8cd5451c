"""Rendered scenes with a known truth: moving objects, each with a voice, of which some sound at a time.

The truth of second t is the union of the visible pixels of the objects that sound in [t, t + 1). Nothing in a single
picture or a single second of sound tells which object is meant; only both together do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avsseg.data.synthetic_draws import Split, generator, pick
from avsseg.data.synthetic_scene import NOBODY, SceneDescription, ScenePainter, SceneSettings, draw_scene
from avsseg.data.synthetic_shapes import CLASSES
from avsseg.data.synthetic_sound import SAMPLE_RATE, Timbre, draw_timbre, synthesise

# An object sounds in a second if its events cover at least this much of it.
SOUNDING_SAMPLES = SAMPLE_RATE // 4
EDGE_S = 0.2
VOICE_RMS = 0.12


@dataclass(frozen=True)
class SoundEvent:
    """One voice from sample `start` to sample `stop` (16 kHz); `object_index` is NOBODY for an off-screen source."""

    object_index: int
    timbre: Timbre
    start: int
    stop: int


@dataclass(frozen=True)
class Scene:
    """A rendered clip.

    frames (T, H, W, 3) uint8; owner (T, H, W) int8, the object index of every pixel or NOBODY;
    sounding (O, T) bool; masks (T, H, W) bool, the truth; labels (T, H, W) uint8, 1 + class index of the sounding
    object or 0; waveform (T * 16000,) float32.
    """

    description: SceneDescription
    frames: NDArray[np.uint8]
    owner: NDArray[np.int8]
    events: tuple[SoundEvent, ...]
    sounding: NDArray[np.bool_]
    waveform: NDArray[np.float32]

    @property
    def masks(self) -> NDArray[np.bool_]:
        return sounding_masks(self.owner, self.sounding)

    @property
    def labels(self) -> NDArray[np.uint8]:
        return np.where(self.masks, class_map(self.description, self.owner), 0).astype(np.uint8)


def render_scene(
    seed: int,
    *,
    split: Split,
    size: int = 224,
    seconds: int = 5,
    settings: SceneSettings | None = None,
    variant: int = 0,
    frame_offset_s: float = 0.5,
) -> Scene:
    """One square clip with a frame a second, taken at t + `frame_offset_s`.

    `variant` changes who sounds when and leaves the pictures as they are.
    """
    settings = settings or SceneSettings()
    description = draw_scene(seed, split=split, seconds=seconds, settings=settings)
    frames, owner = render_pictures(description, size, size, [t + frame_offset_s for t in range(seconds)])
    events = draw_events(description, settings, variant=variant)
    return Scene(
        description, frames, owner, events, sounding_seconds(description, events), mix(description, events, variant)
    )


def render_pictures(
    description: SceneDescription, height: int, width: int, times_s: Sequence[float]
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Frames (T, H, W, 3) and owners (T, H, W) at the given times."""
    painter = ScenePainter(description, height, width)
    painted = [painter.paint(time) for time in times_s]
    return np.stack([image for image, _ in painted]), np.stack([owner for _, owner in painted])


def class_map(description: SceneDescription, owner: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Owner indices -> 1 + class index, 0 where nobody is, whether sounding or not."""
    lookup = np.array([*(thing.class_index + 1 for thing in description.objects), 0], np.uint8)
    return lookup[owner]


def sounding_masks(owner: NDArray[np.int8], sounding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """owner (T, H, W) and sounding (O, T) -> masks (T, H, W)."""
    silent = np.zeros((1, sounding.shape[1]), bool)
    lookup = np.concatenate([sounding, silent])  # NOBODY = -1 reads the last row
    return np.stack([lookup[owner[t].astype(np.intp), t] for t in range(len(owner))])


def sounding_seconds(description: SceneDescription, events: Sequence[SoundEvent]) -> NDArray[np.bool_]:
    """(O, T): whether object o sounds in second t."""
    covered = np.zeros((len(description.objects), description.seconds), np.int64)
    for event in events:
        if event.object_index != NOBODY:
            covered[event.object_index] += _covered(event, description.seconds)
    return covered >= SOUNDING_SAMPLES


def off_screen_seconds(events: Sequence[SoundEvent], seconds: int) -> NDArray[np.bool_]:
    """(K, T): whether a voice of class k that belongs to nothing visible sounds in second t."""
    covered = np.zeros((len(CLASSES), seconds), np.int64)
    for event in events:
        if event.object_index == NOBODY:
            covered[event.timbre.family] += _covered(event, seconds)
    return covered >= SOUNDING_SAMPLES


def _covered(event: SoundEvent, seconds: int) -> NDArray[np.int64]:
    """(T,): how many samples of each second the event covers."""
    begin = np.arange(seconds) * SAMPLE_RATE
    covered = np.minimum(event.stop, begin + SAMPLE_RATE) - np.maximum(event.start, begin)
    return covered.clip(min=0)


def draw_events(
    description: SceneDescription, settings: SceneSettings | None = None, *, variant: int = 0
) -> tuple[SoundEvent, ...]:
    """Who sounds when, by one of the settings' sound modes; an off-screen voice is of a class that nobody is of."""
    settings = settings or SceneSettings()
    rng = generator(description.split, description.seed, 2 + 2 * variant)
    names = list(settings.sound_modes)
    weights = np.array([settings.sound_modes[name] for name in names])
    mode = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    voices = [thing.timbre for thing in description.objects if not thing.silent]
    visible = len(voices)
    active = _activity(rng, mode, len(voices), description.seconds)
    if mode == "off-screen" or (mode in ("turns", "independent") and rng.uniform() < 0.2):
        present = {thing.class_index for thing in description.objects}
        absent = pick(rng, [c for c in range(len(CLASSES)) if c not in present])
        voices.append(draw_timbre(rng, description.split, absent))
        active = np.concatenate([active, _interval(rng, description.seconds)[None]])
    events: list[SoundEvent] = []
    for index, (voice, row) in enumerate(zip(voices, active, strict=True)):
        owner = index if index < visible else NOBODY
        events += [SoundEvent(owner, voice, *_edges(rng, *run)) for run in _runs(row)]
    return tuple(events)


def _activity(rng: np.random.Generator, mode: str, count: int, seconds: int) -> NDArray[np.bool_]:
    active = np.zeros((count, seconds), bool)
    order = rng.permutation(count)
    if mode == "single":
        active[order[0]] = _interval(rng, seconds)
    elif mode == "turns":
        change = int(rng.integers(1, max(2, seconds)))
        active[order[0], :change] = True
        active[order[1 % count], change:] = True
    elif mode == "together":
        for index in order[: int(rng.integers(2, 4))]:
            active[index] = _interval(rng, seconds)
    elif mode == "independent":
        for index in order[:3]:
            active[index] = rng.uniform(size=seconds) < 0.45
    return active


def _interval(rng: np.random.Generator, seconds: int) -> NDArray[np.bool_]:
    """At least half of the clip, anywhere in it."""
    length = int(rng.integers(-(-seconds // 2), seconds + 1))
    start = int(rng.integers(0, seconds - length + 1))
    second = np.arange(seconds)
    return (second >= start) & (second < start + length)


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    changes = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(changes[::2], changes[1::2], strict=True)]


def _edges(rng: np.random.Generator, first: int, last: int) -> tuple[int, int]:
    late, early = rng.uniform(0, EDGE_S, 2)
    return int((first + late) * SAMPLE_RATE), int((last - early) * SAMPLE_RATE)


def mix(description: SceneDescription, events: Sequence[SoundEvent], variant: int = 0) -> NDArray[np.float32]:
    """(seconds * 16000,) float32: the events, each at its own level, plus a faint room noise in most scenes."""
    rng = generator(description.split, description.seed, 3 + 2 * variant)
    samples = description.seconds * SAMPLE_RATE
    waveform = np.zeros(samples, np.float32)
    for event in events:
        stop = min(event.stop, samples)
        voice = synthesise(event.timbre, stop - event.start)
        level = np.float32(VOICE_RMS * event.timbre.gain / (np.sqrt(np.mean(voice * voice)) + 1e-6))
        waveform[event.start : stop] += voice * level
    waveform *= np.float32(np.exp(rng.uniform(np.log(0.3), np.log(1.5))))
    if rng.uniform() < 0.7:
        waveform += rng.standard_normal(samples, np.float32) * np.float32(10 ** rng.uniform(-4.3, -2.6))
    return np.clip(waveform, -1, 1)
