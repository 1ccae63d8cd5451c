from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from avsseg.cli.run import parse_time
from avsseg.errors import UsageError
from avsseg.media.probe import probe

SMALL = ("--allow-untrained", "--size", "64", "--threads", "1")


@pytest.mark.parametrize("name", ["overlay.mp4", "coco.json", "masks"])
def test_the_suffix_picks_the_result_and_its_path_is_all_of_stdout(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path, name: str, untrained_file: Path
) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / name, "--model", untrained_file, *SMALL)
    assert outcome.returncode == 0
    assert outcome.stdout == f"{tmp_path / name}\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert "3 masks in" in outcome.stderr
    assert "these masks are noise" in outcome.stderr
    if name == "overlay.mp4":
        assert probe(tmp_path / name).duration_s == pytest.approx(3.0, abs=0.1)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_results_go_to_stdout_though_stderr_is_a_terminal(clip: Path, tmp_path: Path, untrained_file: Path) -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "avsseg", "run", clip, "--out", tmp_path / "o", "--model", untrained_file, *SMALL]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdin=end, stdout=subprocess.PIPE, stderr=end, env=environment)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    with process:
        assert process.stdout is not None
        assert process.stdout.read().decode() == f"{tmp_path / 'o'}\n"
    assert process.returncode == 0
    assert b"3/3 s" in shown  # the bar, which was there to be in the way


def test_json_gives_one_object_for_each_input(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, silent_clip: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.mp4"
    arguments = ("run", clip, missing, silent_clip, "--out", tmp_path / "o", "--format", "coco", "--json", *SMALL)
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 1
    first, second, third = map(json.loads, outcome.stdout.splitlines())
    assert first["input"] == str(clip)
    assert first["outputs"] == [str(tmp_path / "o" / "clip.json")]
    assert (first["status"], first["masks"], first["error"]) == ("done", 3, None)
    assert (second["status"], second["outputs"]) == ("failed", [])
    assert "no such file" in second["error"]
    assert third["warnings"].count("no audio track; segmented as silent") == 1
    assert outcome.stderr.splitlines()[-1] == "2 done, 0 skipped, 1 failed"
    again = avsseg_main(*arguments)
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()] == ["skipped", "failed", "skipped"]


