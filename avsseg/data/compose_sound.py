"""The sound of composed clips: recordings placed into one-second slots so that every second's truth is exact.

A second counts as sounding when a fifth of it at least is audible; what is less than that is faded out, so no second
is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from avsseg.media.audio import SAMPLE_RATE_HZ

Waveform = NDArray[np.float32]

SILENT_SLOTS = 0.15
_BLOCK = SAMPLE_RATE_HZ // 100
_BLOCKS_A_SECOND = SAMPLE_RATE_HZ // _BLOCK
AUDIBLE_SHARE = 0.2
# below this, or 35 dB under the track's loudest 10 ms, a block is inaudible
_FLOOR = 10 ** (-55 / 20)
_RANGE = 10 ** (-35 / 20)
_LEVELS_DB = (-30.0, -14.0)
_RAMP = 160


@dataclass(frozen=True)
class Track:
    """One voice: its class, samples (n,), the seconds (T,) in which it is heard, and which of the recordings it is."""

    class_index: int
    samples: Waveform
    sounding: NDArray[np.bool_]
    recording: int = 0


def draw_slots(rng: np.random.Generator, seconds: int) -> NDArray[np.bool_]:
    """On and off by the second, off in 15 % of all slots; half the clips are on throughout."""
    if rng.uniform() < 0.5:
        return np.ones(seconds, bool)
    on = np.empty(seconds, bool)
    off_share = 2 * SILENT_SLOTS
    state = rng.uniform() >= off_share
    for t in range(seconds):
        # stays as it is half the time, else is drawn anew: runs with the same share of silence
        if t and rng.uniform() < 0.5:
            state = rng.uniform() >= off_share
        on[t] = state
    return on


def draw_turns(rng: np.random.Generator, seconds: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two voices of which never both are on: each slot is the first's, the second's or silent."""
    owner = np.empty(seconds, int)
    current = int(rng.integers(2))
    for t in range(seconds):
        if t and rng.uniform() < 0.45:
            current = 1 - current
        owner[t] = current
    on = rng.uniform(size=seconds) >= SILENT_SLOTS
    return (owner == 0) & on, (owner == 1) & on


def lay_track(
    rng: np.random.Generator, class_index: int, recordings: Sequence[NDArray[np.int16]], slots: NDArray[np.bool_]
) -> Track:
    """One of the recordings, repeated as often as needed, in the slots that are on; onsets fall inside them."""
    seconds = len(slots)
    track = np.zeros(seconds * SAMPLE_RATE_HZ, np.float32)
    recording = int(rng.integers(len(recordings)))
    source = _trimmed(recordings[recording])
    for first, last in _runs(slots):
        late, early = rng.uniform(0, 0.35, 2) * (rng.uniform(size=2) < 0.6)
        start = int((first + late) * SAMPLE_RATE_HZ)
        stop = int((last - early) * SAMPLE_RATE_HZ)
        _fill(track, start, stop, source, rng)
    level = np.float32(10 ** (rng.uniform(*_LEVELS_DB) / 20))
    loud = _block_levels(track)
    audible = loud > loud.max(initial=0) * _RANGE
    if audible.any():
        track *= level / np.float32(np.sqrt(np.mean(loud[audible] ** 2)))
    peak = float(np.abs(track).max(initial=0))
    if peak > 0.95:
        track *= np.float32(0.95 / peak)
    return replace(gate(class_index, track), recording=recording)


def gate(class_index: int, samples: Waveform) -> Track:
    """The track with its inaudible seconds silenced, so that what is heard and what is true are the same."""
    levels = _block_levels(samples)
    audible = levels > max(_FLOOR, float(levels.max(initial=0)) * _RANGE)
    sounding = audible.reshape(-1, _BLOCKS_A_SECOND).mean(1) >= AUDIBLE_SHARE
    wanted = np.repeat(sounding, SAMPLE_RATE_HZ).astype(np.float32)
    if not sounding.all() and sounding.any():
        # ramps reach into the sounding side only
        edges = np.flatnonzero(np.diff(sounding.astype(int))) + 1
        ramp = np.linspace(0, 1, _RAMP, dtype=np.float32)
        for edge in edges:
            at = edge * SAMPLE_RATE_HZ
            if sounding[edge]:
                wanted[at : at + _RAMP] = ramp
            else:
                wanted[at - _RAMP : at] = ramp[::-1]
    return Track(class_index, samples * wanted, sounding)


def mix_tracks(rng: np.random.Generator, tracks: Sequence[Track], seconds: int) -> Waveform:
    """The sum of the tracks on a faint floor of noise (half the clips), within -1..1."""
    mixed = np.zeros(seconds * SAMPLE_RATE_HZ, np.float32)
    for track in tracks:
        mixed += track.samples
    if rng.uniform() < 0.5:
        level = np.float32(10 ** (rng.uniform(-70, -48) / 20))
        noise = rng.standard_normal(len(mixed)).astype(np.float32)
        if rng.uniform() < 0.5:
            noise = np.convolve(noise, np.full(8, 8**-0.5, np.float32), "same")
        mixed += noise * level
    peak = float(np.abs(mixed).max(initial=0))
    return mixed / np.float32(peak) if peak > 1 else mixed


def _block_levels(samples: Waveform) -> Waveform:
    return np.sqrt(np.mean(np.square(samples.reshape(-1, _BLOCK)), axis=1))


def _runs(slots: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], slots.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _trimmed(recording: NDArray[np.int16]) -> Waveform:
    """The recording from its first to its last audible block, as float."""
    samples = recording.astype(np.float32) / np.float32(32768)
    whole = len(samples) // _BLOCK * _BLOCK
    if whole == 0:
        return samples
    levels = _block_levels(samples[:whole])
    audible = np.flatnonzero(levels > float(levels.max()) * _RANGE)
    if len(audible) == 0:
        return samples
    return samples[audible[0] * _BLOCK : (audible[-1] + 1) * _BLOCK]


def _fill(track: Waveform, start: int, stop: int, source: Waveform, rng: np.random.Generator) -> None:
    """Repeats `source` between the samples, with pauses of up to 0.3 s; a long one begins anywhere in it."""
    at = start
    wanted = stop - start
    offset = int(rng.integers(len(source) - wanted + 1)) if len(source) > wanted else 0
    while at < stop and len(source):
        piece = source[offset : offset + stop - at].copy()
        ramp = min(_RAMP, len(piece) // 2)
        if ramp:
            piece[:ramp] *= np.linspace(0, 1, ramp, dtype=np.float32)
            piece[-ramp:] *= np.linspace(1, 0, ramp, dtype=np.float32)
        track[at : at + len(piece)] = piece
        at += len(piece) + int(rng.uniform(0, 0.3) * SAMPLE_RATE_HZ)
        offset = 0
