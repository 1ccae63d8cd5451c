from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from avsseg.cli import progress as progress_module
from avsseg.cli.progress import BatchProgress, summary
from avsseg.pipeline.batch import InputResult
from avsseg.pipeline.plan import Job

JOB = Job(Path("videos/clip.mp4"), {"coco": Path("o.json")})


def report(*, quiet: bool = False, inputs: int = 2) -> None:
    with BatchProgress(inputs, quiet=quiet) as progress:
        progress.started(1, JOB)
        progress.advanced(1, 20, 120, 2.0)
        progress.finished(1, InputResult(JOB.input, "done", (Path("o.json"),), 60.0, 120, 3.21, ("no audio track",)))
        progress.started(2, JOB)
        progress.finished(2, InputResult(JOB.input, "failed", error="videos/clip.mp4: is broken."))


def test_without_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_INTERVAL_S", 0.0)
    report()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[1/2] clip.mp4 10/60 s",
        "avsseg: warning: videos/clip.mp4: no audio track",
        "[1/2] clip.mp4: 120 masks in 3.2 s -> o.json",
        "avsseg: error: videos/clip.mp4: is broken.",
    ]


def test_quiet_leaves_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    report(quiet=True)
    assert capsys.readouterr().err == "avsseg: error: videos/clip.mp4: is broken.\n"


def test_a_terminal_gets_a_bar_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with BatchProgress(1, quiet=False) as progress:
        progress.started(1, JOB)
        progress.advanced(1, 20, 120, 2.0)
    shown = capsys.readouterr().err
    assert "10/60 s" in shown
    assert "━" in shown
    assert re.search(r"(\d|-):(\d\d|--):(\d\d|--)", shown)


def test_an_unknown_length_shows_how_far_it_came(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "LINE_INTERVAL_S", 0.0)
    with BatchProgress(1, quiet=False) as progress:
        progress.started(1, JOB)
        progress.advanced(1, 7, None, 1.0)
    assert capsys.readouterr().err == "clip.mp4 7 s\n"


def test_an_interruption_says_what_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), BatchProgress(1, quiet=False):
        raise KeyboardInterrupt
    assert "interrupted; finished results are kept" in capsys.readouterr().err


CLOSED = "avsseg: error: standard output was closed; finished results are kept, the same command makes the rest\n"


@pytest.mark.parametrize(("inputs", "told"), [(1, ""), (2, CLOSED)])
def test_a_closed_stdout_is_told_while_inputs_are_left(
    capsys: pytest.CaptureFixture[str], inputs: int, told: str
) -> None:
    def make_one() -> None:
        with BatchProgress(inputs, quiet=True) as progress:
            progress.started(1, JOB)
            progress.finished(1, InputResult(JOB.input, "skipped"))
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        make_one()
    assert capsys.readouterr().err == told


def test_the_summary_counts_and_names_what_failed() -> None:
    done = InputResult(JOB.input, "done", (Path("o.json"),), 60.0, 120, 3.21, ("no audio track",))
    failed = InputResult(JOB.input, "failed", seconds=0.5, error="videos/clip.mp4: is broken.")
    assert summary([done, done, failed]) == [
        " result  inputs  masks  seconds  with warnings",
        "   done       2    240      6.4              2",
        "skipped       0      0      0.0              0",
        " failed       1      0      0.5              0",
        "failed: videos/clip.mp4: is broken.",
    ]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_a_log_that_cannot_be_written_costs_no_results(monkeypatch: pytest.MonkeyPatch, problem: OSError) -> None:
    class Refusing(io.StringIO):
        def write(self, text: str) -> int:
            raise problem

    monkeypatch.setattr(sys, "stderr", Refusing())
    monkeypatch.setattr(progress_module, "LINE_INTERVAL_S", 0.0)
    report()
