"""Time of the tiny model by its audio encoder: YAMNet and the compact one.

    python benchmarks/audio_encoder.py [--repeats 31] [--threads 1]

A clip of 5 frames at 192 px with its sound, random weights, in turn; the medians, their ratio and the millions of
parameters are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from avsseg.benchmark.models import forward_pass, random_clips
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import preset
from avsseg.pipeline.device import channels_last

SIZE = 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models: dict[str, AvsMamba] = {}
    for name in ("yamnet", "compact"):
        config = preset("avs-mamba-tiny", audio_encoder=name, input_size=SIZE, heard_classes=48, agreement=True)
        models[name] = AvsMamba(config).eval()
        channels_last(models[name])
    clips = random_clips(1, SIZE, 5, torch.device("cpu"))
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            forward_pass(model, clips, "fp32")
            times[name].append(time.perf_counter() - start)
    # the first round fills caches
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, model in models.items():
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{name}: {medians[name]:.3f} s, {millions:.1f} M parameters")
    print(f"{medians['yamnet'] / medians['compact']:.3f} x")


if __name__ == "__main__":
    main()
