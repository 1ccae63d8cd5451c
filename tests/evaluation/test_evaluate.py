"""Evaluating: the numbers of a model that knows the truth, and of one that marks everything."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import UsageError
from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings
from avsseg.evaluation.report import choose_clips, write_report
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.store import LoadedModel

CLIPS = 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert list(write_dataset(folder, SynthSettings(train=0, val=0, test=CLIPS, size=48, height=48, frame_rate=4)))
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


def loaded() -> LoadedModel:
    return LoadedModel(Listener().eval(), "listener", "abc", ("sounding",), trained=True)  # type: ignore[arg-type]


def test_strict_scores_are_those_of_a_plain_count(scenes: Path) -> None:
    evaluation = Evaluation(loaded(), EvaluationSettings(scenes, workers=0, size=32))
    result = evaluation.run()
    ious, silent = [], []
    for index in range(CLIPS):
        example = evaluation.clips[index]
        assert example.masks.shape[-2:] == (48, 48)  # its own size
        for t in range(5):
            truth = example.masks[t] > 0
            predicted = torch.zeros(48, 48, dtype=torch.bool)
            if example.log_mel[t].max() > -4:
                predicted[:, :24] = True
            if truth.any():
                ious.append(float((predicted & truth).sum() / (predicted | truth).sum()))
            else:
                silent.append(float(predicted.float().mean()))
    assert result["M_J"] == pytest.approx(sum(ious) / len(ious), rel=1e-5)
    assert (result["frames"], result["empty_frames"]) == (len(ious) + len(silent), len(silent))
    assert result["silent_frames"]["frames"] == len(silent)
    if silent:
        assert result["silent_frames"]["false_positive_area"] == pytest.approx(sum(silent) / len(silent), rel=1e-5)
    assert len(result["per_clip"]) == CLIPS
    assert result["truth_size"] == "native"


def test_without_sound_nothing_is_marked_and_other_sounds_are_heard(scenes: Path) -> None:
    negatives = ("silence", "noise", "swap", "off-screen")
    result = Evaluation(loaded(), EvaluationSettings(scenes, negatives=negatives, workers=0)).run()
    assert result["negatives"]["silence"] == {
        "predicted_area": 0.0, "share_of_own_sound": 0.0, "frames_marked": 0.0
    }  # fmt: skip
    for name in ("noise", "off-screen"):
        assert result["negatives"][name]["predicted_area"] == pytest.approx(0.5)
        assert result["negatives"][name]["frames_marked"] == 1.0
    assert 0 < result["negatives"]["swap"]["predicted_area"] <= 0.5


def test_the_official_arithmetic_depends_on_the_batch(scenes: Path) -> None:
    results = [
        Evaluation(loaded(), EvaluationSettings(scenes, protocol="avsbench", batch=batch, workers=0, size=32)).run()
        for batch in (1, 2, CLIPS)
    ]
    assert [r["batch"] for r in results] == [1, 2, CLIPS]
    assert [r["batches"] for r in results] == [3, 2, 1]
    assert results[0]["truth_size"] == 32
    assert results[0]["M_F"] >= results[2]["M_F"]
    assert results[0]["M_J"] == pytest.approx(results[2]["M_J"])  # batches of one size
    assert results[0]["M_J"] != pytest.approx(results[1]["M_J"], abs=1e-9)  # a short last batch


def test_scores_by_number_of_sources(scenes: Path) -> None:
    result = Evaluation(loaded(), EvaluationSettings(scenes, workers=0)).run()
    clips = json.loads((scenes / "Multi-sources" / "clips.json").read_text())["clips"]
    counts = [
        max(len(set(visible) & set(heard)) for visible, heard in zip(c["visible"], c["sounding"], strict=True))
        for c in clips
    ]
    assert set(result["per_sources"]) == {str(count) for count in counts}
    assert [c["sources"] for c in result["per_clip"]] == counts
    assert sum(group["frames"] for group in result["per_sources"].values()) == result["frames"]


def test_wrong_requests(scenes: Path) -> None:
    with pytest.raises(UsageError, match="protocol"):
        EvaluationSettings(scenes, protocol="loose")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="echo"):
        EvaluationSettings(scenes, negatives=("echo",))


def test_report_is_one_self_contained_page(scenes: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(loaded(), EvaluationSettings(scenes, negatives=("silence",), workers=0))
    result = evaluation.run()
    page = write_report(tmp_path / "report", evaluation, result).read_text()
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert "://" not in page
    assert page.count("<figure>") == len({c["index"] for c in result["per_clip"] if not math.isnan(c["M_J"])})
    for name in ("Best", "Median", "Worst", "Without its own sound"):
        assert name in page
    assert f"{result['M_J']:.4f}" in page


def test_clips_of_a_report_are_the_best_the_middle_and_the_worst() -> None:
    clips = [{"M_J": value / 10, "index": value} for value in (3, 9, 1, 7, 5, 0, 8, 2, 6)]
    clips.append({"M_J": math.nan, "index": 99})
    chosen = choose_clips(clips, 2)
    assert [c["index"] for c in chosen["Best"]] == [9, 8]
    assert [c["index"] for c in chosen["Worst"]] == [1, 0]
    assert [c["index"] for c in chosen["Median"]] == [6, 5]
    for count in range(1, 4):
        few = choose_clips(clips[:count], 4)
        listed = [c["index"] for group in few.values() for c in group]
        assert len(listed) == len(set(listed))


def test_the_result_is_json(scenes: Path) -> None:
    from avsseg.cli.evaluate import without_nan

    result = Evaluation(loaded(), EvaluationSettings(scenes, workers=0)).run()
    assert json.loads(json.dumps(without_nan(result), allow_nan=False))["clips"] == CLIPS
