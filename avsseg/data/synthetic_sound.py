"""Timbres of the rendered objects: one family a class, pitch and tempo drawn at random.

Every family repeats or sustains so that any second of it can be recognised; an event starts its own phase, hence a
strike falls on the event's first sample. Amplitudes are about 0.3 RMS at gain 1 before the mix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avsseg.data.synthetic_draws import Range, Split

SAMPLE_RATE = 16000
RAMP_SAMPLES = 64

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Timbre:
    """The voice of one object: `family` indexes FAMILIES, the noise is fixed by `seed`."""

    family: int
    pitch_hz: float
    tempo_hz: float
    colour: float
    gain: float
    seed: int


@dataclass(frozen=True)
class Family:
    """A way to sound and the ranges of its pitch and tempo."""

    name: str
    voice: Callable[[Timbre, Wave, np.random.Generator], Wave]
    pitch: Range
    tempo: Range


def _strike_age(time: Wave, tempo_hz: float) -> Wave:
    return time % np.float32(1 / tempo_hz)


def _band_noise(rng: np.random.Generator, samples: int, low_hz: float, high_hz: float) -> Wave:
    # One second of noise, tiled with a random offset: a long transform would cost more than all the rest of a clip.
    length = min(samples, SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(length).astype(np.float32))
    frequency = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    octaves = np.log(np.maximum(frequency, 1) / np.sqrt(low_hz * high_hz)) / np.log(high_hz / low_hz)
    spectrum *= np.exp(-4 * octaves**2)
    noise = np.fft.irfft(spectrum, length).astype(np.float32)
    noise /= np.float32(np.sqrt(np.mean(noise * noise)) + 1e-9)
    return np.resize(noise, samples)


def _bell(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    age = _strike_age(time, t.tempo_hz)
    wave = np.zeros_like(time)
    for ratio, level in ((1.0, 1.0), (2.76, 0.6), (5.4, 0.35 + 0.3 * t.colour)):
        wave += np.float32(level) * np.sin(np.float32(2 * np.pi * t.pitch_hz * ratio) * age)
    return wave * np.exp(-age * np.float32(6 + 5 * t.colour)) * 0.6


def _rattle(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    noise = _band_noise(rng, len(time), t.pitch_hz, t.pitch_hz * 2.5)
    return noise * (_strike_age(time, t.tempo_hz) < (0.35 + 0.15 * t.colour) / t.tempo_hz) * 0.4


def _chirp(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    length = (0.55 + 0.2 * t.colour) / t.tempo_hz
    age = _strike_age(time, t.tempo_hz)
    rate = np.log(3.2) / length
    phase = 2 * np.pi * t.pitch_hz / rate * (np.exp(np.float32(rate) * np.minimum(age, np.float32(length))) - 1)
    envelope = np.sin(np.float32(np.pi / length) * age) * (age < length)
    return np.sin(phase.astype(np.float32)) * envelope * 0.8


def _knock(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    age = _strike_age(time, t.tempo_hz)
    click = rng.standard_normal(len(time)).astype(np.float32) * np.exp(-age * 500)
    body = np.sin(np.float32(2 * np.pi * t.pitch_hz) * age) * np.exp(-age * np.float32(40 + 30 * t.colour))
    return 1.4 * body + 0.5 * click


def _organ(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    vibrato = np.float32(0.25) * np.sin(np.float32(2 * np.pi * t.tempo_hz) * time)
    phase = np.float32(2 * np.pi * t.pitch_hz) * time + vibrato
    wave = np.zeros_like(time)
    for harmonic in range(1, 7):
        wave += np.float32(harmonic ** -(0.4 + 0.6 * t.colour)) * np.sin(phase * np.float32(harmonic))
    return wave * 0.3


def _siren(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    depth = 0.35 + 0.15 * t.colour
    sweep = np.float32(t.pitch_hz * depth / t.tempo_hz) * np.cos(np.float32(2 * np.pi * t.tempo_hz) * time)
    phase = np.float32(2 * np.pi * t.pitch_hz) * time - sweep
    return np.tanh(2 * np.sin(phase)) * 0.4


def _growl(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    phase = np.float32(2 * np.pi * t.pitch_hz) * time
    pulse = np.exp(np.float32(40 + 60 * t.colour) * (np.cos(phase) - 1)) - np.float32(0.1)
    return pulse * (0.55 - 0.45 * np.cos(np.float32(2 * np.pi * t.tempo_hz) * time)) * 1.2


def _hiss(t: Timbre, time: Wave, rng: np.random.Generator) -> Wave:
    noise = _band_noise(rng, len(time), t.pitch_hz, t.pitch_hz * (1.5 + t.colour))
    return noise * (0.8 + 0.2 * np.sin(np.float32(2 * np.pi * t.tempo_hz) * time)) * 0.3


FAMILIES: tuple[Family, ...] = (
    Family("bell", _bell, Range(350, 1000, True), Range(1.6, 3.5, True)),
    Family("rattle", _rattle, Range(700, 2000, True), Range(6, 13, True)),
    Family("chirp", _chirp, Range(500, 1300, True), Range(2.2, 5, True)),
    Family("knock", _knock, Range(150, 400, True), Range(2.5, 6, True)),
    Family("organ", _organ, Range(180, 600, True), Range(4, 7, True)),
    Family("siren", _siren, Range(700, 1600, True), Range(1.2, 2.5, True)),
    Family("growl", _growl, Range(55, 110, True), Range(2.5, 6, True)),
    Family("hiss", _hiss, Range(1200, 3500, True), Range(0.6, 2, True)),
)


def draw_timbre(rng: np.random.Generator, split: Split, family: int) -> Timbre:
    """A voice of one family, with the pitch and the tempo of the split's cells."""
    return Timbre(
        family,
        FAMILIES[family].pitch.draw(rng, split),
        FAMILIES[family].tempo.draw(rng, split),
        float(rng.uniform()),
        float(rng.uniform(0.35, 1.0)),
        int(rng.integers(2**31)),
    )


def synthesise(timbre: Timbre, samples: int) -> Wave:
    """(samples,) float32: the voice from its onset, with 4 ms ramps inside the event at both ends."""
    if samples <= 0:
        return np.zeros(0, np.float32)
    time = np.arange(samples, dtype=np.float32) / np.float32(SAMPLE_RATE)
    wave = FAMILIES[timbre.family].voice(timbre, time, np.random.default_rng(timbre.seed)) * np.float32(timbre.gain)
    ramp = min(RAMP_SAMPLES, samples // 2)
    fade = np.linspace(0, 1, ramp, endpoint=False, dtype=np.float32)
    wave[:ramp] *= fade
    wave[samples - ramp :] *= fade[::-1]
    return wave.astype(np.float32, copy=False)
