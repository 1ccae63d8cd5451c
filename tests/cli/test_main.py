from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import avsseg


def test_help_names_the_commands_and_the_exit_codes(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    outcome = avsseg_main("--help")
    assert outcome.returncode == 0
    for word in ("run", "info", "data", "130 interrupted"):
        assert word in outcome.stdout


def test_version(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    assert avsseg_main("--version").stdout == f"avsseg {avsseg.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["run"], ["run", "a.mp4"], ["run", "a.mp4", "--out", "o", "--x"]]
)
def test_a_wrong_command_line_ends_with_2(
    avsseg_main: Callable[..., CompletedProcess[str]], arguments: list[str]
) -> None:
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 2
    assert outcome.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["data"], ["weights"]])
def test_without_a_command_there_is_help_and_2(
    avsseg_main: Callable[..., CompletedProcess[str]], arguments: list[str]
) -> None:
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 2
    assert "Usage: " in outcome.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "missing.mp4", "--out", "o.mp4"]])
def test_torch_is_not_imported_before_a_video_needs_it(tmp_path: Path, arguments: list[str]) -> None:
    program = (
        "import sys\nimport avsseg.cli\ntry:\n    avsseg.cli.main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert "AssertionError" not in done.stderr
    assert done.returncode == (0 if "--help" in arguments else 1)


def test_the_package_itself_imports_no_torch_and_still_offers_its_functions() -> None:
    program = (
        "import sys, avsseg; assert 'torch' not in sys.modules; from avsseg import segment, load_model, SegmentOptions"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sorted(avsseg.__all__) == ["SegmentOptions", "__version__", "load_model", "segment"]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = avsseg.absent


def test_a_missing_ffmpeg_ends_with_3(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSEG_FFMPEG", str(tmp_path / "no-ffmpeg"))
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o.mp4")
    assert outcome.returncode == 3
    assert outcome.stderr.startswith("avsseg: error: AVSSEG_FFMPEG=")
    assert outcome.stderr.count("\n") == 1


def test_untrained_weights_end_with_3_and_one_line(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o.mp4", "--model", "avs-mamba-resnet50")
    assert outcome.returncode == 3
    assert outcome.stdout == ""
    assert "--allow-untrained" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o.mp4", "--device", "gpu", "--debug")
    assert outcome.returncode == 2
    assert "Traceback" in outcome.stderr
    assert outcome.stderr.endswith("avsseg: error: --device gpu: choose auto, cpu, cuda, cuda:N or mps\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_and_leaves_nothing_half_made(
    make_video: Callable[..., Path],
    start_avsseg: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    video = make_video(tmp_path / "long.mp4", seconds=120)
    out = tmp_path / "out"
    process = start_avsseg(
        *("run", video, "--out", out, "--format", "overlay,masks,coco", "--rate", "10", "--size", "64"),
        *("--allow-untrained", "--threads", "1"),
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".long.*.partial/new/00003.png")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "avsseg: interrupted; finished results are kept" in stderr
    assert not out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_named() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "avsseg", "run", __file__, "--out", "o.json", "--dry-run"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "avsseg: error: standard output cannot be written: No space left on device\n"


STARTS_INTERRUPTED = """
import signal
import sys


class Finder:
    def find_spec(name, *_):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)


sys.meta_path.insert(0, Finder)
signal.signal(signal.SIGINT, signal.default_int_handler)
import avsseg.cli
"""


def test_a_start_that_is_interrupted_ends_quietly(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, "-c", STARTS_INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(avsseg.cli, "app", interrupted)
    monkeypatch.setattr(atexit, "register", lambda _: None)  # this process is to end as it would
    assert avsseg_main().returncode == 130


@pytest.mark.parametrize("arguments", [["--version"], ["run", __file__, "--out", "o.json", "--dry-run"]])
def test_a_closed_stdout_ends_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "avsseg", *arguments], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_closed_streams_are_no_crash(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'"$0" -m avsseg --version {closed}', sys.executable], capture_output=True)
    assert done.returncode == 0
    assert done.stderr == b""


def test_a_name_that_stdout_cannot_encode_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "\u4e2d.mp4").touch()
    command = [sys.executable, "-m", "avsseg", "run", str(tmp_path), "--out", str(tmp_path / "o"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0
    assert b"\\u4e2d.mp4 -> " in done.stdout
