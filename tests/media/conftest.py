"""Videos whose frames carry a barcode of their own index, one for each trap of reading video; made once a session."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.render import VideoRenderer

WIDTH, HEIGHT = 160, 96  # two rows of eight cells, and a grey strip below that tests of the overlay tint
COLUMNS, ROWS = 8, 3
MARKS = {(0, 0): 1, (0, 7): 0, (1, 0): 0, (1, 7): 1}  # wrong if the picture is turned or mirrored
INDEX_CELLS = [(row, column) for row in (0, 1) for column in range(1, 7)]
FRAME_RATE = 30


@dataclass(frozen=True)
class BarcodeVideo:
    """A video, and when each of its frames appears, in seconds on the container's clock."""

    path: Path
    times: tuple[float, ...]
    indices: tuple[int, ...]
    end_s: float  # of the picture

    def on_screen(self, time_s: float) -> int:
        """The index of the frame that a player shows at `time_s`; the first frame before there is any."""
        shown = [i for t, i in zip(self.times, self.indices, strict=True) if t <= time_s + 1e-6]
        return shown[-1] if shown else self.indices[0]


def barcode_picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Grey (height, width): `index` in twelve bits."""
    cells = np.full((ROWS, COLUMNS), 128, np.uint8)
    for cell, bit in MARKS.items():
        cells[cell] = 235 if bit else 16
    for position, cell in enumerate(INDEX_CELLS):
        cells[cell] = 235 if index >> position & 1 else 16
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return cells[rows][:, columns]


def _read_barcode(frame: NDArray[np.uint8]) -> int:
    """The index in a frame (H, W) or (H, W, 3) of any size; fails the test if the picture is turned."""
    grey = frame if frame.ndim == 2 else frame.mean(axis=2)
    height, width = grey.shape

    def bit(row: int, column: int) -> int:
        y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
        return int(grey[y - 2 : y + 3, x - 2 : x + 3].mean() > 128)

    assert {cell: bit(*cell) for cell in MARKS} == MARKS, "the picture is turned or mirrored"
    return sum(bit(*cell) << position for position, cell in enumerate(INDEX_CELLS))


def encode(
    path: Path | str,
    pictures: Iterable[NDArray[np.uint8]],
    *options: str,
    before: Sequence[str] = (),
    inputs: Sequence[str] = (),
    rate: float = FRAME_RATE,
) -> bytes:
    """Encode grey pictures by a rawvideo pipe; `before` are options of that input, `inputs` further ones."""
    pictures = list(pictures)
    height, width = pictures[0].shape
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-framerate", str(rate)]
    command = [
        str(find_ffmpeg().path),
        "-v",
        "error",
        "-y",
        *raw,
        *before,
        "-i",
        "pipe:0",
        *inputs,
        *options,
        str(path),
    ]
    done = subprocess.run(command, input=b"".join(p.tobytes() for p in pictures), stdout=subprocess.PIPE, check=True)
    return done.stdout


def run_ffmpeg(*arguments: str) -> None:
    subprocess.run([str(find_ffmpeg().path), "-v", "error", "-nostdin", "-y", *arguments], check=True)


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "20", "-pix_fmt", "yuv420p")
SINE = ("-f", "lavfi", "-i", "sine=frequency=440:duration=3.4")


def _steady(path: Path, count: int = 100, first_s: float = 0.0, rate: float = FRAME_RATE) -> BarcodeVideo:
    digits = 3 if path.suffix in (".mkv", ".webm") else 9  # Matroska counts milliseconds
    times = tuple(first_s + round(i / rate, digits) for i in range(count))
    return BarcodeVideo(path, times, tuple(range(count)), first_s + count / rate)


def _pictures(count: int = 100) -> list[NDArray[np.uint8]]:
    return [barcode_picture(i) for i in range(count)]


def _plain(folder: Path) -> BarcodeVideo:
    path = folder / "plain.mp4"
    encode(path, _pictures(), *X264, "-bf", "2", "-c:a", "aac", "-movflags", "+faststart", inputs=SINE)
    return _steady(path)


def _short(folder: Path) -> BarcodeVideo:
    path = folder / "short.mp4"
    encode(path, _pictures(12), *X264)
    return _steady(path, 12)


def _single(folder: Path) -> BarcodeVideo:
    path = folder / "single.mp4"
    encode(path, _pictures(1), *X264)
    return _steady(path, 1)


def _slideshow(folder: Path) -> BarcodeVideo:
    path = folder / "slideshow.mp4"
    encode(path, _pictures(4), *X264, rate=0.5)
    return _steady(path, 4, rate=0.5)


def _variable(folder: Path, suffix: str) -> BarcodeVideo:
    path = folder / f"variable.{suffix}"
    kept = [i for i in range(100) if not 20 <= i < 56 and i % 7]
    choice = "not(between(n\\,20\\,55))*mod(n\\,7)"
    encode(path, _pictures(), *X264, "-bf", "2", "-vf", f"select='{choice}'", "-fps_mode", "vfr")
    times = _steady(path).times
    first_s = times[kept[0]]
    return BarcodeVideo(path, tuple(times[i] - first_s for i in kept), tuple(kept), 100 / 30 - first_s)


def _edit_list(folder: Path) -> BarcodeVideo:
    encode(folder / "before_cut.mp4", _pictures(240), *X264, "-bf", "2", "-g", "60")
    path = folder / "edit_list.mp4"
    run_ffmpeg("-ss", "3.2", "-i", str(folder / "before_cut.mp4"), "-c", "copy", str(path))
    indices = tuple(range(96, 240))  # 3.2 s * 30 = 96
    return BarcodeVideo(path, tuple(i / 30 - 3.2 for i in indices), indices, 8 - 3.2)


def _transport_stream(folder: Path) -> BarcodeVideo:
    path = folder / "offset.ts"
    encode(path, _pictures(), *X264, "-output_ts_offset", "11.4")
    return _steady(path)


def _odd_size(folder: Path) -> BarcodeVideo:
    path = folder / "odd.mkv"
    encode(path, [barcode_picture(i, 161, 97) for i in range(100)], "-c:v", "ffv1", "-pix_fmt", "yuv444p")
    return _steady(path)


def _rotated(folder: Path) -> BarcodeVideo:
    path = folder / "rotated.mp4"
    encode(path, [np.rot90(p).copy() for p in _pictures()], *X264)
    data = bytearray(path.read_bytes())
    # The matrix of the track header (tkhd, version 0) turns the stored picture clockwise by 90 degrees, as phones do.
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, HEIGHT << 16, 0, 0x40000000)
    path.write_bytes(data)
    return _steady(path)


def _late_picture(folder: Path, suffix: str) -> BarcodeVideo:
    path = folder / f"late_picture.{suffix}"
    late = ("-itsoffset", "1.5")
    encode(path, _pictures(), *X264, "-c:a", "aac", "-fps_mode", "passthrough", before=late, inputs=SINE)
    # The sound starts with an AAC packet of priming; MPEG-TS has no edit list to leave it out.
    return _steady(path, first_s=1.5 + (1024 / 44100 if suffix == "ts" else 0))


def _anamorphic(folder: Path) -> BarcodeVideo:
    path = folder / "anamorphic.mp4"
    encode(path, _pictures(), *X264, "-vf", "setsar=64/45")
    return _steady(path)


def _ten_bit(folder: Path) -> BarcodeVideo:
    path = folder / "ten_bit.mkv"
    encode(path, _pictures(), "-c:v", "ffv1", "-pix_fmt", "yuv420p10le")
    return _steady(path)


def _webm(folder: Path) -> BarcodeVideo:
    path = folder / "plain.webm"
    encode(path, _pictures(), "-c:v", "libvpx", "-b:v", "1M", "-deadline", "realtime", "-cpu-used", "8")
    return _steady(path)


def _intra_refresh(folder: Path) -> BarcodeVideo:
    path = folder / "intra_refresh.mp4"
    encode(path, _pictures(), *X264, "-x264-params", "intra-refresh=1:keyint=15:bframes=0")
    return _steady(path)


def _resized(folder: Path) -> BarcodeVideo:
    small = [barcode_picture(i, 80, 48) for i in range(50, 100)]
    first = encode("pipe:1", _pictures(50), *X264, "-f", "mpegts")
    second = encode("pipe:1", small, *X264, "-f", "mpegts", "-output_ts_offset", str(50 / 30))
    path = folder / "resized.ts"
    path.write_bytes(first + second)
    return _steady(path)


def _no_duration(folder: Path) -> BarcodeVideo:
    path = folder / "no_duration.mkv"
    path.write_bytes(encode("pipe:1", _pictures(), *X264, "-f", "matroska"))  # a pipe cannot go back to note the length
    return _steady(path)


def _sound_outlasts(folder: Path) -> BarcodeVideo:
    path = folder / "sound_outlasts.mp4"
    encode(path, _pictures(60), *X264, "-c:a", "aac", inputs=SINE)
    return _steady(path, 60)


def _long(folder: Path) -> BarcodeVideo:
    path = folder / "long.mp4"
    encode(path, _pictures(750), *X264, "-g", "100", "-c:a", "aac", inputs=("-f", "lavfi", "-i", "sine=duration=25"))
    return _steady(path, 750)


MAKERS: dict[str, Callable[[Path], BarcodeVideo]] = {
    "plain": _plain,
    "short": _short,
    "single": _single,
    "slideshow": _slideshow,
    "variable_mp4": lambda folder: _variable(folder, "mp4"),
    "variable_mkv": lambda folder: _variable(folder, "mkv"),
    "edit_list": _edit_list,
    "transport_stream": _transport_stream,
    "odd_size": _odd_size,
    "rotated": _rotated,
    "late_picture": lambda folder: _late_picture(folder, "mp4"),
    "late_picture_ts": lambda folder: _late_picture(folder, "ts"),
    "anamorphic": _anamorphic,
    "ten_bit": _ten_bit,
    "webm": _webm,
    "intra_refresh": _intra_refresh,
    "resized": _resized,
    "no_duration": _no_duration,
    "sound_outlasts": _sound_outlasts,
    "long": _long,
}


@pytest.fixture(scope="session")
def barcode_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BarcodeVideo]:
    """The video of that name in `MAKERS`. Read only."""
    folder = tmp_path_factory.mktemp("barcode")
    made: dict[str, BarcodeVideo] = {}

    def get(name: str) -> BarcodeVideo:
        if name not in made:
            made[name] = MAKERS[name](folder)
        return made[name]

    return get


@pytest.fixture(scope="session")
def read_barcode() -> Callable[[NDArray[np.uint8]], int]:
    return _read_barcode


@pytest.fixture(scope="session")
def encode_barcodes() -> Callable[..., bytes]:
    """`encode(path, count, *options, ...)`: a video of `count` frames with barcodes."""

    def encode_count(path: Path | str, count: int, *options: str, **keywords: Sequence[str]) -> bytes:
        return encode(path, _pictures(count), *options, **keywords)

    return encode_count


@pytest.fixture(params=["found", "bundled"])
def each_ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test with the ffmpeg that would be found, and with the one inside imageio-ffmpeg."""
    bundled = imageio_ffmpeg.get_ffmpeg_exe()
    if request.param == "bundled":
        if find_ffmpeg().path == Path(bundled):
            pytest.skip("the ffmpeg found is the bundled one")
        monkeypatch.setenv("AVSSEG_FFMPEG", bundled)
    return str(request.param)


