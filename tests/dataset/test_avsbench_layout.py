"""Finding the files of AVSBench's clips in every variant of its folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avsseg.data.avsbench_layout import list_clips, subsets_in
from avsseg.errors import DataError


@pytest.mark.parametrize("folder", ["", "Single-source"])
def test_s4_as_distributed(tmp_path: Path, object_set: Callable[..., Path], folder: str) -> None:
    data = object_set(tmp_path / folder, "s4")
    (train,) = list_clips(tmp_path, "s4", "train")
    assert (train.name, train.category, train.colour_masks) == ("clip_train", "dog_barking", False)
    place = data / "visual_frames/train/dog_barking/clip_train"
    assert train.frames == tuple(place / f"clip_train_{k}.png" for k in range(1, 6))
    assert train.masks == (data / "gt_masks/train/dog_barking/clip_train/clip_train_1.png",)
    assert train.wav == data / "audio_wav/train/dog_barking/clip_train.wav"
    assert train.log_mel is None
    assert train.video is None
    (test,) = list_clips(tmp_path, "s4", "test")
    assert [path.name for path in test.masks] == [f"clip_test_{k}.png" for k in range(1, 6)]


@pytest.mark.parametrize("folder", ["", "Multi-sources"])
@pytest.mark.parametrize("literal", [True, False])
def test_ms3_with_and_without_literal_mp4(
    tmp_path: Path, object_set: Callable[..., Path], folder: str, literal: bool
) -> None:
    data = object_set(tmp_path / folder, "ms3", literal=literal)
    (clip,) = list_clips(tmp_path, "ms3", "train")
    ending = ".mp4" if literal else ""
    assert clip.frames == tuple(data / f"visual_frames/clip_train/clip_train{ending}_{k}.png" for k in range(1, 6))
    assert clip.masks == tuple(data / f"gt_masks/train/clip_train/clip_train_{k}.png" for k in range(1, 6))
    assert clip.wav == data / "audio_wav/train/clip_train.wav"
    assert clip.category == ""


def test_both_namings_in_one_folder_are_not_mixed(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3", literal=False)
    stray = data / "visual_frames/clip_train/clip_train.mp4_3.png"
    stray.write_bytes((data / "visual_frames/clip_train/clip_train_3.png").read_bytes())
    (clip,) = list_clips(tmp_path, "ms3", "train")
    assert not any(".mp4" in path.name for path in clip.frames)


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_zero_based_names_and_jpg_frames(tmp_path: Path, object_set: Callable[..., Path], subset: str) -> None:
    object_set(tmp_path, subset, base=0, frame_suffix=".jpg", literal=False)
    (clip,) = list_clips(tmp_path, subset, "test")
    assert [path.name for path in clip.frames] == [f"clip_test_{k}.jpg" for k in range(5)]
    assert [path.name for path in clip.masks] == [f"clip_test_{k}.png" for k in range(5)]
    (train,) = list_clips(tmp_path, subset, "train")
    assert train.masks[0].name == "clip_train_0.png"


def test_a_missing_first_file_is_no_other_base(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    frames = data / "visual_frames/val/dog_barking/clip_val"
    (frames / "clip_val_1.png").unlink()
    with pytest.raises(DataError, match=r"clip_val_1\.png: missing, needed by val clip clip_val$"):
        list_clips(tmp_path, "s4", "val")


def test_files_that_are_no_frames_are_passed_over(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    frames = data / "visual_frames/val/dog_barking/clip_val"
    for name in ("._clip_val_1.png", "clip_val_0.txt", "Thumbs.db", "other_0.png"):
        (frames / name).touch()
    (clip,) = list_clips(tmp_path, "s4", "val")
    assert [path.name for path in clip.frames] == [f"clip_val_{k}.png" for k in range(1, 6)]


@pytest.mark.parametrize("folder", ["", "AVSBench_semantic", "avs_released"])
@pytest.mark.parametrize("doubled", [True, False])
def test_avss_as_distributed_and_doubled(
    tmp_path: Path, semantic_set: Callable[..., None], folder: str, doubled: bool
) -> None:
    semantic_set(tmp_path / folder, doubled=doubled)
    weak, several, v2 = list_clips(tmp_path, "avss", "train")
    place = tmp_path / folder / ("v2/v2" if doubled else "v2") / "v2_train"
    assert v2.frames == tuple(place / f"frames/{k}.jpg" for k in range(10))
    assert v2.masks == tuple(place / f"labels_semantic/{k}.png" for k in range(10))
    assert v2.wav == place / "audio.wav"
    assert v2.category == "woman_horse"
    assert [len(clip.frames) for clip in (weak, several, v2)] == [5, 5, 10]
    assert [len(clip.masks) for clip in (weak, several, v2)] == [1, 5, 10]
    (test,) = list_clips(tmp_path, "avss", "test")
    assert len(test.masks) == 5


@pytest.mark.parametrize(
    ("labels", "chosen"),
    [
        (("labels_rgb",), "labels_rgb"),
        (("processed_labels_semantic",), "processed_labels_semantic"),
        (("processed_labels_semantic", "labels_rgb"), "labels_rgb"),
        (("labels_rgb", "labels_semantic"), "labels_semantic"),
    ],
)
def test_avss_label_folders(
    tmp_path: Path, semantic_set: Callable[..., None], labels: tuple[str, ...], chosen: str
) -> None:
    semantic_set(tmp_path, labels=labels, frames="processed_frames")
    (clip,) = list_clips(tmp_path, "avss", "test")
    assert {path.parent.name for path in clip.masks} == {chosen}
    assert clip.colour_masks == (chosen == "labels_rgb")
    assert clip.frames[0].parent.name == "processed_frames"


def test_avss_counted_from_one(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path, base=1)
    weak, *_ = list_clips(tmp_path, "avss", "train")
    assert [path.stem for path in weak.frames] == ["1", "2", "3", "4", "5"]
    assert [path.stem for path in weak.masks] == ["1"]


def test_avss_missing_first_label_is_no_other_base(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path, labels=("labels_rgb",))
    (tmp_path / "v1m/v1m_train/labels_rgb/0.png").unlink()
    with pytest.raises(DataError, match=r"labels_rgb/0\.png: missing, needed by train clip v1m_train"):
        list_clips(tmp_path, "avss", "train")


@pytest.mark.parametrize("base", [0, 1, None])
def test_label_table_counts_from_one_or_zero_or_is_not_there(
    tmp_path: Path, semantic_set: Callable[..., None], base: int | None
) -> None:
    semantic_set(tmp_path, label_base=base)
    assert len(list_clips(tmp_path, "avss", "train")) == 3


def test_a_wrong_label_table_stops(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    table = tmp_path / "label2idx.json"
    table.write_text(table.read_text().replace('"violin"', '"x"').replace('"wolf"', '"violin"'))
    with pytest.raises(DataError, match="violin has number 70, must have 69"):
        list_clips(tmp_path, "avss", "train")


def test_sound_is_a_wav_or_a_pickle(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    wav = data / "audio_wav/val/dog_barking/clip_val.wav"
    wav.unlink()
    with pytest.raises(DataError, match=r"clip_val\.wav: missing.*avsseg data check .* --fix-audio"):
        list_clips(tmp_path, "s4", "val")
    pickled = data / "audio_log_mel/val/dog_barking/clip_val.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.touch()
    video = data / "raw_videos/val/dog_barking/clip_val.mp4"
    video.parent.mkdir(parents=True)
    video.touch()
    (clip,) = list_clips(tmp_path, "s4", "val")
    assert (clip.wav, clip.log_mel, clip.video) == (None, pickled, video)
    (promised,) = list_clips(tmp_path, "s4", "val", complete=False)
    assert promised.wav == wav


@pytest.mark.parametrize("subset", ["s4", "ms3", "avss"])
def test_an_unchecked_listing_names_what_should_be_there(
    tmp_path: Path, object_set: Callable[..., Path], semantic_set: Callable[..., None], subset: str
) -> None:
    if subset == "avss":
        semantic_set(tmp_path)
    else:
        object_set(tmp_path, subset)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".png", ".jpg", ".wav"):
            path.unlink()
    clip = list_clips(tmp_path, subset, "test", complete=False)[0]
    first = {"s4": "clip_test_1.png", "ms3": "clip_test.mp4_1.png", "avss": "0.jpg"}[subset]
    assert clip.frames[0].name == first
    assert len(clip.masks) == 5
    assert clip.wav is not None
    if subset == "ms3":
        assert clip.video == tmp_path / "ms3_data/raw_videos/clip_test.mp4"
        assert clip.log_mel == tmp_path / "ms3_data/audio_log_mel/test/clip_test.pkl"
    with pytest.raises(DataError, match="missing, needed by test clip"):
        list_clips(tmp_path, subset, "test")


@pytest.mark.parametrize("name", ["../outside", "", "a/b", ".."])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "ms3_meta_data.csv").write_text(f'name,split\n"{name}",train\n')
    with pytest.raises(DataError, match="line 2 has the name"):
        list_clips(tmp_path, "ms3", "train")


@pytest.mark.parametrize(
    ("subset", "table", "message"),
    [
        ("s4", "name,start,category,split\na,0\n", "line 2 has 2 columns"),
        ("ms3", "name,split\na,Training\n", "line 2 has split 'Training'"),
        ("avss", "vid,uid,split\na,b,train\n", "needs the columns uid, split and label"),
        ("avss", "uid,split,label\nb,train,v3\n", "label 'v3', not v1s, v1m, v2"),
        ("ms3", "name,split\na,val\n", "lists no train clip"),
    ],
)
def test_damaged_tables(tmp_path: Path, subset: str, table: str, message: str) -> None:
    (tmp_path / ("metadata.csv" if subset == "avss" else f"{subset}_meta_data.csv")).write_text(table)
    with pytest.raises(DataError, match=message):
        list_clips(tmp_path, subset, "train")


def test_a_table_with_a_byte_order_mark(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    table = tmp_path / "metadata.csv"
    # uid first, as its name is what the mark would hide
    table.write_bytes(b"\xef\xbb\xbfuid,split,label\r\nv1s_test,test,v1s\r\n")
    assert [clip.name for clip in list_clips(tmp_path, "avss", "test")] == ["v1s_test"]


def test_subsets_that_are_there(
    tmp_path: Path, object_set: Callable[..., Path], semantic_set: Callable[..., None]
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        subsets_in(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no AVSBench subset.*Single-source/ with s4_meta_data\.csv"):
        subsets_in(tmp_path)
    object_set(tmp_path / "Multi-sources", "ms3")
    semantic_set(tmp_path / "avs_released")
    assert subsets_in(tmp_path) == ("ms3", "avss")
    # a folder that should hold a table, or lie beside one, tells that the subset was meant to be there
    for place, subset in (("Single-source", "s4"), ("s4_data", "s4"), ("ms3_data", "ms3"), ("v1s", "avss")):
        (tmp_path / f"with_{place}" / place).mkdir(parents=True)
        assert subsets_in(tmp_path / f"with_{place}") == (subset,)
    with pytest.raises(DataError, match=r"s4_meta_data\.csv: missing\. Give the folder that holds Single-source/"):
        list_clips(tmp_path, "s4", "train")
