"""Peak memory of `avsseg run` on a 1-minute and a 20-minute video: it must not grow with the length.

    python benchmarks/run_memory.py                # 720p, 60 s and 1200 s
    python benchmarks/run_memory.py --short 20 --long 120

Both files are made here with ffmpeg. The peak is the largest sum of proportional set sizes (Linux) over the process
tree, sampled ten times a second: resident sizes would count Python's pages twice while it forks an ffmpeg.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from avsseg.media.ffmpeg import find_ffmpeg


def make_video(path: Path, seconds: int) -> None:
    picture = f"testsrc2=size=1280x720:rate=25:duration={seconds}"
    sound = f"sine=frequency=440:beep_factor=2:duration={seconds}"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    subprocess.run([str(find_ffmpeg().path), "-v", "error", "-y", *inputs, *codecs, str(path)], check=True)


def tree_memory(process: psutil.Process) -> int:
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def peak_of_run(video: Path, output: Path, extra: list[str]) -> tuple[int, float]:
    command = [sys.executable, "-m", "avsseg", "run", str(video), "--out", str(output), "--quiet", "--allow-untrained"]
    start = time.perf_counter()
    process = psutil.Popen([*command, *extra])
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, tree_memory(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    if process.wait() != 0:
        raise SystemExit(f"avsseg run failed on {video}")
    return peak, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=60, help="seconds of the short video")
    parser.add_argument("--long", type=int, default=1200, help="seconds of the long video")
    parser.add_argument("--out", choices=("overlay.mp4", "masks", "coco.json"), default="overlay.mp4")
    arguments, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for seconds in (arguments.short, arguments.long):
            video = Path(folder) / f"{seconds}s.mp4"
            make_video(video, seconds)
            peak, taken = peak_of_run(video, Path(folder) / f"{seconds}-{arguments.out}", extra)
            peaks.append(peak)
            print(f"{seconds:6d} s of 720p -> {arguments.out}: peak {peak / 2**20:7.0f} MiB, took {taken:.0f} s")
        print(f"long / short: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
