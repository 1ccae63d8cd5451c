"""The process whose peak memory `measure_models` reports: one pass of one model on the CPU, then its own peak.

    python -m avsseg.benchmark.memory '["avs-mamba-tiny", 1, 224, 5, "fp32", 2]'

Prints bytes, or nothing where the system does not tell.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch

from avsseg.benchmark.models import build_models, forward_pass, random_clips


def peak_bytes() -> int | None:
    """The most memory that this process has held so far; None on a system that does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():
        # the resource module would count the parent in, whose memory a new process shares until it becomes its own
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def main() -> None:
    name, batch, size, frames, precision, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    model, clips = build_models([name], device)[name], random_clips(batch, size, frames, device)
    with contextlib.suppress(OSError):  # only Linux has it: what drawing random weights took is not the model's
        Path("/proc/self/clear_refs").write_text("5")
    forward_pass(model, clips, precision)
    peak = peak_bytes()
    if peak is not None:
        print(peak)


if __name__ == "__main__":
    main()
