from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen

import pytest

import avsseg.cli

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


def test_a_reader_that_goes_ends_the_batch_and_the_same_command_makes_the_rest(
    start_avsseg: Start, avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    command = ("run", videos, "--out", tmp_path / "o", "--format", "coco", "--json", *options)
    process = start_avsseg(*command)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 141
    assert stderr.endswith("standard output was closed; finished results are kept, the same command makes the rest\n")
    assert list(results(tmp_path / "o")) == ["a.json"]
    assert statuses(avsseg_main(*command)) == ["skipped", "done"]


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


def forked(*arguments: object) -> int:
    """The process id of `avsseg ARGUMENTS...` in a copy of this process, which has loaded PyTorch already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads, which the child leaves alone with --threads 1
        pid = os.fork()
    if pid:
        return pid
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        sys.argv = ["avsseg", *map(str, arguments)]
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (ends with the process)
        warnings.simplefilter("ignore")
        avsseg.cli.main()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    finally:
        os._exit(99)


def ended(pid: int, within_s: float) -> bool:
    """Whether a child ends by itself within a time, and then with exit code 0."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        time.sleep(0.005)
    return False


@posix_only
def test_a_batch_killed_at_thirty_moments_ends_like_an_undisturbed_one(
    avsseg_main: Run, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    command = ("run", "-r", videos, "--format", "masks,coco,overlay,csv", *options)
    began = time.monotonic()
    assert avsseg_main(*command, "--out", tmp_path / "undisturbed").returncode == 0
    usual_s = time.monotonic() - began
    undisturbed = results(tmp_path / "undisturbed")
    assert len(undisturbed) == 3 * 3 + 2 * 4 + 3  # of 3, 2 and 3 s: videos, JSON and CSV; masks and their listings
    out = tmp_path / "out"
    moments, kills = random.Random(0), 0
    while kills < 30:
        pid = forked(*command, "--out", out)
        if ended(pid, moments.uniform(0, usual_s / 2)):
            assert results(out) == undisturbed
            shutil.rmtree(out)
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    assert avsseg_main(*command, "--out", out).returncode == 0
    assert results(out) == undisturbed
    assert list(out.rglob(".*.partial")) == []
    assert statuses(avsseg_main(*command, "--out", out, "--json")) == ["skipped"] * 3
