"""A rendered dataset of a few small clips, and settings that train on it in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.training.settings import TrainingSettings, training_preset, with_changes

CLIPS = 4


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MS3 layout: 4 training, 1 validation and 2 test clips of 48 px. Read only."""
    folder = tmp_path_factory.mktemp("scenes")
    settings = SynthSettings(train=CLIPS, val=1, test=2, size=48, height=48, frame_rate=4)
    assert len(list(write_dataset(folder, settings))) == CLIPS + 3
    return folder


@pytest.fixture
def quick(scenes: Path) -> TrainingSettings:
    """Four steps of two clips at 32 px, without chance from outside."""
    changes = {"data": str(scenes), "size": 32, "epochs": 2, "batch": 2, "workers": 0, "threads": 1}
    return with_changes(training_preset("tiny", "ms3"), changes, where="test")
