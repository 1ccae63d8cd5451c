"""`avsseg data ...`: datasets. `synth` renders one, `clip` one video; `check` tells what is missing or damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avsseg.cli.compose import LAYOUT, compose

if TYPE_CHECKING:
    from rich.table import Table

    from avsseg.data.avsbench_check import Kind, SplitReport

app = typer.Typer(help="Render datasets and clips whose truth is known; check datasets.", no_args_is_help=True)
app.command("compose", epilog=LAYOUT)(compose)


class SubsetName(str, Enum):
    """The AVSBench layout to write."""

    s4 = "s4"
    ms3 = "ms3"


class CheckedSubset(str, Enum):
    """An AVSBench subset."""

    s4 = "s4"
    ms3 = "ms3"
    avss = "avss"


# of the problems, as many are named unless --json asks for all
SHOWN_PROBLEMS = 10


@app.callback()
def _data() -> None:
    """Render datasets and clips whose truth is known; check datasets."""


@app.command("synth")
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that receives the dataset.")],
    subset: Annotated[SubsetName, typer.Option(help="Layout: one source a clip, or several.")] = SubsetName.ms3,
    clips: Annotated[int, typer.Option(min=0, help="Training clips.")] = 400,
    val_clips: Annotated[int, typer.Option(min=0, help="Validation clips.")] = 40,
    test_clips: Annotated[int, typer.Option(min=0, help="Test clips, of textures and sounds not in training.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same dataset.")] = 0,
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


@app.command("check")
def check(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder with Single-source/, Multi-sources/ or AVSBench_semantic/ inside."),
    ],
    subset: Annotated[
        CheckedSubset | None, typer.Option(help="This subset only; otherwise all that are there.")
    ] = None,
    fix_audio: Annotated[
        bool,
        typer.Option(
            "--fix-audio",
            help="Make missing wavs from the raw videos, missing or damaged log-mel pickles from the wavs or videos.",
        ),
    ] = False,
    videos: Annotated[
        bool,
        typer.Option("--videos/--no-videos", help="Whether to decode the raw videos, which takes most of the time."),
    ] = True,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Clips in work at once; otherwise one for each processor.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every problem, not a table.")] = False,
) -> None:
    """Decode every file of an AVSBench folder; tell what is missing, damaged or too short.

    Exit code 1 if something is. Training reads wavs: a missing log-mel pickle matters only to a clip without one, a
    missing raw video never.
    """
    from rich.console import Console
    from rich.progress import Progress

    from avsseg.data.avsbench_check import check_dataset
    from avsseg.data.avsbench_layout import subsets_in

    subsets = subsets_in(folder)
    if subset is not None:
        subsets = (subset.value,)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=None)
        reports = check_dataset(
            folder,
            subsets,
            fix_audio=fix_audio,
            videos=videos,
            jobs=jobs,
            started=lambda clips: progress.update(task, total=clips),
            advanced=lambda: progress.advance(task),
        )
    problems = [problem for report in reports for problem in report.problems]
    if as_json:
        splits = [_as_json(report, videos=videos) for report in reports]
        typer.echo(json.dumps({"folder": str(folder), "ok": not problems, "splits": splits}))
    else:
        # wide enough for the table wherever it goes: a pipe has no width that it should be cut to
        Console(width=None if Console().is_terminal else 120).print(_check_table(reports, videos=videos))
    for problem in problems[:SHOWN_PROBLEMS]:
        typer.echo(problem.message, err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"and {len(problems) - SHOWN_PROBLEMS} more; --json lists them all", err=True)
    if problems:
        raise typer.Exit(1)


def _check_table(reports: Sequence[SplitReport], *, videos: bool) -> Table:
    from rich.table import Table

    from avsseg.data.avsbench_check import KINDS

    table = Table(caption="Training reads wavs, log-mels for clips without, and no videos.")
    for name in ("subset", "split"):
        table.add_column(name)
    for name in ("clips", "complete", *KINDS):
        table.add_column(name, justify="right")
    for report in reports:
        if report.split is None:
            table.add_row(report.subset, f"table {report.problems[0].state}")
            continue
        files = ["not read" if kind == "videos" and not videos else _files(report, kind) for kind in KINDS]
        table.add_row(report.subset, report.split, str(report.clips), str(report.complete), *files)
    return table


def _files(report: SplitReport, kind: Kind) -> str:
    """How many are whole, and on lines of their own how many are not."""
    from avsseg.data.avsbench_check import FAULTS

    whole = report.count(kind, "whole")
    if kind in ("log-mels", "videos") and report.count(kind, "missing") == sum(report.counts(kind).values()):
        return "none"  # nothing needs them
    counts = {state: report.count(kind, state) for state in FAULTS} | {"made now": report.made[kind]}
    return "\n".join([str(whole), *(f"{count} {state}" for state, count in counts.items() if count)])


def _as_json(report: SplitReport, *, videos: bool) -> dict[str, object]:
    from avsseg.data.avsbench_check import KINDS

    return {
        "subset": report.subset,
        "split": report.split,
        "clips": report.clips,
        "complete": report.complete,
        "files": {
            kind: None if kind == "videos" and not videos else {**report.counts(kind), "made": report.made[kind]}
            for kind in KINDS
        },
        "problems": [
            {"file": str(problem.path), "kind": problem.kind, "state": problem.state, "message": problem.message}
            for problem in report.problems
        ],
    }
