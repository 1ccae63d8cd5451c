"""The whole clips that the hostile ones are made of: 2.5 s, 64x48, 8 frames a second, a tone; each encoded once."""

from __future__ import annotations

import subprocess
from pathlib import Path

SECONDS = 2.5
PICTURE = f"testsrc2=size=64x48:rate=8:duration={SECONDS}"
TONE = f"sine=440:sample_rate=16000:duration={SECONDS}"
# one thread and no names of programs or moments, so that one ffmpeg makes the same bytes every time
EXACT = ("-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact")
# a key frame a second, and no frame that waits for a later one
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "8", "-bf", "0", "-pix_fmt", "yuv420p")
AAC = ("-c:a", "aac", "-b:a", "32k")

WHOLE: dict[str, tuple[str, ...]] = {
    "front.mp4": (*H264, *AAC, "-movflags", "+faststart"),
    "end.mp4": (*H264, *AAC),
    "pieces.mp4": (*H264, *AAC, "-movflags", "+frag_keyframe+empty_moov+default_base_moof"),
    "plain.mkv": (*H264, "-c:a", "flac", "-cluster_time_limit", "1000"),
    "plain.ts": (*H264, *AAC),
    "plain.avi": ("-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p", "-c:a", "pcm_s16le"),
    "plain.flv": (*H264, *AAC, "-ar", "44100"),
    "plain.webm": ("-c:v", "libvpx", "-g", "8", "-b:v", "100k", "-cpu-used", "8", "-c:a", "libopus", "-ar", "48000"),
    "plain.mpg": ("-r", "25", "-c:v", "mpeg2video", "-g", "12", "-c:a", "mp2", "-ar", "44100"),
    "plain.ogv": ("-c:v", "libtheora", "-g", "8", "-c:a", "libvorbis", "-ac", "2", "-ar", "44100"),
    "plain.wmv": ("-c:v", "wmv2", "-g", "8", "-c:a", "wmav2", "-ar", "44100"),
}


class Workshop:
    """Makes clips with one ffmpeg; `folder` holds the whole ones and whatever is needed on the way."""

    def __init__(self, folder: Path, ffmpeg: str) -> None:
        self.folder = folder
        self._ffmpeg = ffmpeg

    def run(self, *arguments: str | Path) -> None:
        command = [self._ffmpeg, "-v", "error", "-nostdin", "-y", *map(str, arguments)]
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr.decode(errors='replace')}")

    def piped(self, *arguments: str | Path) -> bytes:
        command = [self._ffmpeg, "-v", "error", "-nostdin", *map(str, arguments)]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout

    def encode(
        self,
        path: Path,
        *options: str,
        picture: str | None = PICTURE,
        tone: str | None = TONE,
        before_picture: tuple[str, ...] = (),
        before_tone: tuple[str, ...] = (),
    ) -> None:
        """A clip of a lavfi picture and a lavfi tone; None leaves either out."""
        inputs = [*before_picture, "-f", "lavfi", "-i", picture] if picture else []
        inputs += [*before_tone, "-f", "lavfi", "-i", tone] if tone else []
        self.run(*inputs, *options, *EXACT, f"file:{path}")

    def whole(self, name: str) -> Path:
        """One of the clips in `WHOLE`."""
        path = self.folder / name
        if not path.exists():
            self.encode(path, *WHOLE[name])
        return path

    def bytes_of(self, name: str) -> bytes:
        return self.whole(name).read_bytes()
