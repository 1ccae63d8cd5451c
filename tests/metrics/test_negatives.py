"""Replacement sounds: level, determinism and who gets whose."""

from __future__ import annotations

import numpy as np
import pytest

from avsseg.data.synthetic_sound import FAMILIES
from avsseg.errors import UsageError
from avsseg.metrics.negatives import NEGATIVES, Wave, fits_swap, noise, off_screen, silence, swap_partner


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rms(waveform: Wave) -> float:
    return float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


def tone(level: float, samples: int = 16000) -> Wave:
    return (level * np.sqrt(2) * np.sin(np.arange(samples) * 0.3)).astype(np.float32)


def test_names() -> None:
    assert NEGATIVES == ("silence", "noise", "swap", "off-screen")


def test_silence() -> None:
    out = silence(tone(0.2))
    assert (out.shape, out.dtype, out.any()) == ((16000,), np.float32, False)


@pytest.mark.parametrize("level", [0.5, 0.1, 2e-4])
def test_noise_is_as_loud_as_the_clip(level: float) -> None:
    waveform = tone(level)
    out = noise(waveform, rng())
    assert (out.shape, out.dtype) == (waveform.shape, np.float32)
    assert rms(out) == pytest.approx(rms(waveform), rel=1e-4)
    assert np.abs(out).max() <= 1


@pytest.mark.parametrize("level", [0.0, 3e-5])
def test_noise_for_a_silent_clip_is_at_minus_30_dbfs(level: float) -> None:
    assert 20 * np.log10(rms(noise(tone(level), rng()))) == pytest.approx(-30, abs=0.01)


def test_noise_is_white_and_nothing_of_the_clip() -> None:
    waveform = tone(0.2, 160000)
    out = noise(waveform, rng())
    bands = [float(np.mean(band)) for band in np.array_split(np.abs(np.fft.rfft(out)) ** 2, 8)]
    assert max(bands) < 1.1 * min(bands)
    assert abs(float(np.corrcoef(out, waveform)[0, 1])) < 0.02
    assert abs(float(out.mean())) < 0.002


def test_noise_follows_its_generator() -> None:
    assert np.array_equal(noise(tone(0.1), rng(1)), noise(tone(0.1), rng(1)))
    assert not np.array_equal(noise(tone(0.1), rng(1)), noise(tone(0.1), rng(2)))


def test_a_swap_takes_a_sound_of_no_class_in_the_picture() -> None:
    visible = [{"dog", "cat"}, {"dog"}, {"cat"}, {"dog", "bus"}, {"cat"}, {"dog"}, {"bus"}, set[str]()]
    heard = [{"dog"}, {"dog"}, {"cat", "siren"}, {"bus", "dog"}, {"cat"}, {"dog"}, {"bus"}, set[str]()]
    names = [f"clip{k}" for k in range(8)]
    for index in range(8):
        partner = swap_partner(index, visible, heard, names)
        assert partner not in (index, 7)
        assert not heard[partner] & visible[index]
    assert fits_swap({"dog"}, {"cat"})
    assert not fits_swap({"dog"}, {"cat", "dog"})
    assert not fits_swap({"dog"}, ())


@pytest.mark.parametrize("classes", [set[str](), {"dog"}], ids=["unknown", "all the same"])
def test_a_swap_without_other_classes_takes_another_clip(classes: set[str]) -> None:
    names = [f"clip{k}" for k in range(9)]
    partners = [swap_partner(k, [classes] * 9, [classes] * 9, names) for k in range(9)]
    assert all(partner != k for k, partner in enumerate(partners))


def test_a_swap_depends_on_names_and_not_on_their_order() -> None:
    names = [f"clip{k}" for k in range(40)]
    classes = [{f"class{k % 4}"} for k in range(40)]
    partner = {name: names[swap_partner(k, classes, classes, names)] for k, name in enumerate(names)}
    turned, turned_classes = names[::-1], classes[::-1]
    assert partner == {
        name: turned[swap_partner(k, turned_classes, turned_classes, turned)] for k, name in enumerate(turned)
    }
    assert len(set(partner.values())) > 15
    kept = names[:39]
    changed = [name for k, name in enumerate(kept) if kept[swap_partner(k, classes, classes, kept)] != partner[name]]
    assert changed == [name for name in kept if partner[name] == names[39]]


def test_a_swap_of_clips_of_one_name_is_still_a_swap() -> None:
    assert [swap_partner(k, [(), ()], [(), ()], ["same", "same"]) for k in range(2)] == [1, 0]


def test_a_swap_of_one_clip_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two clips"):
        swap_partner(0, [{"dog"}], [{"dog"}], ["clip"])


def test_off_screen_is_a_voice_at_a_fixed_level() -> None:
    for seed in range(20):
        out = off_screen(80000, rng(seed))
        assert (out.shape, out.dtype) == ((80000,), np.float32)
        assert 20 * np.log10(rms(out)) == pytest.approx(-20, abs=1)
        assert np.abs(out).max() <= 1
        assert np.array_equal(out, off_screen(80000, rng(seed)))


def test_off_screen_leaves_out_the_classes_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def draw(_: np.random.Generator, split: str, family: int) -> int:
        assert split == "example"
        used.append(family)
        return family

    monkeypatch.setattr("avsseg.metrics.negatives.draw_timbre", draw)
    monkeypatch.setattr("avsseg.metrics.negatives.synthesise", lambda _, n: np.ones(n, np.float32))
    for seed in range(200):
        off_screen(10, rng(seed), present=[0, 3])
    assert set(used) == set(range(len(FAMILIES))) - {0, 3}
    with pytest.raises(UsageError, match="none is left"):
        off_screen(10, rng(), present=range(len(FAMILIES)))


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_clips_of_next_to_nothing(samples: int) -> None:
    empty = np.zeros(samples, np.float32)
    for out in (silence(empty), noise(empty, rng()), off_screen(samples, rng())):
        assert (out.shape, out.dtype) == ((samples,), np.float32)
        assert np.isfinite(out).all()
