from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen

import pytest

PATIENCE_S = 240  # with processes on a busy machine

Run = Callable[..., CompletedProcess[str]]
Start = Callable[..., "Popen[str]"]

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the children in /proc")


@pytest.fixture
def options(untrained_file: Path) -> tuple[object, ...]:
    return ("--model", untrained_file, "--allow-untrained", "--size", "64", "--threads", "1")


@pytest.fixture
def videos(tmp_path: Path, clip: Path, silent_clip: Path) -> Path:
    """videos/{a.mp4, b.mp4, sub/c.mp4}, 2 or 3 s each"""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(clip, folder / "a.mp4")
    shutil.copy(silent_clip, folder / "b.mp4")
    shutil.copy(clip, folder / "sub" / "c.mp4")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name == "nt" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("a small file system cannot be mounted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def statuses(outcome: CompletedProcess[str]) -> list[str]:
    return [json.loads(line)["status"] for line in outcome.stdout.splitlines()]


def results(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, the journal left out, with its content."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".avsseg" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def fill(disk: Path) -> None:
    """Takes all the space that is left on a small file system."""
    with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))


def await_path(process: Popen[str], folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def await_child(process: Popen[str], word: str) -> int:
    """The process id of the child that has the word among its arguments, once there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
                if parent == process.pid and word.encode() in (stat.parent / "cmdline").read_bytes().split(b"\0"):
                    return int(stat.parent.name)
            except OSError:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no child has {word} among its arguments")


# inputs


def test_files_folders_patterns_and_lists_mix(
    avsseg_main: Run, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listed").mkdir()
    for name in ("listed/new\nline.mp4", "-dash.mp4", "named.bin", "star1.mkv", "star2.mkv"):
        (tmp_path / name).touch()
    listing = io.TextIOWrapper(io.BytesIO(b"listed/new\nline.mp4\0-dash.mp4\0videos/a.mp4\0"))
    monkeypatch.setattr(sys, "stdin", listing)
    inputs = ("named.bin", videos, "star[12].mkv", "-", "missing.mp4")
    outcome = avsseg_main("run", "-r", "-0", *inputs, "--out", "o", "--format", "coco", "--dry-run", "--json")
    assert outcome.returncode == 1
    planned = {line["input"]: line["outputs"] for line in map(json.loads, outcome.stdout.splitlines())}
    assert planned == {
        "named.bin": ["o/named.json"],
        str(videos / "a.mp4"): ["o/a.json"],
        str(videos / "b.mp4"): ["o/b.json"],
        str(videos / "sub" / "c.mp4"): ["o/sub/c.json"],
        "star1.mkv": ["o/star1.json"],
        "star2.mkv": ["o/star2.json"],
        "listed/new\nline.mp4": ["o/listed/new\nline.json"],
        "-dash.mp4": ["o/-dash.json"],
        "missing.mp4": [],
    }
    assert not (tmp_path / "o").exists()


def test_two_inputs_of_one_output_are_refused_and_both_named(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    shutil.copy(videos / "a.mp4", videos / "a.mov")
    outcome = avsseg_main("run", videos, "--out", tmp_path / "o", "--format", "coco", *options)
    assert outcome.returncode == 2
    assert f"{videos / 'a.mov'} and {videos / 'a.mp4'} would both write {tmp_path / 'o' / 'a.json'}" in outcome.stderr
    assert not (tmp_path / "o").exists()


# resume


def test_a_second_run_makes_only_what_is_missing(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    command = ("run", "-r", videos, "--out", out, "--format", "masks,coco", *options, "--json")
    first = avsseg_main(*command)
    assert (first.returncode, statuses(first)) == (0, ["done"] * 3)
    made = results(out)
    assert {"a.json", "a/masks.json", "b/00001.png", "sub/c/00002.png"} <= set(made)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    again = avsseg_main(*command)
    assert (again.returncode, statuses(again)) == (0, ["skipped"] * 3)
    (out / "sub" / "c.json").unlink()
    shutil.rmtree(out / "b")
    shutil.copy(videos / "a.mp4", videos / "new.mp4")
    dry = avsseg_main(*command, "--dry-run")
    assert [json.loads(line)["outputs"] for line in dry.stdout.splitlines()] == [
        [],
        [str(out / "b")],
        [str(out / "new"), str(out / "new.json")],
        [str(out / "sub" / "c.json")],
    ]
    third = avsseg_main(*command)
    assert statuses(third) == ["skipped", "done", "done", "done"]
    assert {name: content for name, content in results(out).items() if not name.startswith("new")} == made
    kept = [out / "a.json", out / "a" / "masks.json", out / "b.json", out / "sub" / "c" / "masks.json"]
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)


def test_other_settings_models_and_inputs_are_refused_before_any_work(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    command = ("run", "-r", videos, "--out", out, "--format", "coco", *options)
    assert avsseg_main(*command).returncode == 0
    made = results(out)
    shutil.copy(videos / "a.mp4", videos / "0.mp4")  # would be new work, and come first
    for change, reason in [
        (("--rate", "2"), "was made with other settings (rate 1.0, now 2.0)"),
        (("--model", "avs-mamba-tiny"), "was made with another model, untrained ("),
    ]:
        for dry in ((), ("--dry-run",)):
            outcome = avsseg_main(*command, *change, *dry)
            assert outcome.returncode == 2
            assert len(outcome.stderr.splitlines()) == 1
            assert outcome.stderr.startswith(f"avsseg: error: {out / 'a.json'}: {reason}")
            assert "(and 2 more results cannot be kept either)" in outcome.stderr
            assert "--overwrite makes them again" in outcome.stderr
    assert results(out) == made
    outcome = avsseg_main(*command, "--rate", "2", "--overwrite", "--json")
    assert (outcome.returncode, statuses(outcome)) == (0, ["done"] * 4)
    assert len(json.loads((out / "a.json").read_text())["images"]) == 6
    assert statuses(avsseg_main(*command, "--rate", "2", "--json")) == ["skipped"] * 4
    os.utime(videos / "b.mp4", (0, 0))
    outcome = avsseg_main(*command, "--rate", "2")
    assert outcome.returncode == 2
    assert f"{out / 'b.json'}: was made before its input changed. Nothing was done" in outcome.stderr


def test_results_without_a_journal_are_refused_unless_told(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "b.json").write_text("of an earlier version")
    command = ("run", videos, "--out", out, "--format", "coco", *options)
    outcome = avsseg_main(*command)
    assert outcome.returncode == 2
    assert "b.json: exists, and no journal says how it was made" in outcome.stderr
    assert results(out) == {"b.json": b"of an earlier version"}
    assert avsseg_main(*command, "--overwrite").returncode == 0
    assert json.loads((out / "b.json").read_text())["images"]


@pytest.mark.parametrize("extra", [(), ("--overwrite",), ("--dry-run",)])
def test_a_journal_broken_by_hand_is_named_and_nothing_is_overwritten(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...], extra: tuple[str, ...]
) -> None:
    out = tmp_path / "o"
    command = ("run", videos, "--out", out, "--format", "coco", *options)
    assert avsseg_main(*command).returncode == 0
    journal = out / ".avsseg" / "shard-1-of-1.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"done"', b"done", 1))
    before = results(out), journal.read_bytes()
    outcome = avsseg_main(*command, *extra)
    assert outcome.returncode == 2
    assert len(outcome.stderr.splitlines()) == 1
    assert f"{journal}, line 2: is no line of an avsseg journal" in outcome.stderr
    assert (results(out), journal.read_bytes()) == before


def test_a_single_result_needs_no_journal(
    avsseg_main: Run, clip: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    assert avsseg_main("run", clip, "--out", tmp_path / "o.json", *options).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["o.json"]


@posix_only
def test_a_batch_killed_again_and_again_ends_like_an_undisturbed_one(
    avsseg_main: Run, start_avsseg: Start, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    command = ("-r", videos, "--format", "masks,coco,overlay", *options)
    assert avsseg_main("run", *command, "--out", tmp_path / "undisturbed").returncode == 0
    out = tmp_path / "out"
    moments = random.Random(0)
    for _ in range(3):
        process = start_avsseg("run", *command, "--out", out)
        await_path(process, out, "**/.*.partial/new")
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.communicate()
    assert avsseg_main("run", *command, "--out", out).returncode == 0
    assert results(out) == results(tmp_path / "undisturbed")
    assert list(out.rglob(".*.partial")) == []
    assert statuses(avsseg_main("run", *command, "--out", out, "--json")) == ["skipped"] * 3


# shards


def test_shards_together_make_everything_once(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    command = ("run", "-r", videos, "--out", out, "--format", "coco", *options, "--json")
    parts = [avsseg_main(*command, "--shard", f"{index}/3") for index in (1, 2, 3)]
    assert [part.returncode for part in parts] == [0, 0, 0]
    taken = [json.loads(line)["input"] for part in parts for line in part.stdout.splitlines()]
    assert sorted(taken) == sorted(str(path) for path in videos.rglob("*.mp4"))
    assert sorted(results(out)) == ["a.json", "b.json", "sub/c.json"]
    assert statuses(avsseg_main(*command)) == ["skipped"] * 3


def test_a_shard_without_inputs_says_so(
    avsseg_main: Run, clip: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    outcomes = [
        avsseg_main("run", clip, "--out", tmp_path / "o", "--shard", shard, "--dry-run") for shard in ("1/2", "2/2")
    ]
    assert sorted(len(outcome.stdout.splitlines()) for outcome in outcomes) == [0, 1]
    empty = 1 + [outcome.stdout for outcome in outcomes].index("")
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o", "--shard", f"{empty}/2", *options)
    assert (outcome.returncode, outcome.stderr) == (0, f"no input falls into shard {empty}/2\n")
    assert avsseg_main("run", clip, "--out", tmp_path / "o", "--shard", "3/2").returncode == 2


@posix_only
def test_a_second_run_on_the_same_folder_is_refused_while_the_first_works(
    avsseg_main: Run,
    start_avsseg: Start,
    make_video: Callable[..., Path],
    tmp_path: Path,
    options: tuple[object, ...],
) -> None:
    make_video(tmp_path / "videos.mp4", seconds=60)
    out = tmp_path / "out"
    command = ("run", tmp_path / "videos.mp4", "--out", out, "--format", "masks,coco", *options, "--rate", "10")
    process = start_avsseg(*command)
    await_path(process, out, ".*.partial")
    outcome = avsseg_main(*command)
    assert outcome.returncode == 2
    assert "another avsseg run is at work on this folder" in outcome.stderr
    assert process.poll() is None


# failures


def test_a_batch_ends_with_a_table_and_a_line_for_each_failure(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    (videos / "bad.mp4").write_text("no video")
    command = ("run", videos, tmp_path / "missing.mp4", "--out", tmp_path / "o", "--format", "coco", *options)
    outcome = avsseg_main(*command)
    assert outcome.returncode == 1
    *_, head, done, skipped, failed, first, second, last = outcome.stderr.splitlines()
    assert head.split() == ["result", "inputs", "masks", "seconds", "with", "warnings"]
    assert done.split()[:3] == ["done", "2", "5"]
    assert done.split()[-1] == "2"
    assert skipped.split() == ["skipped", "0", "0", "0.0", "0"]
    assert failed.split()[:3] == ["failed", "2", "0"]
    assert first.startswith(f"failed: {videos / 'bad.mp4'}: is not a video")
    assert second == f"failed: {tmp_path / 'missing.mp4'}: no such file. Check the path."
    assert last == "2 done, 0 skipped, 2 failed"
    again = avsseg_main(*command, "--json")
    assert statuses(again) == ["skipped", "skipped", "failed", "failed"]


def test_failed_runs_leave_no_folders(avsseg_main: Run, tmp_path: Path, options: tuple[object, ...]) -> None:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    (tmp_path / "videos" / "sub" / "bad.mp4").write_text("no video")
    outcome = avsseg_main("run", "-r", tmp_path / "videos", "--out", tmp_path / "new" / "o", *options)
    assert outcome.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_an_input_that_vanishes_on_the_way_fails_alone(
    start_avsseg: Start, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    process = start_avsseg("run", "-r", videos, "--out", out, "--format", "coco", *options, "--json")
    await_path(process, out, ".a.json.*.partial")
    (videos / "b.mp4").unlink()
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert [json.loads(line)["status"] for line in stdout.splitlines()] == ["done", "failed", "done"]
    assert "b.mp4: no such file" in stderr


@linux_only
@pytest.mark.parametrize(
    ("program", "number", "message"),
    [
        ("rgb24", signal.SIGKILL, "was killed by signal 9 while it decoded the picture"),
        ("rgba", signal.SIGTERM, "was stopped from outside while it wrote the overlay"),
    ],
    ids=["decoder", "renderer"],
)
def test_an_ffmpeg_killed_from_outside_fails_its_input_alone(
    start_avsseg: Start,
    make_video: Callable[..., Path],
    clip: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    program: str,
    number: signal.Signals,
    message: str,
) -> None:
    long = make_video(tmp_path / "long.mp4", seconds=60, size="320x240")
    out = tmp_path / "o"
    rate = ("--rate", "10", "--window", "4", "--format", "overlay,coco")
    process = start_avsseg("run", long, clip, "--out", out, *rate, *options, "--json")
    os.kill(await_child(process, program), number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    first, second = map(json.loads, stdout.splitlines())
    assert (first["status"], second["status"], process.returncode) == ("failed", "done", 1), stderr
    assert f"ffmpeg {message}" in first["error"]
    assert "run the same command again" in first["error"]
    assert sorted(results(out)) == ["clip.json", "clip.mp4"]


def test_a_full_disk_fails_what_does_not_fit(
    avsseg_main: Run,
    make_video: Callable[..., Path],
    clip: Path,
    small_disk: Path,
    tmp_path: Path,
    options: tuple[object, ...],
) -> None:
    large = make_video(tmp_path / "large.mp4", seconds=12, size="1280x720")
    out = small_disk / "o"
    command = ("run", large, clip, "--out", out, "--format", "overlay,masks", *options, "--json")
    outcome = avsseg_main(*command)
    assert (outcome.returncode, statuses(outcome)) == (1, ["failed", "done"])
    assert "No space left on device" in outcome.stderr
    assert "Free space" in outcome.stderr
    assert sorted(path.name for path in out.iterdir()) == [".avsseg", "clip", "clip.mp4"]
    assert statuses(avsseg_main(*command)) == ["failed", "skipped"]
    fill(small_disk)
    full = avsseg_main(*command, "--overwrite")
    assert (full.returncode, statuses(full)) == (1, ["failed", "failed"])
    assert "Traceback" not in full.stderr
    assert sorted(path.name for path in out.iterdir()) == [".avsseg", "clip", "clip.mp4"]


def test_a_read_only_folder_is_one_error(
    avsseg_main: Run, videos: Path, small_disk: Path, options: tuple[object, ...]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    outcome = avsseg_main("run", videos, "--out", small_disk / "o", "--format", "coco", *options)
    assert outcome.returncode == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert "cannot be written: Read-only file system. Write to another place" in outcome.stderr


def test_a_file_in_the_way_of_a_folder_fails_what_belongs_there(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "sub").touch()
    outcome = avsseg_main("run", "-r", videos, "--out", out, "--format", "coco", *options, "--json")
    assert (outcome.returncode, statuses(outcome)) == (1, ["done", "done", "failed"])
    assert f"{out / 'sub' / 'c.json'}: cannot be written" in outcome.stderr


# interrupts


@posix_only
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_batch_within_two_seconds_and_the_next_run_goes_on(
    start_avsseg: Start,
    avsseg_main: Run,
    make_video: Callable[..., Path],
    clip: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    jobs: int,
) -> None:
    long = make_video(tmp_path / "long.mp4", seconds=60)
    out = tmp_path / "o"
    command = ("run", clip, long, "--out", out, "--format", "overlay,masks,coco", "--rate", "4", *options, "--json")
    process = start_avsseg(*command)
    await_path(process, out, ".long.*.partial/new/00003.png")
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert [json.loads(line)["status"] for line in stdout.splitlines()] == ["done"]
    assert "avsseg: interrupted; finished results are kept, the same command makes the rest" in stderr
    assert sorted(path.name for path in out.iterdir()) == [".avsseg", "clip", "clip.json", "clip.mp4"]
    assert sorted(statuses(avsseg_main(*command))) == ["done", "skipped"]


@posix_only
def test_a_second_ctrl_c_ends_at_once(clip: Path, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time, avsseg.cli, avsseg.writers.base as base\n"
        # a test run in a shell's background inherits an ignored SIGINT, which avsseg leaves as it is
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slow(self):\n    print('cleaning', flush=True)\n    time.sleep(60)\n"
        "base.PartialOutput.discard = base.PartialOutput.commit = slow\n"
        "avsseg.cli.main()\n"
    )
    arguments = ["run", str(clip), "--out", str(tmp_path / "o.json"), "--allow-untrained", "--size", "64"]
    with Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"cleaning\n"  # of commit
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"cleaning\n"  # of discard
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert time.monotonic() - sent < 1
        finally:
            process.kill()
