"""A batch of short clips in one `avsseg run`, with --jobs 1 and more, against a run for each clip.

    python benchmarks/batch.py                      # 20 clips of 6 s, overlays, --jobs 2
    python benchmarks/batch.py --clips 8 --format masks --jobs 4

The clips are made here with ffmpeg. In each round all of them are run on their own, then in one batch with `--jobs 1`,
then in one with `--jobs N`; printed are the medians over the rounds and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from avsseg.media.ffmpeg import find_ffmpeg


def make_clip(path: Path, seed: int, seconds: int, size: str) -> None:
    picture = f"testsrc2=size={size}:rate=25:duration={seconds},hue=h={seed * 17}"
    sound = f"sine=frequency={220 + 20 * seed}:beep_factor=3:duration={seconds}"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    codecs = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    subprocess.run([str(find_ffmpeg().path), "-v", "error", "-y", *inputs, *codecs, str(path)], check=True)


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "avsseg", "run", *command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=6, help="length of each clip")
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--format", default="overlay")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kinds = ("single runs", "--jobs 1", f"--jobs {options.jobs}")
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = folder / "clips"
        clips.mkdir()
        for seed in range(options.clips):
            make_clip(clips / f"{seed:02d}.mp4", seed, options.seconds, options.size)
        for round_number in range(options.rounds):
            out = folder / str(round_number)
            asked = ["--format", options.format]
            singles = [[str(clip), "--out", str(out / clip.stem), *asked] for clip in sorted(clips.iterdir())]
            taken[kinds[0]].append(sum(seconds_of(command) for command in singles))
            for kind, jobs in zip(kinds[1:], ("1", str(options.jobs)), strict=True):
                taken[kind].append(seconds_of([str(clips), "--out", str(out / kind), "--jobs", jobs, *asked]))
    medians = {kind: statistics.median(times) for kind, times in taken.items()}
    for kind, median in medians.items():
        print(f"{kind:12} {median:7.1f} s  {median / medians[kinds[0]]:.2f} of the single runs  {taken[kind]}")
    print(f"--jobs {options.jobs} / --jobs 1: {medians[kinds[2]] / medians[kinds[1]]:.2f}")


if __name__ == "__main__":
    main()
