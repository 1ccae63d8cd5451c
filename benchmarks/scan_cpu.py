"""Selective scan on one CPU thread: the recurrence as usually written, the best PyTorch form, and the C++ kernel.

    python benchmarks/scan_cpu.py [--length 5145] [--rounds 3] [--without-naive]

The shape is the Temporal Mamba block of avs-mamba-pvt-v2-b5 at 224 x 224, T = 5: B 1, K 8, D 512, N 16, R 16. Every
side does everything: projection, gather, scan, merge. Rounds are interleaved and medians are printed, so that the
ratios hold on a busy machine. Memory is the peak of a fresh process beyond its inputs, output and gradients.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.benchmark.scans import ScanShape, scan_problem
from avsseg.ops import cpu
from avsseg.ops.selective_scan import selective_scan

BATCH, DIRECTIONS, CHANNELS, STATES, RANK = 1, 8, 512, 16, 16
# The backward of the naive loop is quadratic in the length: each slice of a step has a gradient as large as the whole.
NAIVE_BACKWARD_LENGTH = 128
MEBIBYTE = 2**20

Scan = Callable[..., Tensor]


def make_problem(length: int) -> list[Tensor]:
    """Arguments of `selective_scan`, those of `avsseg bench --scan`."""
    return scan_problem(ScanShape(BATCH, DIRECTIONS, length, CHANNELS, STATES, RANK))


def naive_scan(
    tokens: Tensor,
    plan: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> Tensor:
    """The recurrence of the paper, eq. 1-4, as public reference code writes it.

    All directions are stacked on the channel axis, (B, K * D, L, N) tensors are in memory, each step slices them.
    """
    length, stacked = plan.shape[1], DIRECTIONS * CHANNELS
    u = tokens[:, plan].transpose(2, 3)
    projected = torch.einsum("bkdl,kcd->bkcl", u, x_proj_weight)
    dt, B, C = torch.split(projected, [RANK, STATES, STATES], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", dt, dt_projs_weight) + dt_projs_bias[:, :, None]
    delta, u = F.softplus(delta).reshape(-1, stacked, length), u.reshape(-1, stacked, length)
    B, C = B.repeat_interleave(CHANNELS, dim=1), C.repeat_interleave(CHANNELS, dim=1)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, -A_logs.exp()))
    drive = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u)
    hidden = tokens.new_zeros(tokens.shape[0], stacked, STATES)
    steps = []
    for i in range(length):
        hidden = decay[:, :, i] * hidden + drive[:, :, i]
        steps.append(torch.einsum("bdn,bdn->bd", hidden, C[:, :, :, i]))
    y = (torch.stack(steps, dim=2) + u * Ds[:, None]).view(-1, DIRECTIONS, CHANNELS, length)
    return torch.zeros_like(tokens).index_add(1, plan.flatten(), y.transpose(2, 3).flatten(1, 2))


def torch_scan(*problem: Tensor) -> Tensor:
    return selective_scan(*problem, backend="torch")


def cpp_scan(*problem: Tensor) -> Tensor:
    return selective_scan(*problem, backend="cpp")


SCANS: dict[str, Scan] = {"naive": naive_scan, "torch": torch_scan, "cpp": cpp_scan}


def time_forward(scan: Scan, problem: list[Tensor]) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        scan(*problem)
        return time.perf_counter() - start


def time_backward(scan: Scan, problem: list[Tensor]) -> float:
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in problem]
    out = scan(*leaves)
    grad_out = torch.ones_like(out)
    start = time.perf_counter()
    torch.autograd.grad(out, [t for t in leaves if t.is_floating_point()], grad_out)
    return time.perf_counter() - start


def interleave(measure: Callable[[Scan, list[Tensor]], float], names: list[str], length: int, rounds: int) -> None:
    problem = make_problem(length)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(measure(SCANS[name], problem))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"  {name:6s} {median * 1e3:10.1f} ms   {median / medians['cpp']:7.1f} x cpp")


def print_backward_ratio(length: int, rounds: int) -> None:
    problem = make_problem(length)
    pairs = [(time_forward(cpp_scan, problem), time_backward(cpp_scan, problem)) for _ in range(max(rounds, 5))]
    forward, backward = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"  forward {forward * 1e3:.1f} ms, backward {backward * 1e3:.1f} ms: {backward / forward:.2f} x forward")


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def print_own_peak(name: str, length: int, backward: bool) -> None:
    """Run in a fresh process: the peak beyond inputs, output and gradients."""
    problem = make_problem(length)
    measure = time_backward if backward else time_forward
    measure(SCANS[name], make_problem(64))
    before = resident_bytes("VmRSS")
    # Resets the high-water mark to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    measure(SCANS[name], problem)
    floating = [t for t in problem if t.is_floating_point()]
    results = problem[0].nbytes + (problem[0].nbytes + sum(t.nbytes for t in floating) if backward else 0)
    print(f"  {name:6s} {(resident_bytes('VmHWM') - before - results) / MEBIBYTE:8.1f} MiB")


def print_peak(name: str, length: int, backward: bool) -> None:
    arguments = ["--peak-of", name, "--length", str(length), *(["--backward"] if backward else [])]
    subprocess.run([sys.executable, __file__, *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=5145)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-naive", action="store_true", help="it takes half a minute and 8 GB")
    parser.add_argument("--peak-of", choices=SCANS, help=argparse.SUPPRESS)
    parser.add_argument("--backward", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print_own_peak(arguments.peak_of, arguments.length, arguments.backward)
        return
    names = ["torch", "cpp"] if arguments.without_naive else list(SCANS)
    print(f"B {BATCH} K {DIRECTIONS} D {CHANNELS} N {STATES} R {RANK}, one thread, C++ on {cpu.capability()}")
    print(f"forward, L {arguments.length}", flush=True)
    interleave(time_forward, names, arguments.length, arguments.rounds)
    print(f"C++ forward and backward, L {arguments.length}", flush=True)
    print_backward_ratio(arguments.length, arguments.rounds)
    print(f"backward, L {NAIVE_BACKWARD_LENGTH}", flush=True)
    interleave(time_backward, names, NAIVE_BACKWARD_LENGTH, arguments.rounds)
    if sys.platform == "linux":
        print(f"peak memory of a forward beyond inputs and output, L {arguments.length}", flush=True)
        for name in names:
            print_peak(name, arguments.length, backward=False)
        print("peak memory of forward and backward beyond inputs, output and all gradients", flush=True)
        print_peak("cpp", arguments.length, backward=True)


if __name__ == "__main__":
    main()
