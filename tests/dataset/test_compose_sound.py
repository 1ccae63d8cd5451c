"""The sound of composed clips: every second's truth is what can be heard in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.data.compose_sound import AUDIBLE_SHARE, draw_slots, draw_turns, gate, lay_track, mix_tracks

RATE = 16_000


def tone(seconds: float, level: float = 0.3) -> NDArray[np.int16]:
    t = np.arange(int(seconds * RATE)) / RATE
    return (32767 * level * np.sin(2 * np.pi * 440 * t)).astype(np.int16)


def ticks() -> NDArray[np.int16]:
    """10 s of silence with a short click every 3 s."""
    samples = np.zeros(10 * RATE, np.int16)
    for start in range(0, 10, 3):
        samples[start * RATE : start * RATE + 400] = tone(400 / RATE)
    return samples


RECORDINGS = [
    tone(2),
    tone(0.04),
    tone(30),
    ticks(),
    (tone(3) * np.linspace(0, 1, 3 * RATE)).astype(np.int16),
    tone(1, 1e-3),
]


@pytest.mark.parametrize("recording", range(len(RECORDINGS)))
def test_sounding_seconds_are_audible_and_all_others_exactly_silent(recording: int) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        slots = draw_slots(rng, 5)
        track = lay_track(rng, 3, [RECORDINGS[recording]], slots)
        assert track.class_index == 3
        assert not (track.sounding & ~slots).any()
        for second, heard in zip(track.samples.reshape(5, RATE), track.sounding, strict=True):
            assert np.abs(second).max() <= 0.95 + 1e-6
            if heard:
                levels = np.sqrt((second.reshape(-1, 160) ** 2).mean(1))
                # the ramps of 10 ms at both ends may take a block
                assert (levels > 10 ** (-55 / 20)).mean() >= AUDIBLE_SHARE - 0.02
            else:
                assert not second.any()


def test_onsets_and_ends_fall_inside_their_slots() -> None:
    slots = np.array([False, True, True, False, True])
    starts, stops = [], []
    for seed in range(200):
        track = lay_track(np.random.default_rng(seed), 1, [tone(8)], slots)
        loud = np.flatnonzero(np.abs(track.samples[: 3 * RATE]) > 1e-3) / RATE
        starts.append(loud[0])
        stops.append(loud[-1])
        assert np.array_equal(track.sounding, slots)
    assert min(starts) >= 1.0
    assert max(starts) <= 1.36
    assert max(stops) < 3.0
    assert min(stops) >= 2.64
    assert np.mean(np.array(starts) > 1.02) == pytest.approx(0.57, abs=0.12)


def test_which_of_the_recordings_is_told() -> None:
    found = set()
    for seed in range(30):
        track = lay_track(np.random.default_rng(seed), 1, [tone(2), np.zeros(RATE, np.int16)], np.ones(5, bool))
        assert track.sounding.all() == (track.recording == 0)
        found.add(track.recording)
    assert found == {0, 1}


def test_gate_silences_what_is_too_short_to_count() -> None:
    samples = np.zeros(3 * RATE, np.float32)
    samples[:RATE] = 0.1
    samples[RATE : RATE + 1600] = 0.1  # a tenth of the second
    samples[2 * RATE : 2 * RATE + 4800] = 0.1
    track = gate(2, samples)
    assert track.sounding.tolist() == [True, False, True]
    assert not track.samples[RATE : 2 * RATE].any()
    assert track.samples[: RATE - 200].min() == np.float32(0.1)


def test_shares_of_silence() -> None:
    rng = np.random.default_rng(0)
    slots = np.array([draw_slots(rng, 5) for _ in range(4000)])
    assert (~slots).mean() == pytest.approx(0.15, abs=0.015)
    assert slots.all(1).mean() == pytest.approx(0.5 + 0.5 * 0.7 * 0.85**4, abs=0.03)
    turns = [draw_turns(rng, 5) for _ in range(4000)]
    assert not any((first & second).any() for first, second in turns)
    assert np.mean([~(first | second) for first, second in turns]) == pytest.approx(0.15, abs=0.015)
    assert np.mean([first for first, _ in turns]) == pytest.approx(0.425, abs=0.02)


def test_mixing_adds_the_tracks_and_never_clips() -> None:
    loud = [gate(k, np.full(2 * RATE, 0.9, np.float32)) for k in (1, 2)]
    mixed = mix_tracks(np.random.default_rng(0), loud, 2)
    assert np.abs(mixed).max() == pytest.approx(1.0)
    floors = [mix_tracks(np.random.default_rng(seed), [], 2) for seed in range(100)]
    quiet = [np.sqrt(np.mean(floor**2)) for floor in floors]
    assert max(quiet) < 10 ** (-47 / 20)
    assert np.mean(np.array(quiet) == 0) == pytest.approx(0.5, abs=0.15)
