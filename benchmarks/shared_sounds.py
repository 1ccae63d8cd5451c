"""Time of the tiny model's fusion, forward and backward, two sounds to a picture: shared, and every picture twice.

    python benchmarks/shared_sounds.py [--pictures 6] [--size 96] [--repeats 7]

Both run in turn on one thread; the medians and their ratio are printed. Random weights and features.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import preset
from avsseg.model.vggish import EMBEDDING_DIM

CHANNELS, STRIDES, SOUNDS = (32, 64, 160, 320), (4, 8, 16, 32), 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AvsMamba(preset("avs-mamba-tiny")).train()
    sides = [options.size // stride for stride in STRIDES]
    once = [torch.randn(options.pictures, 1, c, n, n) for c, n in zip(CHANNELS, sides, strict=True)]
    twice = [feature.repeat_interleave(SOUNDS, 0) for feature in once]
    embedding = torch.randn(SOUNDS * options.pictures, 1, EMBEDDING_DIM)
    forms = {"shared": (once, SOUNDS), "every picture twice": (twice, 1)}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.repeats + 1):
        for name, (features, sounds) in forms.items():
            start = time.perf_counter()
            model.fuse(features, embedding, sounds=sounds).mask_feature.sum().backward()
            times[name].append(time.perf_counter() - start)
    # the first round fills caches
    medians = [statistics.median(values[1:]) for values in times.values()]
    for name, median in zip(forms, medians, strict=True):
        print(f"{name}: {median:.3f} s")
    print(f"ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
