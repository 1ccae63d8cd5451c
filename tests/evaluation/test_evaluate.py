"""Evaluating: the numbers of a model that knows the truth, and of one that marks everything."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from avsseg.cli.evaluate import print_tables
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.layout_writer import write_wav
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import DataError, UsageError
from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings, trained_mute
from avsseg.evaluation.report import choose_clips, draw_strip, write_report
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


def test_without_sound_the_scored_pass_hears_silence(scenes: Path, tmp_path: Path) -> None:
    muted = LoadedModel(
        *(loaded().model, "muted", "abc", ("sounding",), True), {"settings": {"mute": True, "subset": "ms3"}}
    )
    assert trained_mute(muted)
    assert not trained_mute(loaded())
    by_itself = Evaluation(muted, EvaluationSettings(scenes, negatives=("noise",), workers=0))
    result = by_itself.run()
    assert (result["mute"], result["predicted_area"]) == (True, 0.0)
    assert result["negatives"]["noise"]["predicted_area"] == pytest.approx(0.5)
    assert math.isnan(result["negatives"]["noise"]["share_of_own_sound"])
    tinted = np.asarray(draw_strip(by_itself, by_itself.clips[0]))
    asked = Evaluation(loaded(), EvaluationSettings(scenes, workers=0, mute=True))
    assert asked.run()["predicted_area"] == 0.0
    assert np.array_equal(np.asarray(draw_strip(asked, asked.clips[0])), tinted)
    loud = Evaluation(muted, EvaluationSettings(scenes, workers=0, mute=False))
    heard = loud.run()
    assert heard["mute"] is False
    assert heard["predicted_area"] > 0
    assert not np.array_equal(np.asarray(draw_strip(loud, loud.clips[0])), tinted)
    assert "silence played" in write_report(tmp_path, by_itself, result).read_text()
    assert "silence played" not in write_report(tmp_path, loud, heard).read_text()


def test_a_frame_counts_for_each_listed_class_that_its_truth_shows(scenes: Path) -> None:
    evaluation = Evaluation(loaded(), EvaluationSettings(scenes, workers=0))
    result = evaluation.run()
    clips = json.loads((scenes / "Multi-sources" / "clips.json").read_text())["clips"]
    ious: dict[str, list[float]] = defaultdict(list)
    for index, clip in enumerate(clips):
        example = evaluation.clips[index]
        for t, (visible, heard) in enumerate(zip(clip["visible"], clip["sounding"], strict=True)):
            truth, predicted = example.masks[t] > 0, torch.zeros(48, 48, dtype=torch.bool)
            predicted[:, :24] = bool(example.log_mel[t].max() > -4)
            for name in {thing.split()[0] for thing in set(visible) & set(heard)}:
                ious[name].append(float((predicted & truth).sum() / (predicted | truth).sum()))
    assert len(ious) > 1
    assert {name: row["frames"] for name, row in result["per_category"].items()} == {
        name: len(values) for name, values in ious.items()
    }
    for name, row in result["per_category"].items():
        assert row["M_J"] == pytest.approx(sum(ious[name]) / len(ious[name]), rel=1e-5)


def relisted(scenes: Path, folder: Path, clips: list[tuple[list[str], list[str]]]) -> Path:
    """A copy whose listing says (visible, sounding) of each test clip, the same in every second."""
    shutil.copytree(scenes, folder)
    table = folder / "Multi-sources" / "clips.json"
    document = json.loads(table.read_text())
    for entry, (visible, sounding) in zip(document["clips"], clips, strict=True):
        entry |= {"visible": [visible] * 5, "sounding": [sounding] * 5}
    table.write_text(json.dumps({**document, "classes": ["background", "dog", "cat 9", "cup"]}))
    return folder


@pytest.mark.parametrize("other", range(CLIPS))
def test_a_swap_brings_in_no_class_that_is_visible(scenes: Path, tmp_path: Path, other: int) -> None:
    listed: list[tuple[list[str], list[str]]] = [(["dog", "cup"], ["dog"])] * CLIPS
    listed[other] = (["cat 9"], ["cat 9"])
    folder = relisted(scenes, tmp_path / "scenes", listed)
    evaluation = Evaluation(loaded(), EvaluationSettings(folder, negatives=("swap",), workers=0))
    for index, clip in enumerate(evaluation.clips.clips):
        assert clip.wav is not None
        write_wav(clip.wav, np.full(80_000, 0.3 * (index == other), np.float32) * np.sin(np.arange(80_000)))
    swap = evaluation.run()["negatives"]["swap"]
    # the cat is heard with each dog, and a dog, whose wav is silent, with the cat
    assert swap["predicted_area"] == pytest.approx(0.5 * (CLIPS - 1) / CLIPS)
    assert swap["clips_without_fitting_partner"] == 0


def test_swaps_that_are_not_sure_to_be_wrong_are_counted(scenes: Path, tmp_path: Path) -> None:
    folder = relisted(scenes, tmp_path / "scenes", [(["dog"], ["dog"]), (["dog", "cat 9"], []), (["cup"], ["cat 9"])])
    settings = EvaluationSettings(folder, negatives=("swap",), workers=0)
    # of the second clip both other clips sound like something that it shows
    assert Evaluation(loaded(), settings).run()["negatives"]["swap"]["clips_without_fitting_partner"] == 1
    (folder / "Multi-sources" / "clips.json").unlink()
    assert Evaluation(loaded(), settings).run()["negatives"]["swap"]["clips_without_fitting_partner"] == CLIPS


@pytest.mark.parametrize("text", ["[]", '{"clips": [{"name": "x", "visible": [[]], "sounding": []}]}', "{"])
def test_a_damaged_listing_is_named(scenes: Path, tmp_path: Path, text: str) -> None:
    folder = relisted(scenes, tmp_path / "scenes", [([], [])] * CLIPS)
    (folder / "Multi-sources" / "clips.json").write_text(text)
    with pytest.raises(DataError, match=r"clips\.json: not a listing of clips"):
        Evaluation(loaded(), EvaluationSettings(folder, workers=0))


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


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_classes_of_avss_by_name_with_and_without_padded_frames(
    semantic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    resized: list[torch.Size] = []
    interpolate = F.interpolate

    def record(logits: Tensor, **options: Any) -> Tensor:
        resized.append(logits.shape)
        return interpolate(logits, **options)

    monkeypatch.setattr("avsseg.evaluation.evaluate.F.interpolate", record)
    model = LoadedModel(Labeller().eval(), "labeller", "abc", CLASS_NAMES, trained=True)  # type: ignore[arg-type]
    settings = EvaluationSettings(semantic, "avss", protocol=protocol, workers=0, size=16)  # type: ignore[arg-type]
    evaluation = Evaluation(model, settings)
    result = evaluation.run()
    padded = protocol == "avsbench"
    # all frames of a clip at native size, 71 channels each, would be gigabytes
    assert [shape[0] for shape in resized] == [1] * (20 if padded else 15)
    assert result["frames"] == (20 if padded else 15)
    woman, background, axe = (result["per_class"][name] for name in ("woman", "background", "axe"))
    # the silent second adds a frame of no truth to the woman, where the background keeps half
    assert woman["frames"] == 15
    assert woman["M_J"] == pytest.approx(14 * 0.5 / 15)
    assert woman["dataset_iou"] == pytest.approx(14 * 3 / (14 * 6 + 6))
    assert background["M_J"] == pytest.approx((14 * 6 / 9 + 0.5) / (20 if padded else 15))
    assert axe["frames"] == (5 if padded else 0)
    assert (axe["M_J"] == 0.0) if padded else math.isnan(axe["M_J"])
    assert list(result["per_class"]) == list(CLASS_NAMES)
    assert [row["M_F"] for row in result["per_class"].values()] == pytest.approx(result["f_per_class"], nan_ok=True)
    assert result["silent_frames"] == {"frames": 1, "false_positive_area": pytest.approx(0.5)}
    assert result["M_J"] == pytest.approx((woman["M_J"] + background["M_J"]) / 71)
    print_tables(result)
    printed = capsys.readouterr().out
    page = write_report(tmp_path / "report", evaluation, result).read_text()
    for shown in (printed, page):
        assert "woman" in shown
        assert ("axe" in shown) == padded
        assert "accordion" not in shown
        assert "area marked on 1 silent frames" in shown
    assert f"{68 if padded else 69} classes occur in no frame" in printed
