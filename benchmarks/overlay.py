"""CPU time of rendering an overlay, against ffmpeg transcoding the same video with the same encoder settings.

    python benchmarks/overlay.py [--video FILE] [--pairs 5] [--seconds 10]

Counts the CPU seconds of the whole process tree, Python included; the masks are made beforehand, so a model's time is
not in them. The ways take turns, and their medians are compared: masks held and mixed, and both with a name above each.
Without --video a 1080p clip is synthesised.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from avsseg.media.captions import Caption
from avsseg.media.ffmpeg import file_url, find_ffmpeg
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.render import Interpolation, VideoRenderer

MASK_SIZE = 224
BARS: dict[str, float] = {"hold": 1.15, "linear": 1.2, "hold, named": 1.15, "linear, named": 1.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = arguments.video or synthesise(folder / "input.mp4", arguments.seconds)
        print(json.dumps(compare(video, folder, arguments.pairs), indent=2))


def compare(video: Path, folder: Path, pairs: int) -> dict[str, object]:
    info = probe(video)
    assert info.duration_s is not None
    masks = moving_discs(math.ceil(info.duration_s))
    seconds: dict[str, list[float]] = {way: [] for way in ("transcode", *BARS)}
    for _ in range(pairs):
        seconds["transcode"].append(transcode_cpu_s(video, folder / "transcode.mp4"))
        for named in (False, True):
            for interpolate in get_args(Interpolation):
                way = f"{interpolate}, named" if named else interpolate
                seconds[way].append(overlay_cpu_s(info, folder / "overlay.mp4", masks, interpolate, named=named))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    ratios = {way: medians[way] / medians["transcode"] for way in BARS}
    return {
        "video": f"{info.width}x{info.height}, {info.duration_s:g} s, {info.frame_rate:g} frames a second",
        "ffmpeg": str(find_ffmpeg().version),
        "median_cpu_s": {way: round(value, 2) for way, value in medians.items()},
        "ratio": {way: round(value, 3) for way, value in ratios.items()},
        "bar": BARS,
        "within_bar": all(ratios[way] <= bar for way, bar in BARS.items()),
    }


def synthesise(path: Path, seconds: int) -> Path:
    """Moving shapes with film grain, so that the encoder has as much to do as with a filmed picture."""
    picture = f"testsrc2=size=1920x1080:rate=30:duration={seconds},noise=alls=6:allf=t"
    sources = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", f"sine=duration={seconds}"]
    run_ffmpeg(*sources, "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", str(path))
    return path


def moving_discs(count: int) -> list[NDArray[np.float32]]:
    y, x = np.mgrid[0:MASK_SIZE, 0:MASK_SIZE].astype(np.float32)
    centres = [(40 + 23 * k) % MASK_SIZE for k in range(count)]
    return [np.clip((60 - np.hypot(x - centre, y - MASK_SIZE / 2)) / 4, 0, 1) for centre in centres]


def transcode_cpu_s(video: Path, output: Path) -> float:
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"]
    before = cpu_s()
    run_ffmpeg("-i", file_url(video), "-map", "0:V:0", "-map", "0:a?", *encoder, "-c:a", "copy", str(output))
    return cpu_s() - before


def overlay_cpu_s(
    info: VideoInfo, output: Path, masks: list[NDArray[np.float32]], interpolate: Interpolation, *, named: bool
) -> float:
    captions = [Caption("dog", 0.5, 0.4)] if named else []
    before = cpu_s()
    with VideoRenderer(
        info,
        output,
        rate=1.0,
        mask_width=MASK_SIZE,
        mask_height=MASK_SIZE,
        colour=(255, 64, 0),
        opacity=0.5,
        captioned=named,
        interpolate=interpolate,
    ) as renderer:
        for mask in masks:
            renderer.write(mask, captions)
    return cpu_s() - before


def cpu_s() -> float:
    """CPU seconds of this process and of its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_ffmpeg(*arguments: str) -> None:
    subprocess.run([str(find_ffmpeg().path), "-v", "error", "-nostdin", "-y", *arguments], check=True)


if __name__ == "__main__":
    main()
