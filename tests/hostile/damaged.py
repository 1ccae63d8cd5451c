"""Files that were cut, flipped or lie about themselves."""

from __future__ import annotations

import struct

import makers
from makers import (
    MATROSKA_CLUSTER,
    bad,
    content,
    copy_of,
    cut_in,
    cut_in_element,
    edited,
    first,
    flipped,
    good,
    patched,
    patched_after,
    patched_element,
    surgery,
)
from surgery import TS_PACKET, box, overwrite

NO_VIDEO = "is not a video"
NO_PICTURE = "no picture can be decoded"
NO_INDEX = "moov atom"

CUT = (
    bad("cut_in_ftyp.mp4", "MP4, its first 12 bytes", first("front.mp4", 12), NO_VIDEO),
    bad("cut_in_moov.mp4", "MP4, cut inside the index at its front", cut_in("front.mp4", b"moov", 0.5), NO_PICTURE),
    bad("cut_after_moov.mp4", "MP4, cut after that index", cut_in("front.mp4", b"moov", 1), NO_PICTURE),
    good("cut_in_mdat.mp4", "MP4, cut inside its samples", cut_in("front.mp4", b"mdat", 0.6), 2, "truncated"),
    good("cut_last_byte.mp4", "MP4, its last byte lost", first("front.mp4", -1), 3, "damaged sound"),
    bad("cut_before_moov.mp4", "MP4, cut before the index at its end", cut_in("end.mp4", b"moov", 0), NO_INDEX),
    good("cut_in_late_moov.mp4", "MP4, cut inside that index", cut_in("end.mp4", b"moov", 0.5), 3, "no audio track"),
    good("fragments.mp4", "fragmented MP4", copy_of("pieces.mp4")),
    good(
        "cut_in_fragment.mp4", "fragmented MP4, cut in its first one", cut_in("pieces.mp4", b"mdat", 0.5), 2, "damaged"
    ),
    bad("cut_fragments.mp4", "fragmented MP4, only its head", cut_in("pieces.mp4", b"moov", 1), NO_PICTURE),
    bad("cut_in_ebml.mkv", "Matroska, its first 20 bytes", first("plain.mkv", 20), NO_VIDEO),
    bad("cut_in_tracks.mkv", "Matroska, cut in its list of tracks", cut_in_element("1654ae6b", 0, 20), NO_VIDEO),
    good("cut_in_cluster.mkv", "Matroska, cut in a cluster", cut_in_element(MATROSKA_CLUSTER, 2, 99), 2, "truncated"),
    good("no_head.mkv", "Matroska, written to a pipe: no length, no index", makers.through_a_pipe),
    good(
        "cut_at_both_ends.ts",
        "MPEG-TS, cut in a packet and in a group of pictures at both ends",
        surgery("plain.ts", lambda data: data[TS_PACKET * 20 + 77 : -TS_PACKET * 3 - 50]),
        3,
        "damaged",
    ),
    good("far_key_frame.ts", "MPEG-TS, cut 8 s before a key frame", makers.far_key_frame, 12, "damaged"),
    bad("cut_in_head.avi", "AVI, its first 100 bytes", first("plain.avi", 100), NO_VIDEO),
    good(
        "cut_before_idx1.avi",
        "AVI, cut in a frame: no index",
        surgery("plain.avi", lambda data: data[: data.index(b"idx1") - 3000]),
        3,
        "damaged",
    ),
    good("cut_in_tag.flv", "FLV, cut in its middle", first("plain.flv", 0.6), 2, "truncated"),
    good("cut_vp8.webm", "WebM, cut in its middle", first("plain.webm", 0.6), 2, "truncated"),
    good("cut_program.mpg", "MPEG-PS, cut in its middle", first("plain.mpg", 0.6), 3, "damaged"),
    good("cut_theora.ogv", "Ogg, cut in its middle", first("plain.ogv", 0.8), 2),
    good("cut_windows.wmv", "ASF, cut in its middle", first("plain.wmv", 0.6), 2),
    good(
        "no_packets.ts",
        "MPEG-TS, all packets of its sound lost",
        surgery("plain.ts", lambda data: makers.without_packets(data, 0x101)),
        3,
        "empty or of an unknown codec",
        "left out of the overlay",
    ),
)