@pytest.fixture
def standing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to put a program in ffmpeg's place that answers `-version` and otherwise never says a word."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")

    def replace() -> None:
        script = tmp_path / "standing_ffmpeg"
        answer = f'case "$*" in -version) exec "{find_ffmpeg().path}" -version ;; esac'
        script.write_text(f"#!/bin/sh\n{answer}\nexec sleep 60\n")
        script.chmod(0o755)
        monkeypatch.setenv("AVSSEG_FFMPEG", str(script))

    return replace


@pytest.fixture(scope="session")
def run() -> Callable[..., None]:
    """`run(*arguments)`: ffmpeg, with paths and words as arguments."""
    return lambda *arguments: run_ffmpeg(*map(str, arguments))


@pytest.fixture(scope="session")
def tone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(path))
    return path


@pytest.fixture(scope="session")
def still_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("still") / "still.png"
    encode(path, [barcode_picture(5)], "-frames:v", "1")
    return path


MASK_HEIGHT, MASK_WIDTH = 24, 40
RED = {"colour": (255, 0, 0), "opacity": 1.0, "mask_width": MASK_WIDTH, "mask_height": MASK_HEIGHT}


def _strip(strength: float) -> NDArray[np.float32]:
    mask = np.zeros((MASK_HEIGHT, MASK_WIDTH), np.float32)
    mask[MASK_HEIGHT * 2 // 3 :] = strength
    return mask


@pytest.fixture(scope="session")
def strip() -> Callable[[float], NDArray[np.float32]]:
    """`strip(strength)`: a mask over the grey strip below the barcode."""
    return _strip


@pytest.fixture(scope="session")
def strengths() -> Callable[[int], list[float]]:
    """`strengths(count)`: values of which neighbours, and neighbours but one, differ."""
    return lambda count: [(0.0, 1.0, 0.5)[k % 3] for k in range(count)]


@pytest.fixture(scope="session")
def red_renderer() -> Callable[..., VideoRenderer]:
    """`red_renderer(info, path, **options)`: a renderer of masks such as `strip` gives, in opaque red, one a second."""
    return lambda info, path, **options: VideoRenderer(info, path, **{**RED, "rate": 1.0, **options})


@pytest.fixture(scope="session")
def render(red_renderer: Callable[..., VideoRenderer]) -> Callable[..., Path]:
    """`render(info, path, strengths, **options)`: a finished video of strips of those strengths."""

    def make(info: VideoInfo, path: Path, masks: Sequence[float], **options: object) -> Path:
        with red_renderer(info, path, **{"container": path.suffix[1:], **options}) as renderer:
            for strength in masks:
                renderer.write(_strip(strength))
        return path

    return make


def _decode(path: Path, *options: str) -> bytes:
    program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:V:0"]
    arguments = ["-fps_mode", "passthrough", "-copyts", *options, "pipe:1"]
    return subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="session")
