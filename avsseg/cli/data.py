"""`avsseg data ...`: datasets. In this version: `synth`, which renders one, and `clip`, one video."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Render datasets and clips whose truth is known.", no_args_is_help=True)


class SubsetName(str, Enum):
    """The AVSBench layout to write."""

    s4 = "s4"
    ms3 = "ms3"


@app.callback()
def _data() -> None:
    """Render datasets and clips whose truth is known."""


@app.command("synth")
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that receives the dataset.")],
    subset: Annotated[SubsetName, typer.Option(help="Layout: one source a clip, or several.")] = SubsetName.ms3,
    clips: Annotated[int, typer.Option(min=0, help="Training clips.")] = 400,
    val_clips: Annotated[int, typer.Option(min=0, help="Validation clips.")] = 40,
    test_clips: Annotated[int, typer.Option(min=0, help="Test clips, of textures and sounds not in training.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same dataset.")] = 0,
    seconds: Annotated[int, typer.Option(min=1, help="Length of a clip.")] = 5,
    size: Annotated[int, typer.Option(min=32, help="Side of frames and masks in pixels.")] = 224,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Render a dataset of moving, sounding objects whose truth is known, in AVSBench's folder layout."""
    from rich.console import Console
    from rich.progress import Progress

    from avsseg.data.synthetic_dataset import SynthSettings, write_dataset

    settings = SynthSettings(
        subset=subset.value,
        train=clips,
        val=val_clips,
        test=test_clips,
        seed=seed,
        seconds=seconds,
        size=size,
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("rendering", total=clips + val_clips + test_clips)
        for _ in write_dataset(folder, settings, jobs=jobs):
            progress.advance(task)
    typer.echo(str(folder))


@app.command("clip")
def clip(
    path: Annotated[Path, typer.Argument(metavar="FILE.mp4", help="The clip to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same clip.")] = 0,
    seconds: Annotated[int, typer.Option(min=2, help="Length.")] = 8,
) -> None:
    """Render one clip of two objects that sound in turn; its seeds are never in a dataset."""
    from avsseg.data.synthetic_dataset import write_clip

    write_clip(path, seed, seconds=seconds)
    typer.echo(str(path))
