"""Selective scan on an NVIDIA GPU: the Triton kernels, mamba-ssm where it imports, and the chunked PyTorch form.

    python benchmarks/scan_gpu.py [--length 5145] [--rounds 20] [--dtype float32]

The shape is the Temporal Mamba block of avs-mamba-pvt-v2-b5 at 224 x 224, T = 5: B 1, K 8, D 512, N 16, R 16. Every
side does everything, projection, permutation, scan and merge, through the public operator. Rounds are interleaved in
one run; medians, ratios, the memory beyond inputs and results, and the error against float64 are printed. The baseline
of the ratios is mamba-ssm's operator, or the PyTorch form where that does not import.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from scan_cpu import BATCH, CHANNELS, DIRECTIONS, MEBIBYTE, RANK, STATES, make_problem
from torch import Tensor

from avsseg.ops.selective_scan import available_backends, selective_scan

NAMES = ("triton", "mamba-ssm", "torch")
# The PyTorch form launches a dozen kernels a step: a few rounds say enough.
MOST_TORCH_ROUNDS = 3


def run(name: str, problem: list[Tensor], backward: bool) -> tuple[Tensor, ...]:
    """The output, and with `backward` the gradients of everything but the plan."""
    if not backward:
        with torch.no_grad():
            return (selective_scan(*problem, backend=name),)
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in problem]
    out = selective_scan(*leaves, backend=name)
    return out, *torch.autograd.grad(out, [t for t in leaves if t.is_floating_point()], torch.ones_like(out))


def milliseconds(name: str, problem: list[Tensor], backward: bool) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run(name, problem, backward)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def peak_bytes(name: str, problem: list[Tensor], backward: bool) -> int:
    """Most memory held at one time, less the inputs and the results."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run(name, problem, backward)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in results)


def largest_error(name: str, problem: list[Tensor], expected: Tensor) -> float:
    (out,) = run(name, problem, backward=False)
    return float((out.double() - expected).abs().max() / expected.abs().max())


def compare(names: list[str], baseline: str, problem: list[Tensor], backward: bool, rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # compiles kernels and fills the allocator's pool
        run(name, problem, backward)
    for turn in range(rounds):
        for name in names:
            if name != "torch" or turn < MOST_TORCH_ROUNDS:
                times[name].append(milliseconds(name, problem, backward))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        memory = peak_bytes(name, problem, backward) / MEBIBYTE
        ratio = medians[baseline] / median
        print(f"  {name:9s} {median:10.3f} ms   {ratio:7.2f} x as fast as {baseline}   {memory:8.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=5145)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the tokens")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/scan_gpu.py: no CUDA device; avsseg info says what is missing")
    reasons = available_backends()
    names = [name for name in NAMES if not reasons[name]]
    baseline = "mamba-ssm" if "mamba-ssm" in names else "torch"
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, tokens in {arguments.dtype}")
    print(f"B {BATCH} K {DIRECTIONS} D {CHANNELS} N {STATES} R {RANK} L {arguments.length}")
    for name in NAMES:
        if reasons[name]:
            print(f"  without {name}: {reasons[name]}")
    exact = [t.cuda() for t in make_problem(arguments.length)]
    tokens = exact[0].to(getattr(torch, arguments.dtype))
    problem = [tokens, *exact[1:]]
    for backward in (False, True):
        print("forward and backward" if backward else "forward", flush=True)
        compare(names, baseline, problem, backward, arguments.rounds)
    print("largest error of the output, relative to the largest value", flush=True)
    wide = [t.double() if t.is_floating_point() else t for t in problem]
    (expected,) = run("torch", wide, backward=False)
    for name in names:
        print(f"  {name:9s} {largest_error(name, problem, expected):.1e}")


if __name__ == "__main__":
    main()
