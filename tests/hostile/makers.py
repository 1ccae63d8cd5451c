"""What a row of the corpus is, and makers: functions that write one file, or return one that does."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clips import AAC, EXACT, H264, Workshop
from surgery import box, element, flip_bits, in_box, make_box, overwrite, replace_box

Maker = Callable[[Workshop, Path], None]

SERVER = "http://127.0.0.1:18099"  # stands in every playlist; a test puts its own in its place
SECRET = "/etc/passwd"
NO_SOUND = "no audio track"
MATROSKA_CLUSTER = "1f43b675"


@dataclass(frozen=True)
class HostileFile:
    """One file of the corpus.

    Attributes:
        name: its path below the folder.
        how: how it is made, in words.
        make: makes it.
        masks: how many masks a run at one mask a second makes of it: several numbers where versions of ffmpeg differ,
            none if it is to fail.
        warnings: words of each warning that the run gives; any other would be a false alarm.
        rarely: words of further warnings, which not all versions of ffmpeg give cause for.
        error: words of the error if it is to fail.
    """

    name: str
    how: str
    make: Maker
    masks: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    rarely: tuple[str, ...] = ()
    error: str = ""


def good(
    name: str, how: str, make: Maker, masks: int | tuple[int, ...] = 3, *warnings: str, rarely: tuple[str, ...] = ()
) -> HostileFile:
    return HostileFile(name, how, make, masks if isinstance(masks, tuple) else (masks,), warnings, rarely)


def bad(name: str, how: str, make: Maker, error: str) -> HostileFile:
    return HostileFile(name, how, make, error=error)


# whole files


def content(data: bytes | str) -> Maker:
    def make(shop: Workshop, path: Path) -> None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    return make


def encoded(*options: str, **inputs: Any) -> Maker:
    """A clip of its own; see `Workshop.encode`."""
    return lambda shop, path: shop.encode(path, *options, **inputs)


def late(track: str, seconds: float, picture_s: float = 2.5) -> Maker:
    """The picture or the tone starts after the other one."""
    picture = f"testsrc2=size=64x48:rate=8:duration={picture_s}"
    offset = {f"before_{track}": ("-itsoffset", str(seconds))}
    return encoded(*H264, *AAC, "-max_interleave_delta", "0", "-fps_mode", "passthrough", picture=picture, **offset)


def rotated(degrees: int) -> Maker:
    """The matrix of the track header turns the stored picture, as phones do."""
    a, b, c, d, x, y = {90: (0, 1, -1, 0, 48, 0), 180: (-1, 0, 0, -1, 64, 48), 270: (0, -1, 1, 0, 0, 64)}[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 0x40000000)
    return patched("front.mp4", b"tkhd", 40, matrix)


def high_dynamic_range(transfer: str) -> Maker:
    tags = f"setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
    return encoded("-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1", "-c:a", "flac")


def sparse(size: int) -> Maker:
    def make(shop: Workshop, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def link(target: str) -> Maker:
    return lambda shop, path: path.symlink_to(target)


def named_pipe(shop: Workshop, path: Path) -> None:
    os.mkfifo(path)


def local_socket(shop: Workshop, path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the address of a socket holds no more than 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


# operations on the bytes of a whole clip


def surgery(source: str, operate: Callable[[bytes], bytes]) -> Maker:
    def make(shop: Workshop, path: Path) -> None:
        path.write_bytes(operate(shop.bytes_of(source)))

    return make


def copy_of(source: str) -> Maker:
    return surgery(source, bytes)


def first(source: str, size: int | float) -> Maker:
    """The first bytes, or the first share of them."""
    return surgery(source, lambda data: data[: size if isinstance(size, int) else int(len(data) * size)])


def cut_in(source: str, kind: bytes, share: float) -> Maker:
    """Cut off at a share of the way through a box."""

    def operate(data: bytes) -> bytes:
        start, end = box(data, kind)
        return data[: start + round((end - start) * share)]

    return surgery(source, operate)


def cut_in_element(identifier: str, number: int, size: int) -> Maker:
    return surgery("plain.mkv", lambda data: data[: element(data, identifier, number) + size])


def patched(source: str, kind: bytes, offset: int, new: bytes) -> Maker:
    return surgery(source, lambda data: in_box(data, kind, offset, new))


def patched_element(identifier: str, new: bytes, number: int = 0) -> Maker:
    return surgery("plain.mkv", lambda data: overwrite(data, element(data, identifier, number), new))


def patched_after(source: str, words: bytes, offset: int, new: bytes) -> Maker:
    """Overwritten `offset` bytes after the first place of some bytes."""
    return surgery(source, lambda data: overwrite(data, data.index(words) + len(words) + offset, new))


def flipped(source: str, seed: int, count: int, start: float = 0.0, end: float = 1.0) -> Maker:
    """Single bits flipped between two shares of the file."""
    return surgery(
        source,
        lambda data: flip_bits(data, seed=seed, count=count, start=int(len(data) * start), end=int(len(data) * end)),
    )


def edited(*entries: tuple[int, int]) -> Maker:
    """An MP4 whose picture plays these spans: their length in milliseconds, the tick of the track they begin at."""
    table = b"".join(struct.pack(">IiI", length, begin, 0x10000) for length, begin in entries)
    new = make_box(b"elst", struct.pack(">II", 0, len(entries)) + table)
    return surgery("end.mp4", lambda data: replace_box(data, b"elst", new))


def hour_late_cluster(data: bytes) -> bytes:
    """A Matroska file whose last cluster begins an hour late; its time is in milliseconds, in two bytes or three."""
    at = data.index(b"\xe7", element(data, MATROSKA_CLUSTER, 2))
    size = data[at + 1] & 0x7F
    later = int.from_bytes(data[at + 2 : at + 2 + size], "big") + 3_600_000
    # the new time takes the place of the old one and of the first block, whose rest becomes an element to skip
    new = b"\xe7\x84" + later.to_bytes(4, "big")
    block = at + 2 + size
    length = int.from_bytes(data[block + 1 : block + 3], "big") & 0x3FFF
    assert data[block] == 0xA3, "a simple block follows the time"
    assert data[block + 1] & 0xC0 == 0x40, "of a size in two bytes"
    end = block + 3 + length
    hole = end - at - len(new) - 3
    return data[:at] + new + b"\xec" + (0x4000 | hole).to_bytes(2, "big") + bytes(hole) + data[end:]


def without_packets(data: bytes, identifier: int) -> bytes:
    """An MPEG-TS without the packets of one stream, which its tables still name."""
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    return b"".join(packet for packet in packets if int.from_bytes(packet[1:3], "big") & 0x1FFF != identifier)


# several steps with ffmpeg


def jumping_stream(shop: Workshop, path: Path) -> None:
    later = shop.folder / "later.ts"
    joined = shop.bytes_of("plain.ts")
    for offset in ("1000", "500"):
        shop.run("-i", shop.whole("plain.ts"), "-c", "copy", "-output_ts_offset", offset, *EXACT, later)
        joined += later.read_bytes()
    path.write_bytes(joined)


def far_key_frame(shop: Workshop, path: Path) -> None:
    long = ("testsrc2=size=64x48:rate=8:duration=11.5", "sine=440:sample_rate=16000:duration=11.5")
    rare = ("-g", "64", "-keyint_min", "64", "-sc_threshold", "0")
    shop.encode(path, *H264, *rare, *AAC, picture=long[0], tone=long[1])
    path.write_bytes(path.read_bytes()[188 * 30 + 77 :])


def cover_art(shop: Workshop, path: Path) -> None:
    cover, sound = shop.folder / "cover.jpg", shop.folder / "cover.m4a"
    shop.encode(cover, "-frames:v", "1", tone=None)
    shop.encode(sound, *AAC, picture=None)
    both = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v", "attached_pic", "-f", "mp4")
    shop.run("-i", sound, "-i", cover, *both, *EXACT, path)


def cover_before_video(shop: Workshop, path: Path) -> None:
    cover = shop.folder / "first_cover.jpg"
    shop.encode(cover, "-frames:v", "1", tone=None, picture="color=red:size=320x240:rate=8:duration=1")
    both = ("-map", "0:v", "-map", "1:v", "-map", "1:a", "-c", "copy", "-disposition:v:0", "attached_pic")
    shop.run("-i", cover, "-i", shop.whole("end.mp4"), *both, *EXACT, path)


def two_pictures(shop: Workshop, path: Path) -> None:
    second = shop.folder / "second.mp4"
    shop.encode(second, *H264, tone=None, picture="color=red:size=160x120:rate=4:duration=6")
    maps = ("-map", "0:v", "-map", "1:v", "-map", "0:a")
    shop.run("-i", shop.whole("end.mp4"), "-i", second, *maps, "-c", "copy", *EXACT, path)


def subtitled(shop: Workshop, path: Path) -> None:
    words = shop.folder / "words.srt"
    words.write_text("1\n00:00:00,000 --> 00:00:02,000\nStream #0:9: Audio: none\n")
    maps = ("-map", "0", "-map", "1", "-c", "copy", "-c:s", "srt")
    shop.run("-i", shop.whole("end.mp4"), "-i", words, *maps, *EXACT, path)


def spoofing_tags(shop: Workshop, path: Path) -> None:
    tags = ("-metadata", "x\n  Duration: 99:00:00.0.1, s=y", "-metadata", "title=a\nStream mapping:\nb")
    language = ("-metadata:s:0", "language=e): x\n  Duration: 98:00:00.0.1, s\n  Stream #0:1: Video: y, 1.2.3 fps (z")
    shop.run("-i", shop.whole("end.mp4"), "-c", "copy", *tags, *language, *EXACT, path)


def through_a_pipe(shop: Workshop, path: Path) -> None:
    path.write_bytes(shop.piped("-i", shop.whole("plain.mkv"), "-c", "copy", *EXACT, "-f", "matroska", "pipe:1"))


def huge_gif(shop: Workshop, path: Path) -> None:
    shop.encode(path, tone=None)
    path.write_bytes(overwrite(path.read_bytes(), 6, b"\xff" * 4))