def test_finished_results_are_skipped_and_said_so(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.json").write_text("finished")
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o.json")
    assert outcome.returncode == 0
    assert "exists already; --overwrite makes it again" in outcome.stderr
    assert (tmp_path / "o.json").read_text() == "finished"
    avsseg_main("run", clip, "--out", tmp_path / "o.json", "--overwrite", *SMALL)
    assert json.loads((tmp_path / "o.json").read_text())["images"]


def test_quiet_leaves_only_errors(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    arguments = ("run", clip, tmp_path / "missing.mp4", "--out", tmp_path, "--format", "coco", "--quiet", *SMALL)
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.startswith("avsseg: error: ")
    assert "missing.mp4: no such file" in outcome.stderr


def test_strict_makes_damage_an_error(
    avsseg_main: Callable[..., CompletedProcess[str]], truncated_clip: Path, tmp_path: Path
) -> None:
    outcome = avsseg_main("run", truncated_clip, "--out", tmp_path / "o", "--strict", *SMALL)
    assert outcome.returncode == 1
    assert "are missing" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_video_is_warned_about_once(
    avsseg_main: Callable[..., CompletedProcess[str]], truncated_clip: Path, tmp_path: Path
) -> None:
    outcome = avsseg_main("run", truncated_clip, "--out", tmp_path / "o", *SMALL)
    assert outcome.returncode == 0
    assert outcome.stderr.count("are missing") == 1


@pytest.mark.parametrize("content", [b"", b"no video", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_video_gets_one_line_that_names_it(
    avsseg_main: Callable[..., CompletedProcess[str]], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    outcome = avsseg_main("run", tmp_path / "bad.mp4", "--out", tmp_path / "o.mp4")
    assert outcome.returncode == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert "bad.mp4: " in outcome.stderr


def test_a_dry_run_prints_the_plan_and_makes_nothing(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, silent_clip: Path, tmp_path: Path
) -> None:
    arguments = ("run", clip, silent_clip, "--out", tmp_path, "--format", "coco", *SMALL)
    assert avsseg_main(*arguments).returncode == 0
    (tmp_path / "silent.json").unlink()
    arguments = (*arguments, "--dry-run")
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 0
    assert outcome.stdout.splitlines() == [
        f"{clip}: done already",
        f"{silent_clip} -> {tmp_path / 'silent.json'}",
    ]
    as_json = avsseg_main(*arguments, "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in as_json] == ["skipped", "planned"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".avsseg", "clip.json"]


@pytest.mark.parametrize(("flag", "separator"), [([], "\n"), (["-0"], "\0")])
def test_a_list_on_stdin(
    avsseg_main: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: list[str],
    separator: str,
) -> None:
    names = ["sub/a.mp4", "b.mp4"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).touch()
    listing = io.TextIOWrapper(io.BytesIO(separator.join([*names, ""]).encode()))
    monkeypatch.setattr(sys, "stdin", listing)
    outcome = avsseg_main("run", "-", *flag, "--out", tmp_path, "--format", "coco", "--dry-run")
    assert outcome.stdout.splitlines() == [f"sub/a.mp4 -> {tmp_path}/sub/a.json", f"b.mp4 -> {tmp_path}/b.json"]


def test_a_list_with_nul_bytes_asks_for_the_flag(
    avsseg_main: Callable[..., CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.mp4\0b.mp4\0")))
    outcome = avsseg_main("run", "-", "--out", tmp_path)
    assert outcome.returncode == 2
    assert "the list on stdin holds NUL bytes; add -0 if these end its paths. A video cannot be" in outcome.stderr


def test_a_dry_run_names_a_missing_input_as_failed(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    arguments = ("run", clip, tmp_path / "missing.mp4", "--out", tmp_path / "o", "--dry-run")
    outcome = avsseg_main(*arguments)
    assert outcome.returncode == 1
    assert "missing.mp4: no such file" in outcome.stderr
    as_json = avsseg_main(*arguments, "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in as_json] == ["planned", "failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-0"], "-0 is about the list on stdin"),
        (["--rate", "0"], "rate is 0.0"),
        (["--rate", "1001"], "rate is 1001.0; it must be from 0.001 to 1000"),
        (["--threshold", "1"], "threshold is 1.0"),
        (["--overlap", "10"], "overlap is 10"),
        (["--start", "later"], "'later' is not a time"),
        (["--start", "5", "--end", "4"], "end is 4.0 s"),
        (["--audio-track", "0"], "audio track is 0; it must be 1 or more"),
        (["--device", "tpu"], "--device tpu"),
        (["--format", "gif"], "--format gif: unknown format"),
    ],
)
def test_values_that_make_no_sense_end_with_2_and_one_line(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o", *arguments)
    assert outcome.returncode == 2
    assert message in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_an_input_is_never_the_output(avsseg_main: Callable[..., CompletedProcess[str]], clip: Path) -> None:
    before = clip.read_bytes()
    outcome = avsseg_main("run", clip, "--out", clip, "--overwrite", *SMALL)
    assert outcome.returncode == 2
    assert "is an input and would be replaced" in outcome.stderr
    assert clip.read_bytes() == before


def test_names_with_markup_colons_and_line_breaks_survive(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    video = tmp_path / "[red]a\nb x:y.mp4"
    video.write_bytes(clip.read_bytes())
    outcome = avsseg_main("run", video, "--out", tmp_path / "o", "--format", "coco", *SMALL)
    assert outcome.returncode == 0
    assert (tmp_path / "o" / "[red]a\nb x:y.json").is_file()
    assert "[red]a\\nb x:y.mp4: 3 masks" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5", 1.5), ("1:30", 90.0), ("0:01:30.5", 90.5), ("2:00:00", 7200.0)]
)
def test_times_are_seconds_or_hours_minutes_seconds(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1:", "1h", "nan"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_time(text)


def test_the_audio_track_can_be_chosen(
    avsseg_main: Callable[..., CompletedProcess[str]], clip: Path, tmp_path: Path
) -> None:
    outcome = avsseg_main("run", clip, "--out", tmp_path / "o.json", "--audio-track", "2", *SMALL)
    assert outcome.returncode == 1
    assert "has 1 audio track, so there is no audio track 2. Leave it out." in outcome.stderr
