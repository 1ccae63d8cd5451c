"""How long `avsseg` takes to answer when there is nothing to compute: help, version, a wrong path.

    python benchmarks/startup.py [--rounds 9]

Wall time of whole processes, the commands in turn; `import torch` alone is beside them, because that is what a start
without it saves. The first round only warms the disk's cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "avsseg --help": ["-m", "avsseg", "--help"],
    "avsseg --version": ["-m", "avsseg", "--version"],
    "avsseg run nope.mp4 --out o.mp4": ["-m", "avsseg", "run", "nope.mp4", "--out", "o.mp4"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            taken = seconds(arguments)
            if turn:
                times[name].append(taken)
    for name, taken in times.items():
        print(f"{name:34s} {statistics.median(taken):.3f} s  ({min(taken):.3f} .. {max(taken):.3f})")


if __name__ == "__main__":
    main()
