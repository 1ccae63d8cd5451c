"""Time of a whole model against its own visual backbone, and the tiny model's latency.

    python benchmarks/model_cpu.py                 # the paper's PVT-v2-b5 model at T = 5, the tiny one at T = 10, the
                                                   # latter also at the size of the weights that come with the package
    python benchmarks/model_cpu.py --repeats 9 --threads 1

Backbone, whole model and whole model with the head's plain convolutions run in turn; the medians and their ratio are
printed. Random weights: the arithmetic does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import preset
from avsseg.model.head import SimilarityLift
from avsseg.ops.selective_scan import available_backends
from avsseg.weights import load_model


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def plain_lift(self: SimilarityLift, similarity: torch.Tensor) -> torch.Tensor:
    first, second, third = self.layers
    return third(second(first(similarity).relu()).relu())


def measure(name: str, frames: int, size: int, repeats: int) -> None:
    torch.manual_seed(0)
    model = AvsMamba(preset(name)).eval()
    pictures, log_mel = torch.randn(1, frames, 3, size, size), torch.randn(1, frames, 1, 96, 64)
    table_lift = SimilarityLift.forward

    def whole() -> None:
        model(pictures, log_mel)

    def whole_with_plain_head() -> None:
        SimilarityLift.forward = plain_lift  # type: ignore[method-assign]
        try:
            whole()
        finally:
            SimilarityLift.forward = table_lift  # type: ignore[method-assign]

    actions = {
        "backbone": lambda: model.visual_backbone(pictures[0]),
        "model": whole,
        "model, head by convolutions": whole_with_plain_head,
    }
    times: dict[str, list[float]] = {label: [] for label in actions}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for label, action in actions.items():
                taken = seconds(action)
                if turn:
                    times[label].append(taken)
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(f"{name}, T = {frames}, {size} x {size}, {torch.get_num_threads()} threads, {repeats} interleaved repeats")
    for label, median in medians.items():
        spread = f"{min(times[label]):.3f} .. {max(times[label]):.3f}"
        print(f"  {label:28s} {median:8.3f} s  ({spread})  {median / medians['backbone']:6.2f} x backbone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("scan back ends:", {name: reason or "usable" for name, reason in available_backends().items()})
    measure("avs-mamba-pvt-v2-b5", 5, arguments.size, arguments.repeats)
    measure("avs-mamba-tiny", 10, arguments.size, arguments.repeats)
    measure("avs-mamba-tiny", 10, load_model().input_size, arguments.repeats)


if __name__ == "__main__":
    main()
