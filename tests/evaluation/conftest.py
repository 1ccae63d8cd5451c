"""Models of known answers and small sets to score them on: rendered clips of MS3, and two clips of AVSS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.layout_writer import write_wav
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.metrics.interval import clip_interval
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.store import LoadedModel


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three test clips of 48 px, listed in clips.json."""
    folder = tmp_path_factory.mktemp("scenes")
    assert list(write_dataset(folder, SynthSettings(train=0, val=0, test=3, size=48, height=48, frame_rate=4)))
    return folder


class Listener(nn.Module):
    """Marks the left half of every frame whose log-mel is not silence."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = AvsMambaConfig(audio_encoder="compact", backbone="resnet18_slim", dim=32)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Tensor:
        B, T, _, H, W = frames.shape
        logits = frames.new_full((B, T, 1, H, W), -5.0)
        heard = log_mel.flatten(2).amax(-1) > -4
        logits[..., : W // 2] = torch.where(heard, 5.0, -5.0)[:, :, None, None, None]
        return logits * self.scale


@pytest.fixture
def listener() -> LoadedModel:
    return LoadedModel(Listener().eval(), "listener", "abc", ("sounding",), trained=True)  # type: ignore[arg-type]


class Labeller(nn.Module):
    """Says woman (70) in the left half of every frame, and axe (3) all over black ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = AvsMambaConfig(audio_encoder="compact", backbone="resnet18_slim", dim=32, num_classes=71)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Tensor:
        B, T, _, H, W = frames.shape
        logits = frames.new_zeros((B, T, 71, H, W))
        logits[..., 0, :, :] = 1.0
        logits[..., 70, :, : W // 2] = 2.0
        logits[..., 3, :, :] += 3.0 * (frames.amax((2, 3, 4)) < -1)[..., None, None]
        return logits * self.scale


@pytest.fixture
def labeller() -> LoadedModel:
    return LoadedModel(Labeller().eval(), "labeller", "abc", CLASS_NAMES, trained=True)  # type: ignore[arg-type]


@pytest.fixture
def semantic(tmp_path: Path) -> Path:
    """AVSS: a clip of 5 s, its last second without truth, and one of 10 s; woman in the left quarter of 12x8 px."""
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for label, seconds in (("v1m", 5), ("v2", 10)):
        place = tmp_path / label / f"{label}_clip"
        for name in ("frames", "labels_semantic"):
            (place / name).mkdir(parents=True)
        for t in range(seconds):
            truth = np.zeros((8, 12), np.uint8)
            truth[:, :3] = 70 * (label == "v2" or t < 4)
            Image.new("RGB", (12, 8), (120, 90, 90)).save(place / "frames" / f"{t}.jpg")
            Image.fromarray(truth).save(place / "labels_semantic" / f"{t}.png")
        write_wav(place / "audio.wav", np.zeros(16_000 * seconds, np.float32))
        rows.append(f"x,{label}_clip,0,0,woman,test,{label}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def interval_parts(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Receives the totals and the counts that a result's interval is made of."""
    given: list[np.ndarray] = []

    def kept(totals: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
        given.extend([totals, counts])
        return clip_interval(totals, counts)

    monkeypatch.setattr("avsseg.evaluation.scores.clip_interval", kept)
    return given
