"""`avsseg visualize`: pictures and videos of what the model marks and sees."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from avsseg.cli.options import (
    AllowUntrainedOption,
    AudioTrackOption,
    DeviceOption,
    EndOption,
    ModelOption,
    PrecisionOption,
    RateOption,
    SizeOption,
    StartOption,
    ThreadsOption,
)
from avsseg.cli.run import parse_time, print_line
from avsseg.errors import UsageError, printable
from avsseg.pipeline.options import ModelOptions, SegmentOptions
from avsseg.visualization.options import Kind, VisualizeOptions

EXAMPLES = """[bold]Examples[/bold]

avsseg visualize clip.mp4 --out panel.png  [dim]frame, prediction and waveform at five instants[/dim]

avsseg visualize clip.mp4 --out panel.mp4  [dim]the same as a video, with the sound and a moving cursor[/dim]

avsseg visualize clip.mp4 --out panel.png --at 1,3,5 --truth masks/  [dim]beside true masks, one PNG a second[/dim]

avsseg visualize clip.mp4 --out features.png --kind features  [dim]the paper's Fig. 9: what CIP does[/dim]
"""

SUFFIXES = (".png", ".mp4")
LINE_INTERVAL_S = 5.0

_WHAT = "What is drawn"


def visualize(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The video.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A .png has one row for each of a few instants; an .mp4 shows all frames, with the sound.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            help="panel: frame, truth, prediction. features: frame, truth, and the three principal components of the "
            "features before and after the model's cross-modal pyramid (CIP), as colours.",
            rich_help_panel=_WHAT,
        ),
    ] = VisualizeOptions.kind,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Instants of a .png, with commas between: seconds or HH:MM:SS. Each stands for the mask that holds "
            "it, which is of its middle: 1 shows 1.5 s. Default: spread evenly.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", help="How many instants are spread evenly.", rich_help_panel=_WHAT)
    ] = VisualizeOptions.rows,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of true masks: PNG files, one a second in the order of their numbers, or a folder that "
            "`avsseg run` made. Where it has none the frame is grey. AVSBench's masks are of the end of each second: "
            "--start 0.4375 shows the very frames that they were drawn on.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = VisualizeOptions.truth,
    threshold: Annotated[
        float, typer.Option(help="Probability above which a pixel sounds.", rich_help_panel=_WHAT)
    ] = VisualizeOptions.threshold,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    rate: RateOption = SegmentOptions.rate,
    size: SizeOption = SegmentOptions.size,
    start: StartOption = None,
    end: EndOption = None,
    audio_track: AudioTrackOption = SegmentOptions.audio_track,
    model: ModelOption = ModelOptions.model,
    allow_untrained: AllowUntrainedOption = ModelOptions.allow_untrained,
    device: DeviceOption = ModelOptions.device,
    precision: PrecisionOption = SegmentOptions.precision,
    threads: ThreadsOption = ModelOptions.threads,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Draw what the model marks, or what it sees, beside the frames and over the sound: as a picture or a video.

    One PCA serves all frames that are shown, so that a colour means the same in all of them.

    The path of the finished file goes to stdout.
    """
    segment_options = SegmentOptions(
        rate=rate,
        size=size,
        start_s=parse_time(start) if start is not None else SegmentOptions.start_s,
        end_s=parse_time(end) if end is not None else SegmentOptions.end_s,
        audio_track=audio_track,
        precision=precision,
    )
    instants = tuple(parse_time(part.strip()) for part in at.split(",") if part.strip()) if at is not None else ()
    options = VisualizeOptions(kind, instants, rows, truth, threshold)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"--device {device}: choose auto, cpu, cuda, cuda:N or mps")
    as_video = out.suffix.lower() == ".mp4"
    _check_output(video, out, overwrite=overwrite)
    if as_video and at is not None:
        raise UsageError("--at is about a .png; a video shows everything from --start to --end")

    from avsseg.media.probe import probe
    from avsseg.pipeline.scoring import memory_faults
    from avsseg.pipeline.segment import load_for
    from avsseg.visualization.figures import Visualization

    info = probe(video)
    load = functools.partial(load_for, ModelOptions(model, allow_untrained, device, threads))
    remedy = "Close other programs, give a smaller --size, or show less with --start and --end"
    with memory_faults(printable(video), remedy), _progress(quiet=quiet) as listener:
        visualization = Visualization(info, load, segment_options, options, listener)
        made = visualization.save_video(out) if as_video else visualization.save_picture(out)
    if not quiet:
        for warning in visualization.warnings:
            print(f"avsseg: warning: {printable(video)}: {warning}", file=sys.stderr)
    print_line(str(made))


def _check_output(video: Path, out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {printable(out)}: the name must end in {' or '.join(SUFFIXES)}")
    if os.path.exists(out) and os.path.exists(video) and os.path.samefile(video, out):
        raise UsageError(f"--out {printable(out)}: is the video itself. Choose another name")
    if os.path.exists(out) and not overwrite:
        raise UsageError(f"--out {printable(out)}: exists already. Choose another name, or add --overwrite")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """On stderr: a bar on a terminal, a line every few seconds elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, redirect_stdout=False, disable=quiet or not console.is_terminal
    ) as progress:
        task = progress.add_task("drawing", total=None)
        last_line = time.monotonic()

        def listener(done: int, total: int | None) -> None:
            nonlocal last_line
            progress.update(task, completed=done, total=total)
            if not (quiet or console.is_terminal) and time.monotonic() - last_line >= LINE_INTERVAL_S:
                last_line = time.monotonic()
                print(f"{done} of {'?' if total is None else total} masks", file=sys.stderr)

        yield listener
