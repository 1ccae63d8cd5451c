"""Evaluating classes: two clips of AVSS, one of 5 s and so padded, and models that say woman or listen for her."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.cli.evaluate import print_tables, without_nan
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.layout_writer import write_wav
from avsseg.errors import UsageError
from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings, Protocol
from avsseg.evaluation.report import write_report
from avsseg.evaluation.strips import STEP, draw_strip
from avsseg.evaluation.tables import tables
from avsseg.media.audio import SILENT_LOG_MEL
from avsseg.metrics.interval import clip_interval
from avsseg.weights.store import LoadedModel

V1M, V2 = "v1m_clip", "v2_clip"


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_classes_of_avss_by_name_with_and_without_padded_frames(
    semantic: Path,
    labeller: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    protocol: str,
) -> None:
    resized: list[torch.Size] = []
    interpolate = F.interpolate

    def record(logits: Tensor, **options: Any) -> Tensor:
        resized.append(logits.shape)
        return interpolate(logits, **options)

    monkeypatch.setattr("avsseg.evaluation.classes.F.interpolate", record)
    settings = EvaluationSettings(semantic, "avss", protocol=protocol, workers=0, size=16)  # type: ignore[arg-type]
    evaluation = Evaluation(labeller, settings)
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
    assert result["predicted_area"] == pytest.approx(0.5)
    assert set(result["time"]) == {"model_s", "metrics_s", "data_wait_s"}
    assert result["threshold"] is None
    print_tables(result)
    printed = capsys.readouterr().out
    page = write_report(tmp_path / "report", evaluation, result).read_text()
    for shown in (printed, page):
        assert "woman" in shown
        assert ("axe" in shown) == padded
        assert ("padding scored" in shown) == padded
        assert "accordion" not in shown
        assert "area marked on 1 silent frames" in shown
    assert f"{68 if padded else 69} classes occur in no frame" in printed


def tone(seconds: int) -> Any:
    return (0.3 * np.sin(np.arange(16_000 * seconds))).astype(np.float32)


@pytest.fixture
def hearing(labeller: LoadedModel) -> LoadedModel:
    """Says woman in the left half of the frames in which it hears anything."""

    def heard(_: Any, inputs: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        silent = inputs[1].flatten(2).amax(-1) < -4
        logits[..., 70, :, :] -= 4 * silent[..., None, None]
        return logits

    labeller.model.register_forward_hook(heard)
    return labeller


def test_sounds_of_avss_are_replaced_for_as_long_as_a_clip_lasts(semantic: Path, hearing: LoadedModel) -> None:
    for label, seconds in (("v1m", 5), ("v2", 10)):
        write_wav(semantic / label / f"{label}_clip" / "audio.wav", tone(seconds))
    names = ("silence", "noise", "swap", "off-screen")
    evaluation = Evaluation(hearing, EvaluationSettings(semantic, "avss", workers=0, size=16, negatives=names))
    result = evaluation.run()
    assert result["predicted_area"] == pytest.approx(0.5)
    assert result["negatives"]["silence"] == {"predicted_area": 0, "share_of_own_sound": 0, "frames_marked": 0}
    for name in names[1:]:
        # a sound of 5 s begins anew in the clip of 10
        row = result["negatives"][name]
        assert (row["predicted_area"], row["share_of_own_sound"]) == pytest.approx((0.5, 1))
        # of the padded clip's frames, those with truth that are real
        assert row["frames_marked"] == 1
        short = evaluation.sounds.log_mel(name, 0, evaluation.clips[0])
        assert short[:5].flatten(1).amax(1).min() > -4
        assert torch.allclose(short[5:], torch.tensor(SILENT_LOG_MEL))
    assert result["negatives"]["swap"]["clips_without_fitting_partner"] == 2


@pytest.mark.parametrize(("other", "unsure"), [("background_cat_dog", 0), ("cat_woman", 2), ("woman", 2)])
def test_a_swap_in_avss_fits_where_the_table_names_other_classes(
    semantic: Path, hearing: LoadedModel, other: str, unsure: int
) -> None:
    table = semantic / "metadata.csv"
    table.write_text(table.read_text().replace("v2_clip,0,0,woman,", f"v2_clip,0,0,{other},"))
    evaluation = Evaluation(hearing, EvaluationSettings(semantic, "avss", workers=0, size=16, negatives=("swap",)))
    assert evaluation.run()["negatives"]["swap"]["clips_without_fitting_partner"] == unsure


def test_the_sounds_of_avss_need_a_wav(semantic: Path, labeller: LoadedModel) -> None:
    wav = semantic / "v2" / V2 / "audio.wav"
    wav.unlink()
    torch.save(torch.zeros(10, 1, 96, 64), wav.with_suffix(".pkl"))
    with pytest.raises(UsageError, match="v2_clip: has no wav"):
        Evaluation(labeller, EvaluationSettings(semantic, "avss", workers=0, size=16, negatives=("noise",)))


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_scores_of_avss_by_number_of_sources(
    semantic: Path, labeller: LoadedModel, tmp_path: Path, protocol: str
) -> None:
    table = semantic / "metadata.csv"
    table.write_text(table.read_text().replace("v2_clip,0,0,woman,", "v2_clip,0,0,background_woman_man,"))

    def run() -> dict[str, Any]:
        settings = EvaluationSettings(semantic, "avss", protocol=protocol, workers=0, size=16)  # type: ignore[arg-type]
        return Evaluation(labeller, settings).run()

    whole = run()
    assert [clip["sources"] for clip in whole["per_clip"]] == [1, 2]
    assert sum(part["frames"] for part in whole["per_sources"].values()) == whole["frames"]
    everything = table.read_text()
    for count, name in (("1", V1M), ("2", V2)):
        lines = [line for line in everything.splitlines() if "split" in line or name in line]
        table.write_text("\n".join(lines) + "\n")
        alone = run()
        part = whole["per_sources"][count]
        assert part == {key: alone[key] for key in part}
        assert part["M_J_of_occurring"] == pytest.approx(part["M_J"] * 71 / part["occurring_classes"])
    assert not any("nothing tells" in table.note for table in tables(whole))
    table.write_text(everything.replace("v2_clip,0,0,background_woman_man,", "v2_clip,0,0,,"))
    partly = run()
    missing = partly["frames"] - partly["per_sources"]["1"]["frames"]
    assert missing > 0
    (note,) = [table.note for table in tables(partly) if table.title == "by number of sources"]
    assert note.endswith(f"; {missing} frames of clips whose number of sources nothing tells are in no part")
    # nothing is said where the table does not
    table.write_text(everything.replace("a_obj", "notes"))
    unknown = run()
    assert "per_sources" not in unknown
    assert [clip["sources"] for clip in unknown["per_clip"]] == [None, None]


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_the_interval_of_avss_is_over_classes_and_clips(
    semantic: Path, labeller: LoadedModel, interval_parts: list[np.ndarray], protocol: Protocol
) -> None:
    result = Evaluation(labeller, EvaluationSettings(semantic, "avss", protocol=protocol, workers=0, size=16)).run()
    assert result["M_J_interval"] == list(clip_interval(*interval_parts))
    totals, counts = (part.sum(0) for part in interval_parts)
    assert np.divide(totals, counts, out=np.zeros(71), where=counts > 0).mean() == pytest.approx(result["M_J"])


def test_a_clip_of_avss_by_itself(semantic: Path, labeller: LoadedModel) -> None:
    result = Evaluation(labeller, EvaluationSettings(semantic, "avss", protocol="avsbench", workers=0, size=16)).run()
    short, long = result["per_clip"]
    # half of the frame is said to be woman, a quarter is; neither padding nor the silent second counts
    assert short == {
        "index": 0, "name": V1M, "category": "woman", "sources": 1, "M_J": pytest.approx(0.5),
        "silent_area": pytest.approx(0.5),
    }  # fmt: skip
    assert (long["M_J"], math.isnan(long["silent_area"])) == (pytest.approx(0.5), True)
    assert json.dumps(without_nan(result), allow_nan=False)


def test_strips_of_avss_show_its_real_seconds_in_the_classes_colours(
    semantic: Path, labeller: LoadedModel, tmp_path: Path
) -> None:
    evaluation = Evaluation(labeller, EvaluationSettings(semantic, "avss", workers=0, size=16))
    strip, true, predicted = draw_strip(evaluation, evaluation.clips[0])
    assert strip.width == 5 * STEP
    assert (true, predicted) == ([70], [70])
    pixels = np.asarray(strip).astype(int)
    frame, truth, said = (pixels[row * STEP : row * STEP + 128] for row in range(3))
    tint = 0.45 * frame[60, 10] + 0.55 * np.array((32, 128, 128))
    for row, edge in ((truth, 32), (said, 64)):
        assert np.abs(row[60, 10] - tint).max() <= 1
        assert np.abs(row[60, edge - 3] - tint).max() <= 3
        assert row[60, edge - 1].tolist() == [0, 0, 0]
        assert row[60, edge].tolist() == [255, 255, 255]
        assert np.abs(row[60, edge + 3] - frame[60, edge + 3]).max() == 0
    page = write_report(tmp_path / "report", evaluation, evaluation.run()).read_text()
    assert page.count("<figure>") == 2
    assert "v1m_clip woman: M_J 0.500; truth:" in page
