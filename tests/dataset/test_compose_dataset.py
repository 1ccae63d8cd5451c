"""Composed datasets on disk: AVSBench's MS3 layout, videos that play, the listing, the same files whatever --jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avsseg.data.avsbench import list_clips, read_wav
from avsseg.data.compose import compose_clip
from avsseg.data.compose_dataset import ComposedDatasetSettings, write_composed_dataset
from avsseg.data.compose_pool import ComposeSettings, SplitSources
from avsseg.data.compose_sources import Sources
from avsseg.data.layout_writer import frame_times
from avsseg.errors import OutputError, UsageError
from avsseg.media.probe import probe

TINY = ComposedDatasetSettings(train=4, val=1, test=2, seed=3, size=48, height=48, frame_rate=10)


@pytest.fixture(scope="module")
def composed(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composed") / "new"
    names = [("train", f"train_0300000{i}") for i in range(4)]
    names += [("val", "val_03000000"), ("test", "test_03000000"), ("test", "test_03000001")]
    assert list(write_composed_dataset(folder, sources, TINY)) == names
    return folder / "Multi-sources"


def listing(root: Path) -> list[dict[str, Any]]:
    clips: list[dict[str, Any]] = json.loads((root / "clips.json").read_text(encoding="utf-8"))["clips"]
    return clips


def test_files_are_the_clips_of_their_seeds(composed: Path, sources: Sources) -> None:
    for split, count in TINY.counts().items():
        clips = list_clips(composed.parent, "ms3", split)
        assert len(clips) == count
        part = SplitSources(sources, split, TINY.clips)
        for index, files in enumerate(clips):
            clip = compose_clip(part, 3_000_000 + index)
            painted = [clip.scene.paint(t, 48, 48) for t in frame_times(5, 10)]
            masks = clip.masks([classes for _, classes in painted])
            for t in range(5):
                assert np.array_equal(np.asarray(Image.open(files.frames[t])), painted[t][0])
                assert np.array_equal(np.asarray(Image.open(files.masks[t])) == 255, masks[t])
            assert files.wav is not None
            assert np.abs(read_wav(files.wav) - clip.waveform).max() < 1e-4


def test_frames_are_those_that_avsbench_keeps() -> None:
    assert frame_times(3, 20) == [0.9, 1.9, 2.9]
    assert frame_times(2, 16) == [15 / 16, 31 / 16]


def test_the_videos_play(composed: Path) -> None:
    for path in sorted((composed / "ms3_data/raw_videos").iterdir()):
        info = probe(path)
        assert info.has_audio
        assert info.height == 48
        assert info.duration_s == pytest.approx(5, abs=0.15)
    assert len(list((composed / "ms3_data/raw_videos").iterdir())) == 7


def test_the_listing_tells_what_each_clip_is_made_of(composed: Path, sources: Sources) -> None:
    document = json.loads((composed / "clips.json").read_text(encoding="utf-8"))
    assert document["classes"] == list(sources.classes)
    assert document["settings"]["seed"] == 3
    pictures = {p.name: p.split for p in sources.pictures}
    recordings = {s.name: s for s in sources.sounds}
    for entry in document["clips"]:
        assert {pictures[name] for name in entry["pictures"]} == {entry["split"]}
        assert {recordings[name].split for name in entry["recordings"]} <= {entry["split"]}
        voices = {sources.classes[recordings[name].class_index] for name in entry["recordings"]}
        assert {name for second in entry["sounding"] for name in second} <= voices
        masks = [
            np.asarray(
                Image.open(composed / f"ms3_data/gt_masks/{entry['split']}/{entry['name']}/{entry['name']}_{t}.png")
            )
            for t in range(1, 6)
        ]
        for mask, visible, heard in zip(masks, entry["visible"], entry["sounding"], strict=True):
            assert mask.any() == bool(set(visible) & set(heard))


def test_the_same_files_with_two_processes(composed: Path, sources: Sources, tmp_path: Path) -> None:
    list(write_composed_dataset(tmp_path, sources, TINY, jobs=2))
    again = tmp_path / "Multi-sources"
    written = sorted(p.relative_to(composed) for p in composed.rglob("*.*") if p.is_file())
    assert written == sorted(p.relative_to(again) for p in again.rglob("*.*") if p.is_file())
    assert len(written) == 7 * (5 + 5 + 1 + 1) + 2
    for name in written:
        if name.suffix != ".mp4":
            assert (again / name).read_bytes() == (composed / name).read_bytes()


def test_a_finished_dataset_is_refused_and_an_unfinished_one_written_anew(sources: Sources, tmp_path: Path) -> None:
    settings = ComposedDatasetSettings(train=2, val=0, test=0, size=32, height=32, frame_rate=4)
    clips = write_composed_dataset(tmp_path, sources, settings)
    next(clips)
    clips.close()
    root = tmp_path / "Multi-sources"
    assert [p.name for p in root.iterdir()] == ["ms3_data"]
    list(write_composed_dataset(tmp_path, sources, settings))
    assert (root / "ms3_meta_data.csv").read_text().split() == [
        "name,split",
        "train_00000000,train",
        "train_00000001,train",
    ]
    assert [entry["split"] for entry in listing(root)] == ["train", "train"]
    with pytest.raises(UsageError, match=r"ms3_meta_data\.csv exists"):
        next(write_composed_dataset(tmp_path, sources, settings))


def test_wrong_requests_are_one_line_errors(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no clips"):
        next(write_composed_dataset(tmp_path / "x", sources, ComposedDatasetSettings(0, 0, 0)))
    with pytest.raises(UsageError, match="5 s"):
        ComposedDatasetSettings(clips=ComposeSettings(seconds=4))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        next(write_composed_dataset(tmp_path / "file/x", sources, TINY))
    silent = Sources(sources.classes, sources.visible, sources.pictures, ())
    with pytest.raises(UsageError, match="no class of the train split"):
        next(write_composed_dataset(tmp_path / "x", silent, TINY))
    assert not (tmp_path / "x").exists()
