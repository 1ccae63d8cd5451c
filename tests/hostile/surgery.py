"""Changes to the bytes of media files: where a structure lies, what is cut off, overwritten or flipped."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

CONTAINERS_OF_BOXES = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"moof", b"traf"})
TS_PACKET = 188


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every box of an MP4, the outer before the inner."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        stop = start + size if size >= 8 else end
        yield kind, start, stop
        if kind in CONTAINERS_OF_BOXES:
            yield from boxes(data, start + 8, stop)
        start = stop


def box(data: bytes, kind: bytes, number: int = 0) -> tuple[int, int]:
    """Start and end of the `number`-th box of that kind."""
    found = [(start, end) for name, start, end in boxes(data) if name == kind]
    return found[number]


def overwrite(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def in_box(data: bytes, kind: bytes, offset: int, new: bytes, number: int = 0) -> bytes:
    """`new` written `offset` bytes after the header of a box."""
    return overwrite(data, box(data, kind, number)[0] + 8 + offset, new)


def replace_box(data: bytes, kind: bytes, new: bytes, number: int = 0) -> bytes:
    """Another box in the place of one, with the sizes of the boxes around it corrected; for an index at the end."""
    start, end = box(data, kind, number)
    for name, outer, outer_end in list(boxes(data)):
        if name in CONTAINERS_OF_BOXES and outer < start and outer_end >= end:
            data = overwrite(data, outer, struct.pack(">I", outer_end - outer + len(new) - (end - start)))
    return data[:start] + new + data[end:]


def make_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def external_reference(data: bytes, kind: bytes, target: str) -> bytes:
    """An MP4 whose samples lie, by its data reference, in another file ("alis") or behind an address ("url ")."""
    if kind == b"url ":
        entry = make_box(b"url ", bytes(4) + target.encode() + b"\0")
    else:
        path = target.encode()
        name = path.rsplit(b"/", 1)[-1][:27]
        # record of 150 bytes: volume name at 10, file name at 50; then pairs of a type, a length and a text: 2 a path
        # (the first levels are given as depths from and to, and both are small enough for ffmpeg to look)
        record = bytearray(150)
        struct.pack_into(">HHH", record, 0, 0, 150, 2)
        record[10] = 3
        record[11:14] = b"etc"
        record[50] = len(name)
        record[51 : 51 + len(name)] = name
        struct.pack_into(">hh", record, 130, 1, 1)
        pairs = b""
        for number, text in ((2, path), (18, path)):
            pairs += struct.pack(">HH", number, len(text)) + text + b"\0" * (len(text) % 2)
        entry = make_box(b"alis", bytes(4) + bytes(record) + pairs + struct.pack(">HH", 0xFFFF, 0))
    return replace_box(data, b"dref", make_box(b"dref", struct.pack(">II", 0, 1) + entry))


def element(data: bytes, identifier: str, number: int = 0) -> int:
    """Where the content of the `number`-th element of that hexadecimal ID begins in a Matroska file."""
    key = bytes.fromhex(identifier)
    at = -1
    for _ in range(number + 1):
        at = data.index(key, at + 1)
    return at + len(key) + _length_of_size(data[at + len(key)])


def _length_of_size(first: int) -> int:
    return 9 - first.bit_length()


def flip_bits(data: bytes, *, seed: int, count: int, start: int = 0, end: int | None = None) -> bytes:
    """`count` single bits turned between `start` and `end`, the same ones for the same seed."""
    draw = random.Random(seed)
    changed = bytearray(data)
    for _ in range(count):
        at = draw.randrange(start, len(data) if end is None else end)
        changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def corrupt(data: bytes, seed: int) -> bytes:
    """One of the ways in which files go bad: flipped bits, a hole of zeros, noise, a cut, bytes lost or repeated."""
    draw = random.Random(seed)
    ways = ("bits", "head", "zeros", "noise", "cut", "lost", "repeated")
    way = ways[seed % len(ways)]
    at = draw.randrange(len(data))
    length = min(draw.choice((1, 16, 188, 1024)), len(data) - at)
    if way == "bits":
        return flip_bits(data, seed=seed, count=draw.choice((1, 8, 64)))
    if way == "head":
        return flip_bits(data, seed=seed, count=draw.choice((1, 4)), end=min(1024, len(data)))
    if way == "zeros":
        return overwrite(data, at, bytes(length))
    if way == "noise":
        return overwrite(data, at, draw.randbytes(length))
    if way == "cut":
        return data[:at]
    if way == "lost":
        return data[:at] + data[at + length :]
    return data[:at] + data[at : at + length] * 2 + data[at + length :]
