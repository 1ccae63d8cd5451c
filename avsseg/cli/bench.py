"""`avsseg bench`: what models and scan back ends take on this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import avsseg
from avsseg.benchmark.options import DEFAULT_MODELS, BenchOptions
from avsseg.errors import EnvironmentFault, UsageError, printable
from avsseg.model.config import FIGURE_10_SIZES
from avsseg.pipeline.options import Precision

if TYPE_CHECKING:
    import torch

    from avsseg.benchmark.models import BenchRow

_FIGURE_10 = ",".join(map(str, FIGURE_10_SIZES))
EXAMPLES = f"""[bold]Examples[/bold]

avsseg bench --models avs-mamba-tiny --sizes 192  [dim]the model that comes with the package, at its size[/dim]

avsseg bench --sizes {_FIGURE_10} --plot figure-10.png  [dim]the paper's Fig. 10: backbones against resolution[/dim]

avsseg bench --models resnet50,pvt_v2_b2 --device cuda --precision bf16 --json  [dim]any backbone, on a GPU[/dim]

avsseg bench --scan  [dim]the back ends of the selective scan, side by side[/dim]
"""


def bench(
    models: Annotated[
        str,
        typer.Option(
            "--models",
            "--backbones",
            metavar="LIST",
            help="Models, .safetensors files, or visual backbones (such as resnet50, pvt_v2_b2, vmamba-t, vim-s) to "
            "put into the paper's model, with commas between.",
        ),
    ] = ",".join(DEFAULT_MODELS),
    sizes: Annotated[
        str, typer.Option(metavar="LIST", help="Sides of the square input in pixels, with commas between.")
    ] = ",".join(map(str, BenchOptions.sizes)),
    frames: Annotated[int, typer.Option(metavar="T", help="Frames of a clip.")] = BenchOptions.frames,
    batch: Annotated[
        int, typer.Option(metavar="B", help="Clips that go through the model together, for the most speed on a GPU.")
    ] = BenchOptions.batch,
    rate: Annotated[
        float, typer.Option(help="Masks a second of video: what `x playback` is reckoned with.")
    ] = BenchOptions.rate,
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Timed passes of each row, in turn with the others'; medians count.")
    ] = BenchOptions.repeats,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to measure.")] = (
        BenchOptions.device
    ),
    precision: Annotated[
        Precision, typer.Option(help="Number format of the models; auto is fp32 on a CPU, on CUDA bf16 or fp16.")
    ] = BenchOptions.precision,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="CPU threads. Default: one for each core.", show_default=False),
    ] = BenchOptions.threads,
    scan: Annotated[
        bool,
        typer.Option(
            "--scan",
            help="Measure the back ends of the selective scan instead, on the scan of the paper's Temporal Mamba at "
            "the first of --sizes and --frames.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help='Draw the table too, with matplotlib: `pip install "avsseg\\[train]"`.',
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture of --plot if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of a table.")] = False,
) -> None:
    """Measure latency, throughput, memory, operations and parameters, for each backbone and resolution.

    Weights are random where there are none, which changes nothing. Memory is that of a process of its own on a CPU,
    that allocated on CUDA.

    GFLOP: two a multiply-add, and B K L D (9 N + 1 + 2 R) a selective scan.
    """
    options = BenchOptions(
        models=tuple(_listed(models)),
        sizes=tuple(_numbers("--sizes", sizes)),
        frames=frames,
        batch=batch,
        device=device,
        precision=precision,
        threads=threads,
        repeats=repeats,
        rate=rate,
    )
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"--device {device}: choose auto, cpu, cuda, cuda:N or mps")
    if plot is not None:
        if scan:
            raise UsageError("--plot draws the table of models; drop it, or --scan")
        if plot.suffix.lower() != ".png":
            raise UsageError(f"--plot {printable(plot)}: the name must end in .png")
        if plot.is_dir() or (os.path.lexists(plot) and not overwrite):
            raise UsageError(f"--plot {printable(plot)}: exists already. Choose another name, or add --overwrite")
        from avsseg.benchmark.figure import require_matplotlib
        from avsseg.writers.base import PartialOutput

        # before minutes of measuring, not after
        require_matplotlib()
        PartialOutput(plot).discard()
    if scan:
        usual = BenchOptions()
        names = ("models", "batch", "precision", "rate")
        given = [name for name in names if getattr(options, name) != getattr(usual, name)]
        if given:
            raise UsageError(f"--scan measures one scan in float32, no model: drop --{', --'.join(given)}, or --scan")
        _bench_scans(options, as_json=as_json)
    else:
        _bench_models(options, plot, as_json=as_json)


def _bench_models(options: BenchOptions, plot: Path | None, *, as_json: bool) -> None:
    from avsseg.benchmark.complexity import CONVENTION
    from avsseg.benchmark.models import measure_models
    from avsseg.ops.selective_scan import automatic_backend
    from avsseg.pipeline.device import resolve_device, resolve_precision

    place = resolve_device(options.device)
    with _telling() as listener:
        rows = measure_models(options, listener)
    facts = {
        **_machine(place),
        "precision": resolve_precision(options.precision, place),
        "scan_backend": automatic_backend(place),
        "frames": options.frames,
        "batch": options.batch,
        "repeats": options.repeats,
        "rate": options.rate,
    }
    clips = f"{options.batch} clips of " if options.batch > 1 else ""
    title = (
        f"{clips}T = {options.frames}, {facts['device_name']}, {facts['precision']}, scan by {facts['scan_backend']}, "
        f"median of {options.repeats} in turn"
    )
    if as_json:
        document = {**facts, "flop_convention": CONVENTION, "rows": [row.as_json(options.rate) for row in rows]}
        typer.echo(json.dumps(document, indent=2))
    else:
        _print_models(rows, options.rate, title)
    if plot is not None:
        from avsseg.benchmark.figure import draw_figure

        typer.echo(str(draw_figure(rows, plot, title)), err=as_json)
    if rows and all(row.error for row in rows):
        raise EnvironmentFault(
            "no model fits into the memory of this machine; choose smaller --sizes, --frames or --batch"
        )


def _bench_scans(options: BenchOptions, *, as_json: bool) -> None:
    import torch

    from avsseg.benchmark.scans import compare_scans, temporal_mamba_shape
    from avsseg.pipeline.device import resolve_device

    place = resolve_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shape = temporal_mamba_shape(options.sizes[0], options.frames)
    with _telling() as listener:
        rows = compare_scans(shape, place, options.repeats, listener)
    facts = _machine(place)
    if as_json:
        timed = [
            {
                "backend": row.name,
                "latency_s": row.latency_s if row.times_s else None,
                "fastest_s": min(row.times_s, default=None),
                "slowest_s": max(row.times_s, default=None),
                "reason": row.reason,
            }
            for row in rows
        ]
        document = {**facts, "shape": str(shape), "flops": shape.flops, "repeats": options.repeats, "rows": timed}
        typer.echo(json.dumps(document, indent=2))
        return
    slowest = max((row.latency_s for row in rows if row.times_s), default=0.0)
    table = [
        (
            row.name,
            f"{1e3 * row.latency_s:.2f}",
            f"{1e3 * min(row.times_s):.2f} .. {1e3 * max(row.times_s):.2f}",
            f"{shape.flops / row.latency_s / 1e9:.1f}",
            f"{slowest / row.latency_s:.1f} x",
        )
        for row in rows
        if row.times_s
    ]
    _print_table(
        f"{shape}; {facts['device_name']}, median of {options.repeats} in turn",
        ("scan", "ms", "from .. to", "GFLOP/s", "speed"),
        table,
    )
    for row in rows:
        if row.reason:
            typer.echo(f"without {row.name}: {row.reason}")


def _print_models(rows: Sequence[BenchRow], rate: float, title: str) -> None:
    table = []
    for row in rows:
        counts, timed = row.complexity, bool(row.times_s)
        table.append(
            (
                row.model,
                str(row.size),
                f"{counts.parameters / 1e6:.1f}" if counts else "-",
                f"{counts.backbone_parameters / 1e6:.1f}" if counts else "-",
                f"{counts.flops / 1e9:.1f}" if counts else "-",
                f"{row.peak_bytes / 2**20:.0f}" if row.peak_bytes else "-",
                f"{row.latency_s:.3f}" if timed else row.error,
                f"{row.frames_per_s:.2f}" if timed else "-",
                f"{row.frames_per_s / rate:.2f}" if timed else "-",
            )
        )
    columns = ("model", "px", "M param", "in backbone", "GFLOP", "peak MiB", "s a pass", "frames/s", "x playback")
    _print_table(title, columns, table)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns, the first to the left: they keep their width when piped into a file."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    typer.echo(title)
    for cells in (columns, *rows):
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        typer.echo("  ".join((first, *others)))


def _machine(device: torch.device) -> dict[str, Any]:
    import torch

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"
    )
    return {
        "avsseg": avsseg.__version__,
        "torch": str(torch.__version__),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """What is being measured, on stderr: one line that changes on a terminal, lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield console.print
        return
    with console.status("") as status:
        yield status.update


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError as error:
        raise UsageError(f"{option} {text}: must be whole numbers with commas between, such as 224,384") from error
