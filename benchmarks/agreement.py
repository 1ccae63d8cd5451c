"""Time of the default weights with and without the agreement of what is seen and heard.

    python benchmarks/agreement.py [--repeats 31] [--threads 1]

A clip of 5 frames at the weights' size, in turn; the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from avsseg.benchmark.models import forward_pass, random_clips
from avsseg.pipeline.device import channels_last
from avsseg.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model()
    channels_last(loaded.model)
    without = copy.deepcopy(loaded.model)
    without.agreement = None
    clips = random_clips(1, loaded.input_size, 5, torch.device("cpu"))
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(options.repeats + 1):
        for agreeing in times:
            start = time.perf_counter()
            forward_pass(loaded.model if agreeing else without, clips, "fp32")
            times[agreeing].append(time.perf_counter() - start)
    # the first round fills caches
    ours, other = (statistics.median(times[agreeing][1:]) for agreeing in (True, False))
    print(f"{loaded.input_size} px: {ours:.3f} s with, {other:.3f} s without ({ours / other:.3f} x)")


if __name__ == "__main__":
    main()