FLIPPED = (
    good("flips_in_mdat.mp4", "MP4, 40 bits of its samples", flipped("front.mp4", 1, 40, 0.2), 3, "damaged"),
    good(
        "flips_in_stsz.mp4",
        "MP4, the size of its first sample",
        patched("front.mp4", b"stsz", 12, b"\0\0\1\0"),
        3,
        "damaged",
    ),
    good("flips_in_clusters.mkv", "Matroska, 40 bits of its clusters", flipped("plain.mkv", 3, 10, 0.1), 3, "damaged"),
    good("flips_in_packets.ts", "MPEG-TS, 60 bits", flipped("plain.ts", 4, 60, 0.1), 3, "damaged", "left out"),
    good("flips_in_movi.avi", "AVI, 60 bits of its frames", flipped("plain.avi", 5, 60, 0.1, 0.9), 3, "damaged"),
    good(
        "hole.mp4",
        "MP4, 1000 bytes lost as by a bad sector",
        surgery("front.mp4", lambda data: overwrite(data, len(data) // 2, bytes(1000))),
        3,
        "damaged",
    ),
    bad(
        "noise.mp4",
        "MP4, noise for samples",
        surgery("front.mp4", lambda data: data[: box(data, b"mdat")[0] + 8] + bytes(range(1, 256)) * 200),
        NO_PICTURE,
    ),
    good(
        "no_sound_decodes.mkv",
        "Matroska, the first bytes of all its FLAC frames lost",
        surgery("plain.mkv", lambda data: data.replace(b"\xff\xf8", bytes(2))),
        3,
        "damaged sound",
        "of which nothing can be decoded",
        "cannot be decoded; segmented as silent",
        rarely=("ffmpeg failed with exit code",),
    ),
    bad("zeros.ts", "MPEG-TS, nothing but zeros", content(bytes(TS_PACKET * 100)), NO_VIDEO),
)

LIES = (
    bad(
        "many_samples.mp4",
        "MP4 that declares 2^31 - 1 samples",
        patched("front.mp4", b"stsz", 4, struct.pack(">II", 100, 2**31 - 1)),
        NO_PICTURE,
    ),
    good(
        "huge_picture.mp4",
        "MP4 of 65535 x 65535 pixels, by its header",
        patched_after("front.mp4", b"avc1\0\0\0\0\0\0\0\1", 16, b"\xff" * 4),
        3,
        "damaged",
    ),
    good(
        "huge_box.mp4",
        "MP4 whose index declares 2 GB",
        surgery("front.mp4", lambda data: overwrite(data, box(data, b"moov")[0], b"\x7f\xff\xff\xff")),
    ),
    bad(
        "huge_long_box.mp4",
        "MP4 that begins with a box of 2^63 - 1 bytes",
        surgery("front.mp4", lambda data: struct.pack(">I4sQ", 1, b"free", 2**63 - 1) + data),
        NO_INDEX,
    ),
    bad(
        "nested.mp4",
        "MP4 of 5000 boxes, each inside the other",
        content(b"".join(struct.pack(">I4s", 8 * (5000 - n), b"moov") for n in range(5000))),
        NO_VIDEO,
    ),
    good(
        "long_life.mp4",
        "MP4 whose header declares 37 hours",
        patched("front.mp4", b"mvhd", 16, struct.pack(">I", 37 * 3600 * 1000)),
        rarely=("truncated",),
    ),
    good("long_edit.mp4", "MP4 whose edit list plays on for 24 days", edited((2**31 - 1, 0))),
    bad("no_edit.mp4", "MP4 whose edit list plays nothing", edited((2500, -1)), NO_PICTURE),
    good(
        "no_clock.mp4",
        "MP4 whose clock has 0 ticks a second",
        patched("front.mp4", b"mdhd", 12, bytes(4)),
        (3, 64),
        rarely=("stands still", "damaged"),
    ),
    good(
        "no_frame_rate.mp4",
        "MP4 whose frames last 0 ticks",
        patched("front.mp4", b"stts", 12, bytes(4)),
        rarely=("the picture ends at",),
    ),
    good("no_frames.avi", "AVI of 0 frames, by its header", patched_after("plain.avi", b"strh", 28, bytes(8))),
    good(
        "fast_frames.avi",
        "AVI of 4 billion frames a second",
        patched_after("plain.avi", b"strh", 24, b"\1\0\0\0\xff\xff\xff\xff"),
        1,
        "damaged",
    ),
    bad("huge.gif", "GIF of 65535 x 65535 pixels", makers.huge_gif, NO_PICTURE),
    good("eternal.mkv", "Matroska that declares 10^297 s", patched_element("4489", struct.pack(">d", 1e300))),
    good("short_life.mkv", "Matroska that declares 0.1 s", patched_element("4489", struct.pack(">d", 100))),
    good(
        "hour_late.mkv",
        "Matroska whose last cluster is an hour late",
        surgery("plain.mkv", makers.hour_late_cluster),
        64,
        "stands still",
    ),
    good("spoofing_tags.mkv", "tags like lines of ffmpeg's log", makers.spoofing_tags),
)
