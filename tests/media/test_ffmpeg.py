from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ffmpeg
import pytest

from avsseg.errors import EnvironmentFault
from avsseg.media.ffmpeg import (
    FfmpegProcess,
    _Watchdog,
    command,
    encoders,
    file_url,
    filters,
    find_ffmpeg,
    media_input,
    run_ffmpeg,
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def stand_in(path: Path, version: str) -> Path:
    """A program that answers `-version` as ffmpeg does."""
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{version}'\n")
    path.chmod(0o755)
    return path


posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")


def test_an_ffmpeg_is_found_that_has_what_we_need(each_ffmpeg):
    found = find_ffmpeg()
    assert found.path.is_file()
    assert found.version >= (5, 1)
    assert "libx264" in encoders()
    assert {"fps", "overlay", "scale", "aresample"} <= filters()


@posix_only
@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("ffmpeg version 5.1.9-0+deb12u1 Copyright (c) 2000-2026 the FFmpeg developers", (5, 1, 9)),
        ("ffmpeg version n9.0.2-17-g2a571b6068-20260930 Copyright", (9, 0, 2)),
        ("ffmpeg version 8.0-full_build-www.gyan.dev Copyright", (8, 0)),
        ("ffmpeg version N-109542-g8bdb5b8 Copyright\nlibavcodec     60.  3.100 / 60.  3.100", (0,)),
    ],
)
def test_avsseg_ffmpeg_is_taken_first(text, version, tmp_path, monkeypatch):
    program = stand_in(tmp_path / "my ffmpeg", text)
    monkeypatch.setenv("AVSSEG_FFMPEG", str(program))
    found = find_ffmpeg()
    assert (found.path, found.version, found.source) == (program, version, "AVSSEG_FFMPEG")


@posix_only
@pytest.mark.parametrize(
    "text",
    [
        "ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright",
        "ffmpeg version N-90000-gabcdef Copyright\nlibavcodec     58.  3.100 / 58.  3.100",
        "Hello",
    ],
)
def test_an_old_or_wrong_avsseg_ffmpeg_is_an_error_that_names_it(text, tmp_path, monkeypatch):
    program = stand_in(tmp_path / "old", text)
    monkeypatch.setenv("AVSSEG_FFMPEG", str(program))
    with pytest.raises(EnvironmentFault, match=rf"AVSSEG_FFMPEG={program} is not an ffmpeg 5\.1 or newer"):
        find_ffmpeg()


@posix_only
def test_an_old_ffmpeg_on_the_path_gives_way_to_the_bundled_one(tmp_path, monkeypatch):
    stand_in(tmp_path / "ffmpeg", "ffmpeg version 4.4.2 Copyright")
    monkeypatch.delenv("AVSSEG_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin")
    assert find_ffmpeg().source == "imageio-ffmpeg"


