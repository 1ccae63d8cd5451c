"""Time of the object metrics of one clip: the histogram of `frame_scores` against 255 passes over every frame.

    nice python benchmarks/metrics.py                 # 5 frames of 224 x 224
    nice python benchmarks/metrics.py --size 512 --repeats 11 --threads 1

Both run in turn on the same probabilities; the medians and their ratio are printed, and the largest difference of the
two F curves.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from avsseg.metrics.object import BETA_SQUARED, f_thresholds, frame_scores


def passes(probability: Tensor, target: Tensor) -> Tensor:
    """(F, 255) float32: every threshold a pass of its own."""
    truth = target.float()
    curves = []
    for frame, true in zip(probability, truth, strict=True):
        precision, recall = torch.zeros(255), torch.zeros(255)
        for k, threshold in enumerate(f_thresholds()):
            marked = (frame >= threshold).float()
            hits = (marked * true).sum()
            precision[k] = hits / (marked.sum() + 1e-20)
            recall[k] = hits / (true.sum() + 1e-20)
        curve = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
        curves.append(curve.nan_to_num(nan=0.0))
    return torch.stack(curves)


def milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def measure(frames: int, size: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(frames, 1, 7, 7, generator=generator) * 4
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").squeeze(1)
    target = smooth > 2
    probability = (smooth + torch.randn(smooth.shape, generator=generator)).sigmoid()
    actions = {
        "histogram": lambda: frame_scores(probability, target),
        "255 passes": lambda: passes(probability, target),
    }
    times: dict[str, list[float]] = {label: [] for label in actions}
    for turn in range(repeats + 1):
        for label, action in actions.items():
            taken = milliseconds(action)
            if turn:
                times[label].append(taken)
    difference = (frame_scores(probability, target).f_curve - passes(probability, target)).abs().max().item()
    print(f"{frames} x {size} x {size}, {torch.get_num_threads()} threads, {repeats} interleaved repeats")
    for label, values in times.items():
        spread = f"{min(values):.2f} .. {max(values):.2f}"
        print(f"  {label:10s} {statistics.median(values):9.2f} ms a clip  ({spread})")
    ratio = statistics.median(times["255 passes"]) / statistics.median(times["histogram"])
    print(f"  ratio {ratio:.1f}, largest difference of an F value {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure(arguments.frames, arguments.size, arguments.repeats)


if __name__ == "__main__":
    main()