def frames_of() -> Callable[[Path, str], tuple[list[float], NDArray[np.uint8]]]:
    """`frames_of(path, pixel_format)`: when each frame of a video appears, and all of them, (F, H, W, channels)."""

    def decode(path: Path, pixel_format: str) -> tuple[list[float], NDArray[np.uint8]]:
        log = _decode(path, "-enc_time_base", "1:120000", "-f", "framecrc").decode()
        numerator, denominator = map(int, re.search(r"#tb 0: (\d+)/(\d+)", log).groups())
        times = [int(line.split(",")[2]) * numerator / denominator for line in log.splitlines() if line[0] != "#"]
        info = probe(path)
        pixels = np.frombuffer(_decode(path, "-f", "rawvideo", "-pix_fmt", pixel_format), np.uint8)
        return times, pixels.reshape(len(times), info.height, info.width, -1)

    return decode


def strip_level(frames: NDArray[np.uint8], channel: int) -> NDArray[np.float64]:
    """The mean level of each frame's strip."""
    middle = frames.shape[1] * 5 // 6
    return frames[:, middle - 3 : middle + 3, 20:-20, channel].mean(axis=(1, 2))


@dataclass(frozen=True)
class Shown:
    time_s: float
    index: int  # of the barcode
    strength: float  # of the red over the strip


@pytest.fixture(scope="session")
def watch(frames_of: Callable[[Path, str], tuple[list[float], NDArray[np.uint8]]]) -> Callable[[Path], list[Shown]]:
    """`watch(path)`: every frame of a rendered video."""

    def watch(path: Path) -> list[Shown]:
        times, frames = frames_of(path, "rgb24")
        blue = strip_level(frames, 2)
        return [Shown(t, _read_barcode(f), 1 - b / 128) for t, f, b in zip(times, frames, blue, strict=True)]

    return watch


@pytest.fixture(scope="session")
def watch_matte(
    frames_of: Callable[[Path, str], tuple[list[float], NDArray[np.uint8]]],
) -> Callable[[Path], tuple[list[float], list[float]]]:
    """`watch_matte(path)`: when each frame of a matte appears, and its brightness, 0 to 1, where the strip lies."""

    def watch(path: Path) -> tuple[list[float], list[float]]:
        times, frames = frames_of(path, "gray")
        return times, (strip_level(frames, 0) / 255).tolist()

    return watch
