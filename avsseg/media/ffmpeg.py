"""Find the ffmpeg program, build its command lines, run and watch its processes.

ffmpeg is always a child process that is given a list of arguments, never a shell line. A child ends with its
`FfmpegProcess`: on `close`, on an exception inside the `with` block, when the object is dropped, at interpreter exit.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import ffmpeg

from avsseg.errors import EnvironmentFault, printable

logger = logging.getLogger(__name__)

MINIMUM_VERSION = (5, 1)  # the first with -fps_mode
STALL_S = 30.0
# A child that computes without giving anything away, on the long way to a far mask, has this many times as long.
BUSY_FACTOR = 20

# A media file may name other files and servers (playlists, concat lists, SDP, DASH, image patterns). Only formats that
# hold their media themselves are opened, and nothing but files and pipes, so reading one file reads that file alone.
PROTOCOLS = "file,pipe"
CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,live_flv,kux,asf,asf_o,ogg,gif,apng,mxf,gxf,nut,wtv,"
    "rm,ivr,dv,nsv,nuv,ivf,obu,av1,h261,h263,h264,hevc,vvc,m4v,mjpeg,vc1,vc1test,yuv4mpegpipe,dirac,cavsvideo,smk,bink,"
    "roq,swf,dhav,vivo,film_cpk,flic,4xm,ty,pmp,thp,mp3,wav,w64,flac,aac,ac3,eac3,dts,dtshd,truehd,aiff,au,caf,ape,tta,"
    "wv,amr,amrnb,amrwb,mpc,mpc8,tak,dsf"
)

# ffmpeg-python hashes its arguments as UTF-8, which cannot hold the surrogates that Python puts for other bytes in file
# names. Private-use characters at the end of Unicode stand for them on the way through it.
_STAND_INS = {0xDC80 + i: 0x10FF00 + i for i in range(0x80)}
_ORIGINALS = {stand_in: original for original, stand_in in _STAND_INS.items()}

# ffmpeg catches SIGTERM and SIGINT, and then ends in order with this code and without a word
STOPPED_CODE = 255
STOPPED_HINT = "Nothing is wrong with the file; run the same command again, with more free memory if that ran out."
CRASHED_HINT = "Set AVSSEG_FFMPEG to another ffmpeg, which may read it."
_CRASHES = frozenset(
    getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
)

INSTALL_HINT = "Install ffmpeg 5.1 or newer, or `pip install imageio-ffmpeg`, or set AVSSEG_FFMPEG to the program."


@dataclass(frozen=True)
class Ffmpeg:
    """An ffmpeg program. `version` is (0,) for builds from a development branch, which carry no number."""

    path: Path
    version: tuple[int, ...]
    source: str  # "AVSSEG_FFMPEG", "PATH" or "imageio-ffmpeg"


def find_ffmpeg() -> Ffmpeg:
    """The ffmpeg named by AVSSEG_FFMPEG, else the one on PATH if it is 5.1 or newer, else imageio-ffmpeg's.

    Raises `EnvironmentFault` if there is none, or if the one that AVSSEG_FFMPEG names cannot be used.
    """
    return _find_ffmpeg(os.environ.get("AVSSEG_FFMPEG", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _find_ffmpeg(chosen: str, search_path: str) -> Ffmpeg:
    if chosen:
        located = shutil.which(chosen) or chosen
        version = _version(located)
        if version is None:
            raise EnvironmentFault(
                f"AVSSEG_FFMPEG={printable(chosen)} is not an ffmpeg 5.1 or newer. Correct it or unset it."
            )
        return Ffmpeg(Path(located), version, "AVSSEG_FFMPEG")
    on_path = shutil.which("ffmpeg", path=search_path)
    if on_path is not None:
        version = _version(on_path)
        if version is not None:
            return Ffmpeg(Path(on_path), version, "PATH")
        logger.info("%s is older than ffmpeg 5.1 or does not start; trying imageio-ffmpeg", on_path)
    try:
        import imageio_ffmpeg

        bundled = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise EnvironmentFault(f"ffmpeg was not found. {INSTALL_HINT}") from error
    version = _version(bundled)
    if version is None:
        raise EnvironmentFault(f"{printable(bundled)} does not run or is older than ffmpeg 5.1. {INSTALL_HINT}")
    return Ffmpeg(Path(bundled), version, "imageio-ffmpeg")


def _version(program: str) -> tuple[int, ...] | None:
    """The version of an ffmpeg program; None if it does not run, is no ffmpeg, or is too old."""
    try:
        text = subprocess.run(
            [program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=STALL_S, check=True
        ).stdout.decode("utf-8", "replace")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    numbered = re.match(r"ffmpeg version n?(\d+(?:\.\d+)+)", text)
    if numbered:
        version = tuple(int(part) for part in numbered[1].split("."))
        return version if version >= MINIMUM_VERSION else None
    library = re.search(r"libavcodec\s+(\d+)\.\s*(\d+)", text)
    if library and (int(library[1]), int(library[2])) >= (59, 37):  # libavcodec 59.37 is that of ffmpeg 5.1
        return (0,)
    return None


def encoders() -> frozenset[str]:
    """Names of the encoders in the ffmpeg that `find_ffmpeg` finds, such as ``libx264``."""
    return _listing(find_ffmpeg(), "-encoders")


def filters() -> frozenset[str]:
    """Names of the filters in the ffmpeg that `find_ffmpeg` finds, such as ``zscale``."""
    return _listing(find_ffmpeg(), "-filters")


@functools.lru_cache(maxsize=8)
def _listing(program: Ffmpeg, option: str) -> frozenset[str]:
    text, _, _ = run_ffmpeg([str(program.path), "-hide_banner", option])
    return frozenset(re.findall(r"^ [A-Z.]{2,6} (\S+) ", text, flags=re.MULTILINE))


def media_input(path: Path, **options: Any) -> Any:
    """The ffmpeg-python input node of one media file, confined to that file."""
    return ffmpeg.input(file_url(path), protocol_whitelist=PROTOCOLS, format_whitelist=CONTAINERS, **options)


def file_url(path: Path) -> str:
    """`path` as ffmpeg takes it literally: without ``file:``, ``x:y.mp4`` would be a protocol and ``-y`` an option.

    For ffmpeg-python's nodes: bytes of a name that are not UTF-8 are stand-ins, which `command` turns back.
    """
    return f"file:{path}".translate(_STAND_INS)


def command(output: Any, *, loglevel: str = "error") -> list[str]:
    """The argument list that runs an ffmpeg-python output node."""
    if not hasattr(ffmpeg, "compile"):
        raise EnvironmentFault(
            "Another package has replaced the module of ffmpeg-python. "
            "Run `pip uninstall ffmpeg python-ffmpeg`, then `pip install --force-reinstall ffmpeg-python`."
        )
    program = [str(find_ffmpeg().path), "-hide_banner", "-nostdin", "-nostats", "-loglevel", loglevel, "-y"]
    arguments: list[str] = ffmpeg.compile(output, cmd=program)
    return [argument.translate(_ORIGINALS) for argument in arguments]


_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.RLock()  # a finalizer may come while it is held


def cannot_start(error: OSError, program: str = "ffmpeg") -> EnvironmentFault:
    """What an error before or at the start of the program comes to."""
    hint = INSTALL_HINT
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "Use fewer --jobs, or allow more open files (`ulimit -n`)"
    elif error.errno in (errno.EAGAIN, errno.ENOMEM):
        hint = "Use fewer --jobs: the system has no more processes or memory to give"
    elif error.errno == errno.ENOSPC:
        hint = f"It keeps its messages in {tempfile.gettempdir()}; TMPDIR names another place"
    return EnvironmentFault(f"{program} does not start ({error.strerror}). {hint}")


class FfmpegProcess:
    """A running ffmpeg whose stdin and stdout are pipes and whose stderr is a temporary file.

    An unread stderr pipe fills up and stops ffmpeg for good; a file does not. While a `read_into`, `write` or `wait`
    blocks, a watchdog counts: after `stall_s` seconds in which no byte moved and `progress` returned the same value,
    the child is killed and `stalled` is True. One that computes meanwhile has `BUSY_FACTOR` times as long. Time between
    calls does not count, so the caller may be slow.

    `stdin` is True for a pipe to `write` to, or another process, whose stdout this one then reads. `pass_fds` are
    files that the child has open, too, by the same numbers.
    """

    _popen: subprocess.Popen[bytes]

    def __init__(
        self,
        arguments: list[str],
        *,
        stdin: bool | FfmpegProcess = False,
        stall_s: float = STALL_S,
        progress: Callable[[], object] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        logger.debug("ffmpeg arguments: %s", arguments)
        source = stdin._popen.stdout if isinstance(stdin, FfmpegProcess) else None
        try:
            stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        except OSError as error:
            raise cannot_start(error, arguments[0]) from error
        try:
            popen = subprocess.Popen(
                arguments,
                stdin=source if source else subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C reaches Python alone, which then ends its children in order
            )
        except OSError as error:
            stderr.close()
            raise cannot_start(error, arguments[0]) from error
        if source is not None:
            source.close()  # held by this child alone, whose end then ends the other
        with _running_lock:
            _running.add(popen)
        self._popen = popen
        self._stderr = stderr
        self._killed = False
        self._watchdog = _Watchdog(popen, stall_s, progress)
        self._finalizer = weakref.finalize(self, _end, popen, self._watchdog, stderr)
        self._watchdog.start()

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._popen.pid

    @property
    def stalled(self) -> bool:
        """True if the watchdog ended the child."""
        return self._watchdog.stalled

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` from stdout; returns the bytes read, fewer than asked only at the end of the output."""
        assert self._popen.stdout is not None
        filled = 0
        while filled < len(buffer):
            with self._watchdog:
                count = self._popen.stdout.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not count:
                break
            filled += count
        return filled

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data` to stdin; raises `BrokenPipeError` if ffmpeg has ended."""
        assert self._popen.stdin is not None
        view = memoryview(data)
        while view:
            with self._watchdog:
                view = view[self._popen.stdin.write(view) :]

    def close_stdin(self) -> None:
        """Tell ffmpeg that its input has ended."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def wait(self) -> int:
        """The exit code, once the child has ended (negative: the signal that ended it)."""
        with self._watchdog:
            return self._popen.wait()

    def kill(self) -> None:
        """End the child now. A read or write that another thread is blocked in returns."""
        self._killed = True
        _kill(self._popen)

    def failure(self) -> str:
        """How the ended child came to a bad end that neither `kill` nor the watchdog caused; "" if it did not.

        A crash and the system's out-of-memory killer show in nothing else: the output merely ends early.
        """
        code = self._popen.returncode
        assert code is not None, "the child still runs"
        if code == 0 or self._killed or self.stalled:
            return ""
        # SIGTERM ends ffmpeg as a signal until it has a handler, and by an exit code from then on
        if code == -signal.SIGTERM or self._stopped():
            return "was stopped from outside"
        return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"

    def computed(self) -> int | None:
        """Clock ticks that the child has computed for; None where the system does not tell (only Linux does)."""
        return _cpu_time(self._popen.pid)

    def killed(self) -> str:
        """The remedy if a signal that was not ours ended the child, whose output is then cut anywhere; otherwise ""."""
        code = self._popen.returncode
        if not self.failure() or not (code < 0 or self._stopped()):
            return ""
        return CRASHED_HINT if code < 0 and -code in _CRASHES else STOPPED_HINT

    def _stopped(self) -> bool:
        return self._popen.returncode == STOPPED_CODE and os.name != "nt" and self.messages(limit=1)[1] == 0

    def said(self) -> int:
        """How many bytes the child, which may be running, has written to stderr so far."""
        return os.fstat(self._stderr.fileno()).st_size

    def messages(self, limit: int = 4096, until: int | None = None) -> tuple[list[str], int]:
        """What the ended child wrote to stderr: the lines in its last `limit` bytes, and the number of all lines.

        Of its first `until` bytes alone, if it is given.
        """
        assert self._popen.returncode is not None, "the child shares the file position while it runs"
        end = self.said() if until is None else until
        self._stderr.seek(0)
        count = sum(self._stderr.read(min(1 << 16, end - at)).count(b"\n") for at in range(0, end, 1 << 16))
        start = max(0, end - limit)
        self._stderr.seek(start)
        tail = self._stderr.read(end - start).decode("utf-8", "replace")
        return [line.strip() for line in tail.split("\n") if line.strip()], count

    def close(self) -> None:
        """End the child if it still runs and release everything; may be called twice."""
        self._finalizer()

    def __enter__(self) -> FfmpegProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Watchdog(threading.Thread):
    """Kills a child that keeps its caller blocked (`with watchdog:`) without progress."""

    def __init__(self, popen: subprocess.Popen[bytes], limit_s: float, progress: Callable[[], object] | None) -> None:
        super().__init__(name="avsseg-ffmpeg-watchdog", daemon=True)
        self.stalled = False
        self.done = threading.Event()
        self._popen = popen
        self._limit_s = limit_s
        self._progress = progress
        self._blocked_since: float | None = None

    def __enter__(self) -> None:
        self._blocked_since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._blocked_since = None

    def run(self) -> None:
        moved_at = busy_at = time.monotonic()
        seen, computed = None, None
        interval_s = min(1.0, self._limit_s / 4)
        looked_at = time.monotonic()
        while not self.done.wait(interval_s):
            now = time.monotonic()
            if now - looked_at > interval_s + self._limit_s / 2:
                moved_at = busy_at = now  # a frozen container, say: all stood still, the child too
            looked_at = now
            blocked_since = self._blocked_since
            if blocked_since is None:
                continue
            if self._progress is not None and (token := self._progress()) != seen:
                moved_at, seen = now, token
            if (spent := _cpu_time(self._popen.pid)) != computed:
                busy_at, computed = now, spent
            waited_s = now - max(blocked_since, moved_at)
            idle_s = min(waited_s, now - busy_at)
            if idle_s > self._limit_s or waited_s > self._limit_s * BUSY_FACTOR:
                self.stalled = True
                _kill(self._popen)
                return


def _cpu_time(pid: int) -> int | None:
    """Clock ticks that a process has computed for; None where the system does not tell (only Linux does)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


def _kill(popen: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started: of a wrapper script, only the script would die otherwise."""
    if popen.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)  # a session of its own is a process group of its own
    else:
        popen.kill()


def kill_running() -> None:
    """End every ffmpeg of this process, so that threads that wait for one go on; for a batch that ends early."""
    with _running_lock:
        for popen in tuple(_running):
            _kill(popen)


def _end(popen: subprocess.Popen[bytes], watchdog: _Watchdog, stderr: IO[bytes]) -> None:
    watchdog.done.set()
    _kill(popen)
    popen.wait()
    with _running_lock:
        _running.discard(popen)
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
    stderr.close()
    if watchdog is not threading.current_thread():
        watchdog.join()


def run_ffmpeg(arguments: list[str], *, stall_s: float = STALL_S) -> tuple[str, list[str], int]:
    """Run a short command: its stdout, the lines of its stderr (the last 8 MiB of them), its exit code.

    Raises `TimeoutError` if nothing came for `stall_s` seconds.
    """
    with FfmpegProcess(arguments, stall_s=stall_s) as process:
        output = bytearray()
        buffer = memoryview(bytearray(1 << 16))
        while count := process.read_into(buffer):
            output += buffer[:count]
        code = process.wait()
        if process.stalled:
            raise TimeoutError(f"ffmpeg made no progress for {stall_s:g} s")
        lines, _ = process.messages(limit=1 << 23)  # hundreds of chapters, or of complaints, come first
    return output.decode("utf-8", "replace"), lines, code
