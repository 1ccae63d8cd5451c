"""Time of whole models with kernels of convolutions channels-last, as in `avsseg run`, and as PyTorch makes them.

    python benchmarks/kernel_layout.py [--repeats 15] [--threads 1]

A clip of 5 frames at each model's own size, in turn; the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from avsseg.benchmark.models import config_of, forward_pass, random_clips
from avsseg.model.avs_mamba import AvsMamba
from avsseg.pipeline.device import channels_last

MODELS = ("avs-mamba-tiny", "avs-mamba-resnet50", "avs-mamba-pvt-v2-b5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in MODELS:
        config = config_of(name)
        model, side = AvsMamba(config).eval(), config.input_size
        laid = copy.deepcopy(model)
        channels_last(laid)
        clips = random_clips(1, side, 5, torch.device("cpu"))
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(options.repeats + 1):
            for last in times:
                start = time.perf_counter()
                forward_pass(laid if last else model, clips, "fp32")
                times[last].append(time.perf_counter() - start)
        # the first round fills caches
        ours, usual = (statistics.median(times[last][1:]) for last in (True, False))
        print(
            f"{name}, {side} px: {ours:.3f} s, as PyTorch makes them {usual:.3f} s ({usual / ours:.3f} x)", flush=True
        )


if __name__ == "__main__":
    main()
