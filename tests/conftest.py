"""What tests of several rooms need: small real videos made by ffmpeg, and a small model that was never trained."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # PyTorch reads it when it is imported: workers that each use every core would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights import save_model
from avsseg.weights.turn import SharedTurn


def _make_video(
    path: Path, *, seconds: float = 3.0, size: str = "80x60", frame_rate: int = 10, sound: bool = True
) -> Path:
    """A moving test picture with a 440 Hz tone, or without an audio track."""
    tone = ["-f", "lavfi", "-i", f"sine=440:duration={seconds}", "-c:a", "aac"] if sound else []
    picture = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={frame_rate}:duration={seconds}"]
    codec = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    program = str(find_ffmpeg().path)
    subprocess.run([program, "-v", "error", "-nostdin", *picture, *tone, *codec, str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return _make_video


@pytest.fixture(scope="session")
def clip(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s, 80x60, 10 frames a second, with sound. Read only."""
    return make_video(tmp_path_factory.mktemp("media") / "clip.mp4")


@pytest.fixture(scope="session")
def silent_clip(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s, 80x60, no audio track. Read only."""
    return make_video(tmp_path_factory.mktemp("media") / "silent.mp4", seconds=2.0, sound=False)


@pytest.fixture(scope="session")
def truncated_clip(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of the bytes of an 8 s video whose index says 8 s. Read only."""
    folder = tmp_path_factory.mktemp("media")
    whole = make_video(folder / "whole.mp4", seconds=8.0).read_bytes()
    path = folder / "truncated.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.fixture(scope="session")
def untrained_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a narrow AVS-Mamba with random weights, the same in every run, and marked so."""
    config = AvsMambaConfig(
        backbone="pvt_v2_b0", audio_encoder="compact", dim=32, state_size=2, head_hidden=8, head_channels=(8, 4)
    )
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        save_model(path, AvsMamba(config), trained=False)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name == "nt" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("a small file system cannot be mounted")
    yield folder
    # lazily: the exception that a test has caught may still hold PyTorch's open file
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def all_wait_for() -> Callable[[SharedTurn, Sequence[Callable[[], object]]], None]:
    """Runs each in a thread of its own; nobody gets the turn before all of them wait for it."""

    def run(turn: SharedTurn, works: Sequence[Callable[[], object]], patience_s: float = 30) -> None:
        threads = [threading.Thread(target=work) for work in works]
        with turn:
            for number, thread in enumerate(threads, start=1):
                thread.start()
                end = time.monotonic() + patience_s
                while len(turn._waiting) < number and time.monotonic() < end:
                    time.sleep(0.001)
        for thread in threads:
            thread.join(patience_s)
            assert not thread.is_alive()
        assert not turn._waiting

    return run