def test_no_ffmpeg_at_all_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("AVSSEG_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(EnvironmentFault, match="pip install imageio-ffmpeg"):
        find_ffmpeg()


def test_another_package_in_the_place_of_ffmpeg_python_is_named(monkeypatch):
    monkeypatch.delattr(ffmpeg, "compile")
    with pytest.raises(EnvironmentFault, match="pip install --force-reinstall ffmpeg-python"):
        command(None)


def test_commands_are_lists_confined_to_their_file():
    arguments = command(ffmpeg.output(media_input(Path("a b;$(c).mp4"))["V:0"], "pipe:1", format="rawvideo"))
    place = arguments.index("-i")
    assert arguments[place + 1] == "file:a b;$(c).mp4"
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    whitelist = arguments[arguments.index("-format_whitelist") + 1].split(",")
    assert not {"hls", "dash", "concat", "sdp", "rtsp", "image2", "lavfi", "webm_dash_manifest"} & set(whitelist)
    assert arguments.index("-format_whitelist") < place
    assert "-nostdin" in arguments
    assert file_url(Path("x:y")) == "file:x:y"


def read_all(process: FfmpegProcess) -> bytes:
    buffer = bytearray(1 << 20)
    return bytes(buffer[: process.read_into(memoryview(buffer))])


def test_a_flood_of_messages_does_not_block_the_output():
    code = "import sys\nfor i in range(20000): print('noise', i, 'x' * 40, file=sys.stderr)\nprint('done')"
    with FfmpegProcess(python(code), stall_s=20) as process:
        assert read_all(process).strip() == b"done"
        assert process.wait() == 0
        lines, count = process.messages(limit=200)
    assert count == 20000
    assert lines[-1].startswith("noise 19999")
    assert len(lines) <= 5


@pytest.mark.parametrize("blocked", ["read", "write", "wait"])
def test_a_child_without_progress_is_ended(blocked):
    with FfmpegProcess(python("import time; time.sleep(60)"), stdin=True, stall_s=0.2) as process:
        if blocked == "read":
            assert read_all(process) == b""
        elif blocked == "write":
            with pytest.raises(BrokenPipeError):
                process.write(bytes(1 << 20))
        process.wait()
        assert process.stalled


def test_a_slow_caller_is_no_stall():
    with FfmpegProcess(python("print(input())"), stdin=True, stall_s=0.2) as process:
        time.sleep(0.6)
        process.write(b"hello\n")
        assert read_all(process).strip() == b"hello"
        assert process.wait() == 0
        assert not process.stalled


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells what a process computes")
def test_a_child_that_computes_has_longer_but_not_for_ever():
    busy = "import time\nend = time.time() + {}\nwhile time.time() < end: pass\nprint('done')"
    with FfmpegProcess(python(busy.format(1.5)), stall_s=0.4) as process:
        assert read_all(process).strip() == b"done"
        process.wait()
        assert not process.stalled
    with FfmpegProcess(python(busy.format(60)), stall_s=0.1) as process:
        assert read_all(process) == b""
        assert process.stalled


@pytest.mark.skipif(os.name == "nt", reason="the wrapper is a shell script")
def test_what_a_wrapper_script_started_ends_with_it(tmp_path):
    script = tmp_path / "wrapper"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    started = time.monotonic()
    with FfmpegProcess([str(script)], stall_s=0.2) as process:
        assert read_all(process) == b""  # ends only when the last holder of the pipe has ended
        assert process.stalled
    assert time.monotonic() - started < 20


def test_progress_elsewhere_is_no_stall(tmp_path):
    growing = tmp_path / "growing"
    code = "import sys, time\nfor i in range(30):\n open(sys.argv[1], 'a').write('x'); time.sleep(0.05)\nprint('done')"

    def size() -> int:
        return growing.stat().st_size if growing.exists() else 0

    with FfmpegProcess([*python(code), str(growing)], stall_s=0.6, progress=size) as process:
        assert read_all(process).strip() == b"done"
        process.wait()
        assert not process.stalled


def test_one_process_reads_the_output_of_another():
    with FfmpegProcess(python("print('x' * 300000)"), stall_s=20) as first:
        code = "import sys; print(len(sys.stdin.read()))"
        with FfmpegProcess(python(code), stdin=first, stall_s=20) as second:
            assert read_all(second).strip() == b"300001"
            assert (second.wait(), first.wait()) == (0, 0)


def test_a_program_that_does_not_exist_is_an_error():
    with pytest.raises(EnvironmentFault, match="does not start"):
        FfmpegProcess(["/nowhere/ffmpeg"])


def test_run_ffmpeg_collects_both_streams_and_the_code():
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_ffmpeg(python(code)) == ("out" + os.linesep, ["err"], 3)
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        run_ffmpeg(python("import time; time.sleep(60)"), stall_s=0.2)


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGTERM, "was stopped from outside"), (signal.SIGKILL, "was killed by signal 9")]
)
def test_a_child_that_another_program_ends_says_so(number, how):
    with FfmpegProcess(["sleep", "60"]) as process:
        os.kill(process.pid, number)
        process.wait()
        assert process.failure() == how


def test_children_end_with_the_interpreter():
    code = (
        "import sys; from avsseg.media.ffmpeg import FfmpegProcess\n"
        "child = FfmpegProcess([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid)"
    )
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=30, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@pytest.mark.parametrize(("number", "hint"), [(errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "Use fewer --jobs")])
@pytest.mark.parametrize("place", ["subprocess.Popen", "tempfile.TemporaryFile"])
def test_what_the_system_cannot_give_is_no_matter_of_installing(place, number, hint, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, refuse)
    with pytest.raises(EnvironmentFault, match=hint) as caught:
        FfmpegProcess(["ffmpeg", "-version"])
    assert "Install" not in str(caught.value)


def test_time_in_which_everything_was_frozen_is_no_stall(monkeypatch):
    with FfmpegProcess(python("input()"), stdin=True) as process:
        watchdog = _Watchdog(process._popen, 0.2, None)
        waits = iter([False] * 4 + [True])

        def frozen(interval_s: float) -> bool:
            time.sleep(interval_s + 0.25)
            return next(waits)

        monkeypatch.setattr(watchdog.done, "wait", frozen)
        with watchdog:
            watchdog.run()
        assert not watchdog.stalled


def test_a_reader_waits_for_one_that_computes(monkeypatch):
    """The second is given nothing while the first is at work, and is idle itself."""
    busy = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass\nprint('done', flush=True)"
    with FfmpegProcess(python(busy)) as first:
        reader = python("print(input())")
        with FfmpegProcess(reader, stdin=first, stall_s=0.4, progress=first.computed) as second:
            buffer = memoryview(bytearray(16))
            assert second.read_into(buffer) > 0
            assert not second.stalled
