"""Latency, throughput and memory of whole models: the measurements behind the paper's Fig. 10.

Weights are random where there are none, since the arithmetic does not depend on them.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avsseg.benchmark.complexity import Complexity, complexity
from avsseg.benchmark.options import BenchOptions, is_checkpoint, model_config
from avsseg.benchmark.timing import Listener, ignore, synchronise, time_in_turn
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.pipeline.device import channels_last, resolve_device, resolve_precision
from avsseg.pipeline.options import Precision
from avsseg.pipeline.scoring import AUTOCAST_DTYPES, is_out_of_memory
from avsseg.weights.store import load_model

SEED = 0
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class BenchRow:
    """One model at one size.

    Attributes:
        model, backbone: the name asked for, and that of the visual backbone in it.
        size, frames, batch: side of the input in pixels, T, and clips a pass.
        complexity: parameters, and operations of one clip; None where there was no memory for it.
        times_s: seconds of each timed pass.
        peak_bytes: on CUDA the most memory allocated while only this model would be there; on a CPU the peak of a
            process of its own that does one pass, Python and PyTorch included. None where the system does not tell.
        error: why there are no times, or "".
    """

    model: str
    backbone: str
    size: int
    frames: int
    batch: int = 1
    complexity: Complexity | None = None
    times_s: tuple[float, ...] = ()
    peak_bytes: int | None = None
    error: str = ""

    @property
    def latency_s(self) -> float:
        """Median seconds of a pass; NaN without times."""
        return statistics.median(self.times_s) if self.times_s else float("nan")

    @property
    def frames_per_s(self) -> float:
        return self.batch * self.frames / self.latency_s

    def as_json(self, rate: float) -> dict[str, object]:
        """Plain values; those that are not known are None. `rate`: frames that a second of video gives."""
        counts = self.complexity
        timed = bool(self.times_s)
        return {
            "model": self.model,
            "backbone": self.backbone,
            "size": self.size,
            "frames": self.frames,
            "batch": self.batch,
            "parameters": counts and counts.parameters,
            "backbone_parameters": counts and counts.backbone_parameters,
            "flops": counts and counts.flops,
            "scan_flops": counts and counts.scan_flops,
            "latency_s": self.latency_s if timed else None,
            "fastest_s": min(self.times_s) if timed else None,
            "slowest_s": max(self.times_s) if timed else None,
            "frames_per_s": self.frames_per_s if timed else None,
            "times_playback": self.frames_per_s / rate if timed else None,
            "peak_bytes": self.peak_bytes,
            "error": self.error,
        }


def measure_models(options: BenchOptions, listener: Listener = ignore) -> list[BenchRow]:
    """A row for each model and size, in that order; `listener` hears what is being done.

    Sets the threads of this process. A row that runs out of memory says so and does not stop the others.

    Raises:
        EnvironmentFault, UsageError: there is no such device.
        WeightsError: a checkpoint cannot be read.
    """
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # before all else, as a file may be no checkpoint
    backbones = {name: config_of(name).backbone for name in dict.fromkeys(options.models)}
    rows = {
        (name, size): BenchRow(name, backbone, size, options.frames, options.batch)
        for name, backbone in backbones.items()
        for size in dict.fromkeys(options.sizes)
    }
    if device.type == "cpu":  # first, while this process is small and leaves the memory to others
        for (name, size), row in rows.items():
            listener(f"memory of {label(name, size)}")
            rows[name, size] = replace(row, peak_bytes=peak_of_own_process(row, precision))
    models = build_models(list(backbones), device)
    for (name, size), row in rows.items():
        listener(f"operations of {label(name, size)}")
        rows[name, size] = _first_pass(row, models[name], device, precision)
    clips = {size: random_clips(options.batch, size, options.frames, device) for size in options.sizes}
    passes = {
        label(name, size): functools.partial(forward_pass, models[name], clips[size], precision)
        for (name, size), row in rows.items()
        if not row.error
    }
    times = time_in_turn(passes, options.repeats, device, listener)
    return [replace(row, times_s=times.get(label(*key), ())) for key, row in rows.items()]


def label(name: str, size: int) -> str:
    """A row in words."""
    return f"{name} at {size}"


def config_of(name: str) -> AvsMambaConfig:
    """That of the checkpoint, or of the preset or backbone of that name. Raises WeightsError and UsageError."""
    return load_model(name, allow_untrained=True).config if is_checkpoint(name) else model_config(name)


def build_models(names: list[str], device: torch.device) -> dict[str, AvsMamba]:
    """The models of these names with random weights, in eval mode on `device`.

    Those of one kind of audio encoder share it: of the paper's models it is up to half, and all are held at once.
    """
    torch.manual_seed(SEED)
    models: dict[str, AvsMamba] = {}
    audio_encoders: dict[str, torch.nn.Module] = {}
    for name in names:
        model = AvsMamba(config_of(name))
        model.audio_encoder = audio_encoders.setdefault(model.config.audio_encoder, model.audio_encoder)
        models[name] = model.to(device).eval()
        channels_last(model)
    return models


def random_clips(batch: int, size: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise as frames (B, T, 3, size, size) and log_mel (B, T, 1, 96, 64), float32."""
    return (
        torch.randn(batch, frames, 3, size, size, device=device),
        torch.randn(batch, frames, 1, 96, 64, device=device),
    )


@torch.inference_mode()
def forward_pass(model: AvsMamba, clips: tuple[Tensor, Tensor], precision: Precision) -> None:
    """One pass, as `avsseg.pipeline.segment` does it."""
    dtype = AUTOCAST_DTYPES.get(precision)
    with torch.autocast(clips[0].device.type, dtype=dtype, enabled=dtype is not None):
        model(*clips)


def _first_pass(row: BenchRow, model: AvsMamba, device: torch.device, precision: Precision) -> BenchRow:
    """Counts operations and memory, and is the pass that compiles kernels and fills caches before any is timed."""
    try:
        row = replace(row, complexity=complexity(model, *random_clips(1, row.size, row.frames, device), precision))
    except (RuntimeError, MemoryError) as error:
        # counting takes float32 and attention as it is written: the pass itself may fit all the same
        if not is_out_of_memory(error):
            raise
    try:
        clips = random_clips(row.batch, row.size, row.frames, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            others = torch.cuda.memory_allocated(device) - sum(
                tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *clips)
            )
            forward_pass(model, clips, precision)
            synchronise(device)
            return replace(row, peak_bytes=torch.cuda.max_memory_allocated(device) - others)
        forward_pass(model, clips, precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return replace(row, error=OUT_OF_MEMORY)
    return row


def peak_of_own_process(row: BenchRow, precision: Precision) -> int | None:
    """Bytes that a fresh process holds at most that does one pass on the CPU; None where that cannot be had."""
    name = os.path.abspath(row.model) if row.model.endswith(".safetensors") else row.model
    asked = json.dumps([name, row.batch, row.size, row.frames, precision, torch.get_num_threads()])
    command = [sys.executable, "-m", "avsseg.benchmark.memory", asked]
    # Python puts the folder that it starts in before its own modules: one without files of that name
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=empty)
    # killed for its memory, as a rule: the pass in this process will tell
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None
