"""The recipe's random changes of sounds."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from avsseg.media.audio import LOG_OFFSET, SILENT_LOG_MEL


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    return importlib.import_module("log_mel_changes")


def test_silence_stays_silence(changes: ModuleType) -> None:
    silence = torch.full((3, 1, 96, 64), SILENT_LOG_MEL)
    for seed in range(20):
        torch.testing.assert_close(changes.change_log_mel(silence, np.random.default_rng(seed)), silence)


def test_a_tone_stays_within_the_bounds_of_pitch_and_level(changes: ModuleType) -> None:
    tone = torch.zeros(2, 1, 96, 64)
    tone[..., 30] = 5.0
    log_mel = (tone + LOG_OFFSET).log()
    before = log_mel.clone()
    bands, levels = set(), []
    for seed in range(200):
        changed = changes.change_log_mel(log_mel, np.random.default_rng(seed))
        assert changed.shape == log_mel.shape
        assert changed.isfinite().all()
        assert changed.min() >= SILENT_LOG_MEL - 1e-5
        loudest = changed.amax((0, 1, 2))
        bands.add(int(loudest.argmax()))
        levels.append(float(loudest.max()))
    assert torch.equal(log_mel, before)
    assert set(range(27, 34)) <= bands <= {0, *range(26, 35)}  # 0: the tone itself is masked in both seconds
    assert 0.7 < max(levels) - np.log(5.0) < 2.6
    again = [changes.change_log_mel(log_mel, np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*again)


def test_pieces_of_seconds_are_masked(changes: ModuleType) -> None:
    loud = torch.full((1, 1, 96, 64), 2.0)
    silent = [
        changes.change_log_mel(loud, np.random.default_rng(seed))[0, 0] < SILENT_LOG_MEL + 1e-4 for seed in range(60)
    ]
    assert any(second.all(0).any() for second in silent)  # whole bands
    assert any(second[:, 10:54].all(1).any() for second in silent)  # whole frames
    assert sum(not second[:, 5:59].any() for second in silent) > 3  # neither
