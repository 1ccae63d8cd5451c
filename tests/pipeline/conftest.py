from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.weights import LoadedModel, load_model


@pytest.fixture(scope="session")
def untrained(untrained_file: Path) -> LoadedModel:
    return load_model(untrained_file, allow_untrained=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sound_outlasts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 frames, 10 a second, under 4 s of sound. Read only."""
    path = tmp_path_factory.mktemp("media") / "sound_outlasts.mp4"
    inputs = ["-f", "lavfi", "-i", "testsrc2=size=80x60:rate=10:duration=1.5", "-f", "lavfi", "-i", "sine=duration=4"]
    codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    program = str(find_ffmpeg().path)
    subprocess.run([program, "-v", "error", "-nostdin", *inputs, *codecs, str(path)], check=True)
    return path
