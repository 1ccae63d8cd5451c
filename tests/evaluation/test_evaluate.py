"""Evaluating: the numbers of a model that knows the truth, and of one that marks everything."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avsseg.data.avsbench import ClipFiles
from avsseg.data.layout_writer import write_wav
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import DataError, UsageError
from avsseg.evaluation.contents import Contents
from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings, Protocol, trained_mute
from avsseg.evaluation.report import write_report
from avsseg.evaluation.strips import draw_strip
from avsseg.evaluation.tables import tables
from avsseg.weights.store import LoadedModel

CLIPS = 3


def test_strict_scores_are_those_of_a_plain_count(scenes: Path, listener: LoadedModel) -> None:
    evaluation = Evaluation(listener, EvaluationSettings(scenes, workers=0, size=32))
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
    counts = (result["frames"], result["frames_with_truth"], result["empty_frames"])
    assert counts == (len(ious) + len(silent), len(ious), len(silent))
    assert result["silent_frames"]["frames"] == len(silent)
    if silent:
        assert result["silent_frames"]["false_positive_area"] == pytest.approx(sum(silent) / len(silent), rel=1e-5)
    assert len(result["per_clip"]) == CLIPS
    assert result["truth_size"] == "native"


def test_without_sound_nothing_is_marked_and_other_sounds_are_heard(scenes: Path, listener: LoadedModel) -> None:
    negatives = ("silence", "noise", "swap", "off-screen")
    result = Evaluation(listener, EvaluationSettings(scenes, negatives=negatives, workers=0)).run()
    assert result["negatives"]["silence"] == {
        "predicted_area": 0.0, "share_of_own_sound": 0.0, "frames_marked": 0.0
    }  # fmt: skip
    for name in ("noise", "off-screen"):
        assert result["negatives"][name]["predicted_area"] == pytest.approx(0.5)
        assert result["negatives"][name]["frames_marked"] == 1.0
    assert 0 < result["negatives"]["swap"]["predicted_area"] <= 0.5


def test_the_official_arithmetic_depends_on_the_batch(scenes: Path, listener: LoadedModel) -> None:
    results = [
        Evaluation(listener, EvaluationSettings(scenes, protocol="avsbench", batch=batch, workers=0, size=32)).run()
        for batch in (1, 2, CLIPS)
    ]
    assert [r["batch"] for r in results] == [1, 2, CLIPS]
    assert [r["batches"] for r in results] == [3, 2, 1]
    assert results[0]["truth_size"] == 32
    assert results[0]["M_F"] >= results[2]["M_F"]
    assert results[0]["M_J"] == pytest.approx(results[2]["M_J"])  # batches of one size
    assert results[0]["M_J"] != pytest.approx(results[1]["M_J"], abs=1e-9)  # a short last batch


@pytest.mark.parametrize("protocol", ["strict", "avsbench"])
def test_the_interval_is_over_the_clips_that_make_m_j(
    scenes: Path, listener: LoadedModel, interval_parts: list[np.ndarray], protocol: Protocol
) -> None:
    result = Evaluation(listener, EvaluationSettings(scenes, protocol=protocol, workers=0, size=32)).run()
    totals, counts = interval_parts
    assert totals.shape == counts.shape == (CLIPS, 1)
    assert totals.sum() / counts.sum() == pytest.approx(result["M_J"], rel=1e-6)
    low, high = result["M_J_interval"]
    assert low <= result["M_J"] <= high
    assert low < high
    (row,) = [row for table in tables(result) for row in table.rows if row[0] == "M_J, 95 % interval"]
    assert row[1] == f"{low:.4f} to {high:.4f}"


def test_scores_by_number_of_sources(scenes: Path, listener: LoadedModel) -> None:
    result = Evaluation(listener, EvaluationSettings(scenes, workers=0)).run()
    clips = json.loads((scenes / "Multi-sources" / "clips.json").read_text())["clips"]
    counts = [
        max(len(set(visible) & set(heard)) for visible, heard in zip(c["visible"], c["sounding"], strict=True))
        for c in clips
    ]
    assert set(result["per_sources"]) == {str(count) for count in counts}
    assert [c["sources"] for c in result["per_clip"]] == counts
    for name in ("frames", "frames_with_truth"):
        assert sum(group[name] for group in result["per_sources"].values()) == result[name]
    assert result["frames_with_truth"] < result["frames"]


def only(scenes: Path, folder: Path, names: set[str]) -> Path:
    """A copy whose table has those clips alone."""
    shutil.copytree(scenes, folder)
    table = next(folder.glob("*/*_meta_data.csv"))
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(row for row in rows if row.split(",")[0] in names)]) + "\n")
    return folder


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_part_scores_by_its_protocol_as_if_its_clips_were_all(
    tmp_path: Path, listener: LoadedModel, batch: int
) -> None:
    settings = SynthSettings(train=0, val=0, test=5, size=48, height=48, frame_rate=4, subset="s4")
    scenes = tmp_path / "scenes"
    assert list(write_dataset(scenes, settings))

    def run(folder: Path) -> dict[str, Any]:
        settings = EvaluationSettings(folder, "s4", protocol="avsbench", batch=batch, workers=0, size=32)
        return Evaluation(listener, settings).run()

    whole = run(scenes)
    categories: dict[str, set[str]] = defaultdict(set)
    for clip in whole["per_clip"]:
        categories[clip["category"]].add(clip["name"])
    assert max(map(len, categories.values())) > 1
    for category, names in categories.items():
        alone = run(only(scenes, tmp_path / category, names))
        part = whole["per_category"][category]
        assert part == {name: alone[name] for name in ("M_J", "M_F", "frames", "frames_with_truth")}
        assert part["frames"] == 5 * len(names)
    assert whole["per_sources"]["1"]["M_J"] == whole["M_J"]
    strict = Evaluation(listener, EvaluationSettings(scenes, "s4", workers=0, size=32)).run()
    assert strict["per_category"] != whole["per_category"]


def test_the_number_of_sources_of_clips_that_no_listing_has(
    scenes: Path, listener: LoadedModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    table = folder / "Multi-sources" / "clips.json"
    document = json.loads(table.read_text())
    left_out = document["clips"].pop(0)["name"]
    table.write_text(json.dumps(document))
    partly = Evaluation(listener, EvaluationSettings(folder, workers=0)).run()
    assert {clip["name"]: clip["sources"] for clip in partly["per_clip"]}[left_out] is None
    assert sum(part["frames"] for part in partly["per_sources"].values()) == 5 * (CLIPS - 1)
    (note,) = [table.note for table in tables(partly) if table.title == "by number of sources"]
    assert note.endswith("; 5 frames of clips whose number of sources nothing tells are in no part")
    table.unlink()
    unlisted = Evaluation(listener, EvaluationSettings(folder, workers=0)).run()
    assert "per_sources" not in unlisted
    assert [clip["sources"] for clip in unlisted["per_clip"]] == [None] * CLIPS


def test_s4_has_one_source_without_a_listing(listener: LoadedModel, tmp_path: Path) -> None:
    settings = SynthSettings(train=0, val=0, test=2, size=48, height=48, frame_rate=4, subset="s4")
    assert list(write_dataset(tmp_path, settings))
    (tmp_path / "Single-source" / "clips.json").unlink()
    result = Evaluation(listener, EvaluationSettings(tmp_path, "s4", workers=0)).run()
    assert [clip["sources"] for clip in result["per_clip"]] == [1, 1]
    one = result["per_sources"]["1"]
    assert list(result["per_sources"]) == ["1"]
    assert one == {name: result[name] for name in one}


def test_wrong_requests(scenes: Path) -> None:
    with pytest.raises(UsageError, match="protocol"):
        EvaluationSettings(scenes, protocol="loose")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="echo"):
        EvaluationSettings(scenes, negatives=("echo",))


def test_the_result_is_json(scenes: Path, listener: LoadedModel) -> None:
    from avsseg.cli.evaluate import without_nan

    result = Evaluation(listener, EvaluationSettings(scenes, workers=0)).run()
    assert json.loads(json.dumps(without_nan(result), allow_nan=False))["clips"] == CLIPS


def test_without_sound_the_scored_pass_hears_silence(scenes: Path, listener: LoadedModel, tmp_path: Path) -> None:
    muted = LoadedModel(
        *(listener.model, "muted", "abc", ("sounding",), True), {"settings": {"mute": True, "subset": "ms3"}}
    )
    assert trained_mute(muted)
    assert not trained_mute(listener)
    by_itself = Evaluation(muted, EvaluationSettings(scenes, negatives=("noise",), workers=0))
    result = by_itself.run()
    assert (result["mute"], result["predicted_area"]) == (True, 0.0)
    assert result["negatives"]["noise"]["predicted_area"] == pytest.approx(0.5)
    assert math.isnan(result["negatives"]["noise"]["share_of_own_sound"])
    tinted = np.asarray(draw_strip(by_itself, by_itself.clips[0])[0])
    asked = Evaluation(listener, EvaluationSettings(scenes, workers=0, mute=True))
    assert asked.run()["predicted_area"] == 0.0
    assert np.array_equal(np.asarray(draw_strip(asked, asked.clips[0])[0]), tinted)
    loud = Evaluation(muted, EvaluationSettings(scenes, workers=0, mute=False))
    heard = loud.run()
    assert heard["mute"] is False
    assert heard["predicted_area"] > 0
    assert not np.array_equal(np.asarray(draw_strip(loud, loud.clips[0])[0]), tinted)
    assert "silence played" in write_report(tmp_path, by_itself, result).read_text()
    assert "silence played" not in write_report(tmp_path, loud, heard).read_text()


def test_a_frame_counts_for_each_listed_class_that_its_truth_shows(scenes: Path, listener: LoadedModel) -> None:
    evaluation = Evaluation(listener, EvaluationSettings(scenes, workers=0))
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
    for count in ("frames", "frames_with_truth"):
        assert {name: row[count] for name, row in result["per_category"].items()} == {
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
def test_a_swap_brings_in_no_class_that_is_visible(
    scenes: Path, listener: LoadedModel, tmp_path: Path, other: int
) -> None:
    listed: list[tuple[list[str], list[str]]] = [(["dog", "cup"], ["dog"])] * CLIPS
    listed[other] = (["cat 9"], ["cat 9"])
    folder = relisted(scenes, tmp_path / "scenes", listed)
    evaluation = Evaluation(listener, EvaluationSettings(folder, negatives=("swap",), workers=0))
    for index, clip in enumerate(evaluation.clips.clips):
        assert clip.wav is not None
        write_wav(clip.wav, np.full(80_000, 0.3 * (index == other), np.float32) * np.sin(np.arange(80_000)))
    swap = evaluation.run()["negatives"]["swap"]
    # the cat is heard with each dog, and a dog, whose wav is silent, with the cat
    assert swap["predicted_area"] == pytest.approx(0.5 * (CLIPS - 1) / CLIPS)
    assert swap["clips_without_fitting_partner"] == 0


def test_swaps_that_are_not_sure_to_be_wrong_are_counted(scenes: Path, listener: LoadedModel, tmp_path: Path) -> None:
    folder = relisted(scenes, tmp_path / "scenes", [(["dog"], ["dog"]), (["dog", "cat 9"], []), (["cup"], ["cat 9"])])
    settings = EvaluationSettings(folder, negatives=("swap",), workers=0)
    # of the second clip both other clips sound like something that it shows
    assert Evaluation(listener, settings).run()["negatives"]["swap"]["clips_without_fitting_partner"] == 1
    (folder / "Multi-sources" / "clips.json").unlink()
    assert Evaluation(listener, settings).run()["negatives"]["swap"]["clips_without_fitting_partner"] == CLIPS


def test_categories_of_s4_keep_their_underscores() -> None:
    clips = [ClipFiles("clip", name, (), (), None, None, None, colour_masks=False) for name in ("male_speech", "")]
    contents = Contents("s4", {})
    assert [contents.visible(clip) for clip in clips] == [{"male_speech"}, set()]
    assert [contents.heard(clip) for clip in clips] == [{"male_speech"}, set()]


@pytest.mark.parametrize("text", ["[]", '{"clips": [{"name": "x", "visible": [[]], "sounding": []}]}', "{"])
def test_a_damaged_listing_is_named(scenes: Path, listener: LoadedModel, tmp_path: Path, text: str) -> None:
    folder = relisted(scenes, tmp_path / "scenes", [([], [])] * CLIPS)
    (folder / "Multi-sources" / "clips.json").write_text(text)
    with pytest.raises(DataError, match=r"clips\.json: not a listing of clips"):
        Evaluation(listener, EvaluationSettings(folder, workers=0))
