"""Files that are not what their names say, names that are more than names, and files that point at others."""

from __future__ import annotations

import os

import makers
from clips import H264
from makers import NO_SOUND, SECRET, SERVER, bad, content, copy_of, encoded, good, link, sparse, surgery
from surgery import external_reference

NO_VIDEO = "is not a video"
OTHER_KIND = "is not a kind of video file"
PAGE = "<!DOCTYPE html><html><body>404</body></html>"
LOG_NAME = "a\n  Stream #0:7: Audio: fake\n  Duration: 99:00:00.0.1, s\nStream mapping:\nreceived signal 9.mp4"

CONTENTS = (
    good("avi_inside.mp4", "AVI called MP4", copy_of("plain.avi")),
    good("ts_inside.mkv", "MPEG-TS called Matroska", copy_of("plain.ts")),
    good("bare.mjpeg", "JPEGs in a row", encoded("-c:v", "mjpeg", "-pix_fmt", "yuvj420p", tone=None), 1, NO_SOUND),
    good("bare_too.h264", "H.264 without a container", encoded(*H264, tone=None), 3, NO_SOUND),
    bad(
        "picture.mp4",
        "PNG called MP4",
        encoded("-c:v", "png", "-frames:v", "1", "-f", "image2", tone=None),
        "still PNG",
    ),
    bad("photograph.jpg", "JPEG", encoded("-frames:v", "1", tone=None), "still JPEG"),
    bad("empty.mp4", "no bytes", content(b""), "zero bytes"),
    bad("one_byte.mp4", "one byte", content(b"\0"), NO_VIDEO),
    bad("words.mp4", "a text", content("No video.\n" * 50), NO_VIDEO),
    bad("page.mp4", "a web page that came instead", content(PAGE), NO_VIDEO),
    bad("archive.mp4", "a zip archive", content(b"PK\3\4" + bytes(200)), NO_VIDEO),
)

NAMES = (
    good("été 視頻 🎬 \u202egnp.mp4", "many scripts", copy_of("front.mp4")),
    good(os.fsdecode(b"latin \xe9\xff.mp4"), "not UTF-8", copy_of("front.mp4")),
    good("two\nlines.mp4", "a line break", copy_of("front.mp4")),
    good(LOG_NAME, "lines of ffmpeg's log", encoded(*H264, tone=None), 3, NO_SOUND),
    good("-y.mp4", "an option", copy_of("front.mp4")),
    good("%03d [1] it's $(x).mp4", "a pattern", copy_of("front.mp4")),
    good("n" * 240 + ".mp4", "244 bytes", copy_of("front.mp4")),
    bad("o" * 251 + ".mp4", "255 bytes, to which no .json fits", copy_of("front.mp4"), "File name too long"),
    good("/".join(["d" * 200] * 5) + "/deep.mp4", "1013 bytes of folders", copy_of("front.mp4")),
    good("folder.mp4/inside.mp4", "in a folder called MP4", copy_of("front.mp4")),
)

PLACES = (
    bad("loop.mp4", "a link to itself", link("loop.mp4"), "Too many levels of symbolic links"),
    bad("dangling.mp4", "a link to nothing", link("nothing.mp4"), "no such file"),
    bad("device.mp4", "a link to a device", link("/dev/zero"), "is not a regular file"),
    bad("secret.mp4", f"a link to {SECRET}", link(SECRET), NO_VIDEO),
    bad("pipe.mp4", "a named pipe", makers.named_pipe, "is not a regular file"),
    bad("socket.mp4", "a socket", makers.local_socket, "is not a regular file"),
    bad("sparse.mp4", "a gigabyte of zeros", sparse(1 << 30), NO_VIDEO),
)

PLAYLIST = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{SERVER}/a.ts\n#EXTINF:3,\ntransport.ts\n#EXT-X-ENDLIST\n"
LOCAL_PLAYLIST = PLAYLIST.replace(f"{SERVER}/a.ts", f"file://{SECRET}")
FILES = f"ffconcat version 1.0\nfile transport.ts\nfile {SERVER}/a.mp4\nfile '{SECRET}'\n"
SESSION = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
MANIFEST = f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"><Period><AdaptationSet
mimeType="video/mp4"><Representation id="a" bandwidth="1"><BaseURL>{SERVER}/a.mp4</BaseURL><SegmentBase/>
</Representation></AdaptationSet></Period></MPD>
"""
REFERENCES = f"[Reference]\r\nRef1={SERVER}/a.asf\r\nRef2=file://{SECRET}\r\n"
ELSEWHERE = surgery("end.mp4", lambda data: external_reference(data, b"alis", SECRET))
ONLINE = surgery("end.mp4", lambda data: external_reference(data, b"url ", f"{SERVER}/a.mp4"))

POINTERS = (
    bad("list.m3u8", "a playlist", content(PLAYLIST), OTHER_KIND),
    bad("playlist.mp4", "a playlist called MP4", content(PLAYLIST), "is not a"),
    bad("local.mp4", "a playlist of local files", content(LOCAL_PLAYLIST), "is not a"),
    bad("files.ffconcat", "a list of files to join", content(FILES), OTHER_KIND),
    bad("joined.mp4", "such a list called MP4", content(FILES), OTHER_KIND),
    bad("session.sdp", "the description of a stream", content(SESSION), OTHER_KIND),
    bad("manifest.mpd", "a DASH manifest", content(MANIFEST), NO_VIDEO),
    bad("dash.mp4", "a DASH manifest called MP4", content(MANIFEST), NO_VIDEO),
    bad("references.asf", "an ASX list", content(REFERENCES), OTHER_KIND),
    bad("elsewhere.mov", f"MP4 whose samples lie in {SECRET}", ELSEWHERE, "no picture can be decoded"),
    good("online.mov", "MP4 whose samples lie behind an address, it says", ONLINE),
)
