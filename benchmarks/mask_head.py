"""Time of the head's full-size layers, as the model has them and at full size as the paper writes them.

    python benchmarks/mask_head.py [--repeats 7]

The tiny model's head at 160 px and the paper's at 224 px, forward (the model: picture by picture, as written: all at
once), and forward and backward (the model: on cells), in turn on one thread; the medians and their ratio are printed.
Random weights and features; what comes before those layers is the model's own and is not timed, but it decides how
their input lies in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.model.config import preset
from avsseg.model.head import STRIDE, MaskHead

CASES = {"avs-mamba-tiny": (160, 40), "avs-mamba-pvt-v2-b5": (224, 5)}  # side, frames


def at_full_size(head: MaskHead, x: Tensor) -> Tensor:
    upsampled = F.interpolate(x, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    logits: Tensor = head.classify(F.relu(head.refine(upsampled)))
    return logits


def seconds(head: MaskHead, x: Tensor, *, ours: bool, backward: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        logits = head.full_size(x) if ours else at_full_size(head, x)
        if backward:
            logits.mean().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (side, frames) in CASES.items():
        config = preset(name)
        head = MaskHead(config)
        mask_feature = torch.randn(frames, config.dim, side // STRIDE, side // STRIDE)
        for backward in (False, True):
            with torch.set_grad_enabled(backward):
                x = head.reduce(head.lift(mask_feature[:, :1]) + mask_feature).detach().requires_grad_(backward)
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(options.repeats + 1):
                for ours in times:
                    times[ours].append(seconds(head, x, ours=ours, backward=backward))
            # the first round fills caches
            fast, slow = (statistics.median(times[ours][1:]) for ours in (True, False))
            passes = "forward and backward" if backward else "forward"
            print(
                f"{name}, {side} px, {frames} frames, {passes}: {fast:.3f} s, "
                f"as written {slow:.3f} s ({slow / fast:.2f} x)"
            )


if __name__ == "__main__":
    main()
