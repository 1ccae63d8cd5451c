"""Options that several commands share: what is segmented, by which model, and where it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from avsseg.pipeline.options import Precision

SEGMENTATION = "Segmentation"
MACHINE = "Model and machine"

RateOption = Annotated[float, typer.Option("--rate", help="Masks a second.", rich_help_panel=SEGMENTATION)]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="PIXELS",
        help="Side of the square that the model sees. Default: the size it was trained at.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="TIME",
        help="Begin here: seconds or HH:MM:SS. Default: 0.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
EndOption = Annotated[
    str | None,
    typer.Option(
        "--end",
        metavar="TIME",
        help="Stop here: seconds or HH:MM:SS. Default: the end of the video.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
AudioTrackOption = Annotated[
    int | None,
    typer.Option(
        "--audio-track",
        metavar="N",
        help="The audio track to listen to, from 1. Default: the one that players play, the first that the file flags "
        "as default, else the first.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option("--model", metavar="NAME|FILE", help="A model's name or a weights file.", rich_help_panel=MACHINE),
]
AllowUntrainedOption = Annotated[
    bool,
    typer.Option(
        "--allow-untrained", help="Run a model that was never trained; its masks are noise.", rich_help_panel=MACHINE
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where the model runs.", rich_help_panel=MACHINE),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Number format of the model; auto is fp32 on a CPU (the others are slower there), on CUDA bf16, or "
        "fp16 where the GPU has no bf16.",
        rich_help_panel=MACHINE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads of the model. Default: one for each core.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
