"""`avsseg run --engine ray`, on a real Ray of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen

import pytest

from avsseg.pipeline.ray_engine import TRIES

PATIENCE_S = 240

Run = Callable[..., CompletedProcess[str]]
Start = Callable[..., "Popen[str]"]

needs_ray = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds Ray's workers in /proc, which Linux alone has"
)


@pytest.fixture
def options(untrained_file: Path) -> tuple[object, ...]:
    return ("--model", untrained_file, "--allow-untrained", "--size", "64", "--format", "coco", "--rate", "4")


@pytest.fixture
def videos(tmp_path: Path, clip: Path, silent_clip: Path, make_video: Callable[..., Path]) -> Path:
    """videos/{bad.mp4, long.mp4, short.mp4, sub/silent.mp4}"""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    (folder / "bad.mp4").write_text("no video")
    make_video(folder / "long.mp4", seconds=40)
    shutil.copy(clip, folder / "short.mp4")
    shutil.copy(silent_clip, folder / "sub" / "silent.mp4")
    return folder


def results(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".avsseg" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def worker_at_work(process: Popen[str], out: Path, name: str, but: set[int]) -> int:
    """The process id of the Ray worker, none of `but`, once it has begun to write the result of that name."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if list(out.glob(f".{name}.*.partial/lock")):
            for command in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    found = command.read_bytes().startswith(b"ray::_Worker") and int(command.parent.name) not in but
                except OSError:
                    continue
                if found and descends(int(command.parent.name), process.pid):
                    return int(command.parent.name)
        time.sleep(0.02)
    raise AssertionError("no worker has begun")


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            return False
    return False


@needs_ray
def test_a_killed_worker_costs_nothing_and_results_are_those_of_the_local_engine(
    start_avsseg: Start,
    avsseg_main: Run,
    videos: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # sums round in another order with another number of threads, which moves a pixel of some masks
    options = (*options, "--threads", "1")
    command = ("run", "-r", videos.name, "--out", "ray", *options, "--json")
    process = start_avsseg(*command, "--engine", "ray", "--jobs", "1")
    os.kill(worker_at_work(process, tmp_path / "ray", "long.json", set()), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    lines = {Path(line["input"]).as_posix(): line for line in map(json.loads, stdout.splitlines())}
    assert {name: line["status"] for name, line in lines.items()} == {
        "videos/bad.mp4": "failed",
        "videos/long.mp4": "done",
        "videos/short.mp4": "done",
        "videos/sub/silent.mp4": "done",
    }, stderr
    assert process.returncode == 1
    assert lines["videos/short.mp4"]["outputs"] == [str(Path("ray/short.json"))]
    assert "3 done, 0 skipped, 1 failed" in stderr
    assert "Traceback" not in stderr
    local = avsseg_main("run", "-r", videos.name, "--out", "local", *options)
    assert local.returncode == 1
    assert sorted(results(tmp_path / "ray")) == ["long.json", "short.json", "sub/silent.json"]
    assert results(tmp_path / "ray") == results(tmp_path / "local")
    # one journal, which the local engine goes on with
    again = avsseg_main(*command)
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()].count("skipped") == 3


@needs_ray
def test_ctrl_c_leaves_nothing_half_made(
    start_avsseg: Start, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    process = start_avsseg("run", videos, "--out", out, *options, "--engine", "ray", "--jobs", "1")
    worker_at_work(process, out, "long.json", set())
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "finished results are kept" in stderr
    assert results(out) == {}


@needs_ray
def test_an_input_that_kills_every_worker_fails_alone(
    start_avsseg: Start, videos: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "o"
    process = start_avsseg("run", videos, "--out", out, *options, "--engine", "ray", "--jobs", "1", "--json")
    killed: set[int] = set()
    for _ in range(TRIES):
        worker = worker_at_work(process, out, "long.json", killed)
        killed.add(worker)
        os.kill(worker, signal.SIGKILL)
    bad, long, short = (json.loads(process.stdout.readline()) for _ in range(3))  # type: ignore[union-attr]
    assert (bad["status"], short["status"]) == ("failed", "done")
    assert f"{TRIES} workers died of it" in long["error"]
    process.wait(PATIENCE_S)
    assert sorted(results(out)) == ["short.json"]


def test_without_ray_the_remedy_is_named(
    avsseg_main: Run, clip: Path, tmp_path: Path, options: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = avsseg_main("run", clip, clip.parent, "--out", tmp_path / "o", *options, "--engine", "ray")
    assert outcome.returncode == 3
    assert 'pip install "avsseg[ray]"' in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_cluster_that_does_not_answer_is_one_line(
    avsseg_main: Run, clip: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    ray = ("--engine", "ray", "--ray-address", address)
    outcome = avsseg_main("run", clip, clip.parent, "--out", tmp_path / "o", *options, *ray)
    assert outcome.returncode == 3
    assert f"no Ray at {address}: " in outcome.stderr
    assert "Check --ray-address" in outcome.stderr
    assert not (tmp_path / "o").exists()


def test_an_address_is_for_ray_alone(avsseg_main: Run, clip: Path, tmp_path: Path) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o", "--ray-address", "auto")
    assert outcome.returncode == 2
    assert "--ray-address is about --engine ray" in outcome.stderr
