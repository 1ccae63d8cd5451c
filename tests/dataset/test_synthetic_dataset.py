"""Datasets on disk: AVSBench's layouts, videos that play, and reading them back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from avsseg.cli.data import app
from avsseg.data.avsbench import AvsBenchClips, list_clips, read_wav
from avsseg.data.synthetic import sounding_seconds
from avsseg.data.synthetic_dataset import SynthSettings, _draw_clip, two_in_turn, write_clip, write_dataset
from avsseg.data.synthetic_scene import NOBODY
from avsseg.data.synthetic_shapes import CLASSES
from avsseg.errors import DataError, OutputError, UsageError
from avsseg.media.probe import probe

TINY = {"train": 2, "val": 1, "test": 1, "size": 64, "height": 64, "frame_rate": 10}


@pytest.fixture(scope="module")
def ms3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ms3")
    assert len(list(write_dataset(folder, SynthSettings(subset="ms3", **TINY)))) == 4
    return folder


@pytest.fixture(scope="module")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s4")
    assert len(list(write_dataset(folder, SynthSettings(subset="s4", **TINY)))) == 4
    return folder


def test_ms3_reads_back(ms3: Path) -> None:
    clips = AvsBenchClips(ms3, "ms3", "train", size=32)
    assert len(clips) == 2
    example = clips[0]
    assert example.frames.shape == (5, 32, 32, 3)
    assert example.log_mel.shape == (5, 1, 96, 64)
    assert example.masks.shape == (5, 32, 32)
    assert example.annotated.all()
    assert list_clips(ms3, "ms3", "train")[0].frames[0].name.endswith(".mp4_1.png")


def test_what_sounds_is_given_by_second(ms3: Path) -> None:
    clips = AvsBenchClips(ms3, "ms3", "train", size=32, list_sounds=True)
    document = json.loads((ms3 / "Multi-sources" / "clips.json").read_text())
    listed = {entry["name"]: entry["sounding"] for entry in document["clips"]}
    seconds = [[thing.split()[0] for thing in second] for clip in listed.values() for second in clip]
    assert set(clips.sound_classes) == {name for second in seconds for name in second}
    for example in clips:
        names = [{clips.sound_classes[k] for k in range(len(row)) if row[k]} for row in example.heard]
        assert names == [{thing.split()[0] for thing in second} for second in listed[example.name]]
    assert AvsBenchClips(ms3, "ms3", "train", size=32)[0].heard.shape == (5, 0)


def test_the_listing_names_look_alikes_and_voices_of_nobody(tmp_path: Path) -> None:
    for _ in write_dataset(tmp_path / "many", SynthSettings(train=24, val=0, test=0, size=32, height=32, frame_rate=1)):
        pass
    listing = json.loads((tmp_path / "many" / "Multi-sources" / "clips.json").read_text())["clips"]
    drawn = [_draw_clip(SynthSettings(), "train", entry["seed"]) for entry in listing]
    doubles = sum(thing.silent for clip in drawn for thing in clip.description.objects)
    assert doubles >= 3
    off_screen = 0
    for entry, clip in zip(listing, drawn, strict=True):
        for k, thing in enumerate(clip.description.objects):
            assert not (thing.silent and any(f"{CLASSES[thing.class_index].name} {k}" in s for s in entry["sounding"]))
        families = {event.timbre.family for event in clip.events if event.object_index == NOBODY}
        named = {name for second in entry["sounding"] for name in second if name.endswith(" off-screen")}
        assert named == {f"{CLASSES[family].name} off-screen" for family in families}
        off_screen += len(named)
    assert off_screen >= 3
    clips = AvsBenchClips(tmp_path / "many", "ms3", "train", size=32, list_sounds=True)
    assert set(clips.sound_classes) <= {family.name for family in CLASSES}


def test_s4_training_clips_have_the_first_mask_only(s4: Path) -> None:
    train, val = AvsBenchClips(s4, "s4", "train", size=32), AvsBenchClips(s4, "s4", "val", size=32)
    assert train[0].annotated.tolist() == [True, False, False, False, False]
    assert val[0].annotated.all()
    assert {clip.category for clip in train.clips} <= {
        "star", "wheel", "fish", "ladder", "crescent", "cross", "gourd", "zigzag",
    }  # fmt: skip


def test_wrong_requests_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no clips"):
        next(write_dataset(tmp_path, SynthSettings(train=0, val=0, test=0)))
    in_the_way = tmp_path / "file.mp4"
    in_the_way.touch()
    with pytest.raises(OutputError, match="cannot be written"):
        next(write_dataset(in_the_way / "data", SynthSettings(**TINY)))
    with pytest.raises(UsageError, match="exists already"):
        write_clip(in_the_way, 0)
    with pytest.raises(UsageError, match=r"ends in \.mp4"):
        write_clip(tmp_path / "clip.avi", 0)


def test_ending_early_renders_no_further_clips(tmp_path: Path) -> None:
    clips = write_dataset(tmp_path, SynthSettings(**{**TINY, "train": 40}), jobs=2)
    next(clips)
    clips.close()
    assert len(list(tmp_path.rglob("*.mp4"))) < 20
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
def test_ctrl_c_ends_all_processes_without_a_word_of_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "avsseg", "data", "synth", str(tmp_path / "scenes"), "--clips", "40"]
    started = subprocess.Popen(
        [*command, "--size", "32", "--jobs", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in the background of a script ignore it, and what they start would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.rglob("*.mp4")) and started.poll() is None:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)
    _, told = started.communicate(timeout=300)
    assert started.returncode == 130
    assert "Traceback" not in told
    assert len(list(tmp_path.rglob("*.mp4"))) < 20


def test_mask_encodings(ms3: Path, s4: Path) -> None:
    with Image.open(list_clips(ms3, "ms3", "val")[0].masks[0]) as several:
        assert several.mode == "P"
        assert set(np.unique(np.asarray(several))) <= {0, 255}
    with Image.open(list_clips(s4, "s4", "val")[0].masks[0]) as single:
        assert single.mode == "1"


def test_videos_and_sounds_are_real(ms3: Path) -> None:
    info = probe(ms3 / "Multi-sources/ms3_data/raw_videos/train_00000000.mp4")
    assert info.has_audio
    assert info.height == 64
    assert info.duration_s == pytest.approx(5, abs=0.15)
    assert len(read_wav(list_clips(ms3, "ms3", "train")[0].wav)) == 80_000


def test_same_settings_same_files(ms3: Path, tmp_path: Path) -> None:
    list(write_dataset(tmp_path, SynthSettings(subset="ms3", **TINY), jobs=2))
    written = sorted(p.relative_to(ms3) for p in ms3.rglob("*.*") if p.suffix in (".png", ".wav", ".csv", ".json"))
    assert written == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.*") if p.suffix != ".mp4")
    for name in written:
        assert (tmp_path / name).read_bytes() == (ms3 / name).read_bytes()


def test_a_dataset_is_never_written_twice(ms3: Path) -> None:
    with pytest.raises(UsageError, match=r"ms3_meta_data\.csv exists"):
        list(write_dataset(ms3, SynthSettings(subset="ms3", **TINY)))


def test_missing_and_damaged_files_are_named(s4: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ms3_meta_data\.csv: missing"):
        list_clips(tmp_path, "ms3", "train")
    damaged = tmp_path / "x.wav"
    damaged.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"x\.wav: not a wav"):
        read_wav(damaged)
    clip = list_clips(s4, "s4", "test")[0]
    kept = clip.masks[2].read_bytes()
    clip.masks[2].unlink()
    with pytest.raises(DataError, match=r"_3\.png: missing"):
        list_clips(s4, "s4", "test")
    clip.masks[2].write_bytes(kept)


def test_synth_command(tmp_path: Path) -> None:
    arguments = ["synth", str(tmp_path / "set"), "--clips", "1", "--val-clips", "0", "--test-clips", "0"]
    result = CliRunner().invoke(app, [*arguments, "--size", "32"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "set")
    assert len(list((tmp_path / "set").rglob("*.png"))) == 10
    assert len(list_clips(tmp_path / "set", "ms3", "train")) == 1


def test_the_second_of_s4_that_is_annotated_sounds(s4: Path) -> None:
    for clip in AvsBenchClips(s4, "s4", "train", size=64):
        assert clip.annotated.tolist() == [True, False, False, False, False]
        assert clip.masks[0].any()
    drawn = [_draw_clip(SynthSettings(subset="s4", **TINY), "train", seed) for seed in range(30)]
    assert all(sounding_seconds(one.description, one.events)[:, 0].any() for one in drawn)


def test_clips_have_the_length_that_is_read() -> None:
    with pytest.raises(UsageError, match="clips of 5 s"):
        SynthSettings(seconds=3)


def test_clip_of_two_objects_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "turns.mp4"
    write_clip(path, 0, seconds=2, height=64, width=96, frame_rate=10)
    info = probe(path)
    assert (info.width, info.height, info.has_audio) == (96, 64, True)
    assert [p.name for p in tmp_path.iterdir()] == ["turns.mp4"]
    _, events = two_in_turn(0, split="example", seconds=2)
    _, swapped = two_in_turn(0, split="example", seconds=2, swapped=True)
    assert [e.object_index for e in events] == [0, 1]
    assert [e.object_index for e in swapped] == [1, 0]
    assert events[0].stop == events[1].start == 16_000
