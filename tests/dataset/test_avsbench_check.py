"""`avsseg data check`: what is missing or damaged is counted and named, and missing sounds are made again."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from avsseg.cli.data import app
from avsseg.data.avsbench import AvsBenchClips
from avsseg.data.avsbench_check import KINDS, SplitReport, check_dataset
from avsseg.data.avsbench_files import read_wav
from avsseg.data.log_mel_files import read_log_mel
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import DataError, OutputError
from avsseg.media.ffmpeg import find_ffmpeg


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row; those of several lines have them joined by `, `."""
    rows: list[list[str]] = []
    for line in table.splitlines():
        if "│ " not in line:
            continue
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [", ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    return rows


def reports_of(root: Path, subset: str, **options: bool) -> dict[str, SplitReport]:
    return {report.split: report for report in check_dataset(root, [subset], **options)}


def test_whole_folders(tmp_path: Path, object_set: Callable[..., Path], semantic_set: Callable[..., None]) -> None:
    object_set(tmp_path / "Single-source", "s4")
    object_set(tmp_path / "Multi-sources", "ms3", splits=("train", "test"))
    semantic_set(tmp_path / "AVSBench_semantic", doubled=True, labels=("labels_rgb",))
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    nothing = ["none", "none"]  # neither pickles nor videos, which training does not need
    assert rows_of(result.stdout) == [
        ["s4", "train", "1", "1", "5", "1", "1", *nothing],
        ["s4", "val", "1", "1", "5", "5", "1", *nothing],
        ["s4", "test", "1", "1", "5", "5", "1", *nothing],
        ["ms3", "train", "1", "1", "5", "5", "1", *nothing],
        ["ms3", "val", "0", "0", "0", "0", "0", *nothing],
        ["ms3", "test", "1", "1", "5", "5", "1", *nothing],
        ["avss", "train", "3", "3", "20", "16", "3", *nothing],
        ["avss", "val", "0", "0", "0", "0", "0", *nothing],
        ["avss", "test", "1", "1", "5", "5", "1", *nothing],
    ]
    assert result.stderr == ""
    only = run(tmp_path, "--subset", "ms3")
    assert "ms3" in only.stdout
    assert "s4" not in only.stdout


def test_a_clip_that_is_listed_again_and_a_table_without_any(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path / "Multi-sources", "ms3")
    table = tmp_path / "Multi-sources" / "ms3_meta_data.csv"
    header, *rows = table.read_text().splitlines()
    for kind in ("gt_masks", "audio_wav"):
        shutil.copytree(data / kind / "train", data / kind / "val", dirs_exist_ok=True)
    table.write_text("\n".join([header, *rows, "clip_train,train", "clip_train,val"]) + "\n")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert [line.split("csv: ")[1] for line in result.stderr.splitlines()] == [
        "lists clip_train in train and again in train",
        "lists clip_train in train and again in val",
    ]
    table.write_text(header + "\n")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.endswith("ms3_meta_data.csv: lists no clip\n")


def test_the_listing_of_what_sounds_is_read(
    tmp_path: Path, object_set: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    object_set(tmp_path / "Multi-sources", "ms3")
    listing = tmp_path / "Multi-sources" / "clips.json"
    entry = {"name": "clip_train", "visible": [["star"]] * 5, "sounding": [["star"]] * 5}
    listing.write_text(json.dumps({"classes": ["star"], "clips": [entry]}))
    assert run(tmp_path).exit_code == 0
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        f"{listing}: has no entry for clip_val, clip_test: training with class_weight is not told what sounds there"
    ]
    listing.write_text("[]")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "clips.json: not a listing of clips" in result.stderr
    problem = reports_of(tmp_path, "ms3")["train"].problems[0]
    assert (problem.path, problem.kind, problem.state) == (listing, "table", "damaged")
    entry = {"name": "clip_train", "visible": [["star"]] * 6, "sounding": [["star"]] * 6}
    listing.write_text(json.dumps({"classes": ["star"], "clips": [entry]}))
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "clips.json: clip_train has 6 seconds, and clips have at most 5" in result.stderr


def test_problems_are_counted_by_kind(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3")
    frames, masks = data / "visual_frames/clip_val", data / "gt_masks/val/clip_val"
    (frames / "clip_val.mp4_1.png").unlink()
    (frames / "clip_val.mp4_2.png").write_bytes(b"")
    (frames / "clip_val.mp4_3.png").write_bytes(b"no picture")
    for k in (2, 3, 4):
        (masks / f"clip_val_{k}.png").unlink()
    (masks / "clip_val_5.png").write_bytes((masks / "clip_val_5.png").read_bytes()[:50])
    wav = data / "audio_wav/val/clip_val.wav"
    wav.write_bytes(wav.read_bytes()[:1000])
    (data / "audio_wav/test/clip_test.wav").unlink()
    found = reports_of(tmp_path, "ms3")
    val, test, train = found["val"], found["test"], found["train"]
    assert (train.clips, train.complete, train.problems) == (1, 1, [])
    assert (val.clips, val.complete) == (1, 0)
    assert {kind: val.counts(kind) for kind in KINDS} == {
        "frames": {"whole": 2, "missing": 1, "damaged": 2, "short": 0},
        "masks": {"whole": 1, "missing": 3, "damaged": 1, "short": 0},
        "wavs": {"whole": 0, "missing": 0, "damaged": 1, "short": 0},
        "log-mels": {"whole": 0, "missing": 1, "damaged": 0, "short": 0},
        "videos": {"whole": 0, "missing": 1, "damaged": 0, "short": 0},
    }
    assert (test.count("wavs", "missing"), len(test.problems)) == (1, 1)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert rows_of(result.stdout)[1] == [
        "ms3", "val", "1", "0", "2, 1 missing, 2 damaged", "1, 3 missing, 1 damaged", "0, 1 damaged", "none", "none",
    ]  # fmt: skip
    assert len(result.stderr.splitlines()) == 9
    for name in ("clip_val.mp4_1.png: missing", "clip_val.mp4_2.png: not an image", "clip_val.wav: is cut short"):
        assert name in result.stderr
    assert "clip_test.wav: missing" in result.stderr


def test_a_missing_folder_is_many_problems_and_few_lines(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    (data / "visual_frames").rename(data / "away")
    result = run(tmp_path)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 11
    assert lines[0].endswith("visual_frames/train/dog_barking/clip_train/clip_train_1.png: missing")
    assert lines[-1] == "and 5 more; --json lists them all"
    listed = json.loads(run(tmp_path, "--json").stdout)
    assert listed["ok"] is False
    assert sum(len(split["problems"]) for split in listed["splits"]) == 15
    assert listed["splits"][0]["problems"][0]["kind"] == "frames"
    assert listed["splits"][0]["problems"][0]["state"] == "missing"


def test_a_flipped_bit_is_found(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    path = data / "visual_frames/val/dog_barking/clip_val/clip_val_4.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(bytes(content))
    assert reports_of(tmp_path, "s4")["val"].count("frames", "damaged") == 1


def test_labels_of_no_class_and_label_table(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path, labels=("labels_rgb",))
    path = tmp_path / "v2/v2_train/labels_rgb/7.png"
    pixels = np.array(Image.open(path))
    pixels[5, 7] = (1, 2, 3)  # one pixel, which a resized mask might not show
    Image.fromarray(pixels).save(path)
    (tmp_path / "label2idx.json").write_text("{}")
    train = reports_of(tmp_path, "avss")["train"]
    assert [problem.path.name for problem in train.problems] == ["label2idx.json", "7.png"]
    assert "(1, 2, 3)" in train.problems[1].message
    assert (train.clips, train.complete) == (3, 2)


def test_masks_of_two_sizes(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3")
    Image.new("1", (5, 5)).save(data / "gt_masks/val/clip_val/clip_val_4.png")
    (problem,) = reports_of(tmp_path, "ms3")["val"].problems
    assert "clip_val_4.png: is 5x5, the clip's first mask 12x8" in problem.message


def test_pickles_stand_in_and_are_read(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4")
    (data / "audio_wav/val/dog_barking/clip_val.wav").unlink()
    pickled = data / "audio_log_mel/val/dog_barking/clip_val.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(pickle.dumps(torch.zeros(5, 1, 96, 64)))
    result = run(tmp_path)
    assert result.exit_code == 0
    assert rows_of(result.stdout)[1] == ["s4", "val", "1", "1", "5", "5", "0, 1 missing", "1", "none"]
    pickled.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    val = reports_of(tmp_path, "s4")["val"]
    assert (val.complete, val.count("log-mels", "missing"), val.count("wavs", "missing")) == (0, 1, 1)
    assert "and no pickled log-mel stands in for it" in val.problems[0].message
    assert "asks for os.system" in val.problems[1].message


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_fix_audio(
    tmp_path: Path, object_set: Callable[..., Path], make_video: Callable[..., Path], subset: str
) -> None:
    data = object_set(tmp_path, subset)
    place = "val/dog_barking" if subset == "s4" else "val"
    wav, pickled = data / f"audio_wav/{place}/clip_val.wav", data / f"audio_log_mel/{place}/clip_val.pkl"
    wav.unlink()
    video = data / "raw_videos" / (place if subset == "s4" else "") / "clip_val.mp4"
    video.parent.mkdir(parents=True)
    make_video(video, seconds=5.0)
    assert run(tmp_path).exit_code == 1
    assert not wav.exists()
    result = run(tmp_path, "--fix-audio", "--json")
    assert result.exit_code == 0, result.output
    written = {
        split["split"]: (split["files"]["wavs"]["made"], split["files"]["log-mels"]["made"])
        for split in json.loads(result.stdout)["splits"]
    }
    assert written == {"train": (0, 1), "val": (1, 1), "test": (0, 1)}
    waveform = read_wav(wav)
    assert len(waveform) == pytest.approx(80_000, abs=1600)
    assert np.argmax(np.abs(np.fft.rfft(waveform[:16_000]))) == 440
    example = AvsBenchClips(tmp_path, subset, "val", size=8)[0]
    assert torch.allclose(read_log_mel(pickled), example.log_mel, atol=1e-5)
    assert sorted(path.name for path in pickled.parent.iterdir()) == ["clip_val.pkl"]
    again = run(tmp_path, "--fix-audio")
    assert again.exit_code == 0
    assert "made now" not in again.stdout
    assert rows_of(again.stdout)[1][4:] == ["5", "5", "1", "1", "1"]


def test_what_cannot_be_fixed_says_why(
    tmp_path: Path, object_set: Callable[..., Path], make_video: Callable[..., Path]
) -> None:
    data = object_set(tmp_path, "ms3")
    for split in ("train", "val", "test"):
        (data / f"audio_wav/{split}/clip_{split}.wav").unlink()
    (data / "raw_videos").mkdir()
    make_video(data / "raw_videos/clip_val.mp4", seconds=1.0, sound=False)
    (data / "raw_videos/clip_test.mp4").write_bytes(b"no video")
    found = reports_of(tmp_path, "ms3", fix_audio=True)
    messages = [found[split].problems[0].message for split in ("train", "val", "test")]
    assert "no raw video to make it from" in messages[0]
    assert "has no sound" in messages[1]
    assert "it cannot be made from the raw video" in messages[2]
    assert [[problem.kind for problem in report.problems] for report in found.values()] == [
        ["wavs"], ["wavs", "videos"], ["wavs", "videos"],
    ]  # fmt: skip
    assert not list(data.rglob("*.wav"))


def test_damaged_wavs_are_never_written_over(
    tmp_path: Path, object_set: Callable[..., Path], make_video: Callable[..., Path]
) -> None:
    data = object_set(tmp_path, "ms3")
    (data / "raw_videos").mkdir()
    make_video(data / "raw_videos/clip_val.mp4", seconds=5.0)
    wav = data / "audio_wav/val/clip_val.wav"
    wav.write_bytes(b"mine")
    result = run(tmp_path, "--fix-audio")
    assert result.exit_code == 1
    assert wav.read_bytes() == b"mine"
    assert "remove it, and --fix-audio makes it from the raw video" in result.stderr
    # but the log-mel is made, from the video
    example = AvsBenchClips(tmp_path, "ms3", "train", size=8)[0]
    wav.unlink()
    pickled = read_log_mel(data / "audio_log_mel/val/clip_val.pkl")
    assert pickled.shape == example.log_mel.shape
    assert run(tmp_path, "--fix-audio").exit_code == 0
    assert torch.allclose(pickled, AvsBenchClips(tmp_path, "ms3", "val", size=8)[0].log_mel, atol=0.01)


@pytest.mark.parametrize("subset", ["s4", "avss"])
@pytest.mark.parametrize("damage", ["damaged", "short"])
def test_damaged_log_mels_beside_wavs(
    tmp_path: Path, object_set: Callable[..., Path], semantic_set: Callable[..., None], subset: str, damage: str
) -> None:
    if subset == "s4":
        pickled = object_set(tmp_path, "s4") / "audio_log_mel/test/dog_barking/clip_test.pkl"
    else:
        semantic_set(tmp_path)
        pickled = tmp_path / "v1s/v1s_test/audio.pkl"
    pickled.parent.mkdir(parents=True, exist_ok=True)
    pickled.write_bytes(b"junk" if damage == "damaged" else pickle.dumps(torch.zeros(2, 1, 96, 64)))
    result = run(tmp_path)
    assert result.exit_code == 1
    # training reads the wav
    assert rows_of(result.stdout)[2] == [subset, "test", "1", "1", "5", "5", "1", f"0, 1 {damage}", "none"]
    (message,) = result.stderr.splitlines()
    assert "pkl: " in message
    assert message.endswith("--fix-audio makes it anew from the wav or the raw video")
    example = AvsBenchClips(tmp_path, subset, "test", size=8)[0]
    fixed = run(tmp_path, "--fix-audio")
    assert fixed.exit_code == 0, fixed.stderr
    assert rows_of(fixed.stdout)[2][7] == "1, 1 made now"
    assert torch.allclose(read_log_mel(pickled), example.log_mel[:5], atol=1e-5)
    assert pickled.with_name(f"{pickled.name}.replaced").exists()


@pytest.mark.parametrize(
    "content", [torch.zeros(10, 128), np.zeros((5, 1, 96, 64), np.float32)], ids=["shape", "numpy"]
)
def test_pickles_of_something_else_are_left_alone(
    tmp_path: Path, semantic_set: Callable[..., None], content: object
) -> None:
    semantic_set(tmp_path)
    pickled = tmp_path / "v1s/v1s_test/audio.pkl"  # as COMBO adds them
    pickled.write_bytes(pickle.dumps(content))
    before = pickled.read_bytes()
    for more in ((), ("--fix-audio",)):
        result = run(tmp_path, *more)
        assert result.exit_code == 0, result.stderr
        assert rows_of(result.stdout)[2][7] == "0, 1 missing" or rows_of(result.stdout)[2][7] == "none"
        assert pickled.read_bytes() == before
    (tmp_path / "v1s/v1s_test/audio.wav").unlink()
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "audio.pkl: " in result.stderr


def test_log_mels_that_cannot_be_made_remain(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3", splits=("train",))
    wav, pickled = data / "audio_wav/train/clip_train.wav", data / "audio_log_mel/train/clip_train.pkl"
    wav.write_bytes(b"junk")
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(b"junk")
    result = run(tmp_path, "--fix-audio")
    assert result.exit_code == 1
    assert rows_of(result.stdout)[0][3:] == ["0", "5", "5", "0, 1 damaged", "0, 1 damaged", "none"]
    assert "no raw video to make it from" in result.stderr
    assert pickled.read_bytes() == b"junk"


@pytest.mark.parametrize(("seconds", "complete"), [(4.1, 1), (3.9, 0), (100 / 16_000, 0)])
def test_wavs_shorter_than_their_clips(
    tmp_path: Path, object_set: Callable[..., Path], sound_file: Callable[..., None], seconds: float, complete: int
) -> None:
    data = object_set(tmp_path, "ms3")
    sound_file(data / "audio_wav/val/clip_val.wav", seconds)
    val = reports_of(tmp_path, "ms3")["val"]
    assert (val.complete, val.count("wavs", "short")) == (complete, 1 - complete)
    assert [problem.state for problem in val.problems] == ["short"] * (1 - complete)
    if not complete:
        assert f"clip_val.wav: has {seconds:.1f} s, its clip has 5 s" in val.problems[0].message
        run(tmp_path, "--fix-audio")
        assert not (data / "audio_log_mel/val/clip_val.pkl").exists()  # it would hold silence


def test_clips_of_ten_seconds_have_longer_sounds(
    tmp_path: Path, semantic_set: Callable[..., None], sound_file: Callable[..., None]
) -> None:
    semantic_set(tmp_path)
    sound_file(tmp_path / "v2/v2_train/audio.wav", 5, rate=44_100, channels=2)
    train = reports_of(tmp_path, "avss")["train"]
    assert (train.complete, train.count("wavs", "short")) == (2, 1)


def test_raw_videos_are_decoded(
    tmp_path: Path, object_set: Callable[..., Path], make_video: Callable[..., Path], truncated_clip: Path
) -> None:
    data = object_set(tmp_path, "s4")
    places = {split: data / f"raw_videos/{split}/dog_barking/clip_{split}.mp4" for split in ("train", "val", "test")}
    for path in places.values():
        path.parent.mkdir(parents=True)
    make_video(places["train"], seconds=5.0)
    places["val"].write_bytes(b"junk")
    shutil.copy(truncated_clip, places["test"])  # its index and its first picture are whole
    result = run(tmp_path)
    assert result.exit_code == 1
    # they are not needed for training
    assert [row[3:] for row in rows_of(result.stdout)] == [
        ["1", "5", "1", "1", "none", "1"],
        ["1", "5", "5", "1", "none", "0, 1 damaged"],
        ["1", "5", "5", "1", "none", "0, 1 damaged"],
    ]
    assert "clip_val.mp4: is not a video" in result.stderr
    assert "clip_test.mp4: is damaged (" in result.stderr
    skipped = run(tmp_path, "--no-videos", "--jobs", 2)
    assert skipped.exit_code == 0
    assert [row[-1] for row in rows_of(skipped.stdout)] == ["not read"] * 3
    places["val"].unlink()
    make_video(places["val"], seconds=2.0, sound=False)
    val = reports_of(tmp_path, "s4")["val"]
    assert (val.complete, val.count("videos", "short")) == (1, 1)
    places["val"].unlink()
    places["test"].unlink()
    assert run(tmp_path).exit_code == 0
    assert reports_of(tmp_path, "s4")["val"].count("videos", "missing") == 1


def test_a_cut_between_key_frames_is_no_damage(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "s4", splits=("val",))
    video = data / "raw_videos/val/dog_barking/clip_val.mp4"
    video.parent.mkdir(parents=True)
    whole = tmp_path / "whole.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=20"]
    open_gop = ["-c:v", "libx264", "-x264-params", "open-gop=1:keyint=48:bframes=4:b-pyramid=normal"]
    for arguments in ([*source, *open_gop, whole], ["-i", whole, "-ss", "7.9", "-t", "7", "-c", "copy", video]):
        subprocess.run([find_ffmpeg().path, "-v", "error", *arguments], check=True, capture_output=True)
    shown = subprocess.run([find_ffmpeg().path, "-v", "error", "-i", video, "-f", "null", "-"], capture_output=True)
    assert shown.stderr  # ffmpeg complains all the same
    assert reports_of(tmp_path, "s4")["val"].count("videos", "whole") == 1


@pytest.mark.parametrize("folder", ["Single-source", ""])
def test_a_subset_without_its_table_is_a_problem(tmp_path: Path, object_set: Callable[..., Path], folder: str) -> None:
    object_set(tmp_path / "Multi-sources", "ms3")
    object_set(tmp_path / folder, "s4")
    (tmp_path / folder / "s4_meta_data.csv").unlink()
    result = run(tmp_path)
    assert result.exit_code == 1
    first, *others = rows_of(result.stdout)
    assert first[:3] == ["s4", "table missing", ""]
    assert [row[:4] for row in others] == [["ms3", split, "1", "1"] for split in ("train", "val", "test")]
    assert result.stderr.startswith(str(tmp_path / folder / "s4_meta_data.csv: missing. Give the folder that holds"))
    listed = json.loads(run(tmp_path, "--json").stdout)
    assert (listed["ok"], listed["splits"][0]["problems"][0]["kind"]) == (False, "table")
    assert run(tmp_path, "--subset", "ms3").exit_code == 0
    (tmp_path / folder / "s4_meta_data.csv").write_text("name,start,category,split\nx,0,dog_barking,Training\n")
    assert rows_of(run(tmp_path).stdout)[0][:2] == ["s4", "table damaged"]


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_an_unfinished_set_of_data_synth_says_so(tmp_path: Path, subset: Literal["s4", "ms3"]) -> None:
    settings = SynthSettings(subset=subset, train=1, val=1, test=0, size=32, height=32)
    clips = write_dataset(tmp_path, settings)
    next(clips)
    clips.close()
    result = run(tmp_path)
    assert result.exit_code == 1
    assert f"{subset}_meta_data.csv: missing, since `avsseg data synth` or" in result.stderr
    assert "Give the same command again" in result.stderr
    with pytest.raises(DataError, match="Give the same command again"):
        AvsBenchClips(tmp_path, subset, "train", size=8)
    assert len(list(write_dataset(tmp_path, settings))) == 2  # as the message says
    assert run(tmp_path).exit_code == 0


def test_semantic_sets_get_no_pickles(tmp_path: Path, semantic_set: Callable[..., None]) -> None:
    semantic_set(tmp_path)
    assert run(tmp_path, "--fix-audio").exit_code == 0
    assert not list(tmp_path.rglob("*.pkl"))


def test_an_unwritable_folder_stops(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    data = object_set(tmp_path, "ms3")
    (data / "audio_log_mel").touch()  # a file where the folder belongs
    with pytest.raises(OutputError, match=r"clip_train\.pkl: cannot be written"):
        reports_of(tmp_path, "ms3", fix_audio=True)


def test_folders_without_a_subset(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, DataError)
    assert "It must hold one at least of Single-source/ with s4_meta_data.csv (s4)" in str(result.exception)
    assert "\n" not in str(result.exception)
    object_set(tmp_path, "ms3")
    other = run(tmp_path, "--subset", "s4")
    assert other.exit_code == 1
    assert "s4_meta_data.csv: missing" in other.stderr


def test_progress_counts_every_clip(tmp_path: Path, object_set: Callable[..., Path]) -> None:
    object_set(tmp_path, "ms3")
    announced: list[int] = []
    done: list[int] = []
    check_dataset(tmp_path, ["ms3"], started=announced.append, advanced=lambda: done.append(1))
    assert announced == [3]
    assert len(done) == 3


def test_the_sound_of_a_video_that_is_cut_short_is_no_remedy(
    tmp_path: Path, object_set: Callable[..., Path], truncated_clip: Path
) -> None:
    data = object_set(tmp_path, "ms3")
    (data / "audio_wav/val/clip_val.wav").unlink()
    (data / "raw_videos").mkdir()
    shutil.copy(truncated_clip, data / "raw_videos/clip_val.mp4")
    found = reports_of(tmp_path, "ms3", fix_audio=True)["val"]
    assert "before the video, which is damaged" in found.problems[0].message
    assert not (data / "audio_wav/val/clip_val.wav").exists()
