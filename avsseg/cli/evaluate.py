"""`avsseg evaluate`: scores a model on a split of a folder in AVSBench's layout."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from avsseg.errors import DataError, UsageError, printable

EXAMPLES = """[bold]Examples[/bold]

avsseg evaluate --data scenes --model runs/first/best.safetensors  [dim]strict protocol, test split[/dim]

avsseg evaluate --data scenes --negative silence,noise,swap,off-screen  [dim]and with other sounds[/dim]

avsseg evaluate --subset s4 --data AVSBench --protocol avsbench --batch 4  [dim]as published papers count[/dim]

avsseg evaluate --data scenes --report report --json > result.json  [dim]a page to look at, and all numbers[/dim]
"""


def evaluate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder in AVSBench's layout.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME|FILE", help="A model's name or a .safetensors file.")
    ] = "avs-mamba-tiny",
    subset: Annotated[str, typer.Option(help="s4, ms3 or avss.")] = "ms3",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    protocol: Annotated[
        str,
        typer.Option(
            help="strict: every frame counts alike, silent frames apart, truth at its own size. avsbench: the official "
            "arithmetic, in which --batch matters."
        ),
    ] = "strict",
    batch: Annotated[int, typer.Option(min=1, help="Clips a batch, for --protocol avsbench.")] = 1,
    size: Annotated[int, typer.Option(min=0, help="Side of the input in pixels; 0: the model's own.")] = 0,
    negative: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Also replace the sound: any of silence, noise, swap, off-screen, with commas between."
        ),
    ] = "",
    mute: Annotated[
        bool | None,
        typer.Option(
            "--mute/--no-mute",
            help="Play silence instead of every sound. By default only to a model trained with --mute.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write an HTML page with the best, median and worst clips.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the whole result as JSON.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON instead of a table.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, max=1024, help="0: as many as there are cores.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="For replaced sounds.")] = 0,
    allow_untrained: Annotated[bool, typer.Option("--allow-untrained", help="Accept a model without weights.")] = False,
) -> None:
    """Score a model on a split: table on stdout, all numbers as JSON, and a page to look at."""
    choices = (("--subset", subset, ("s4", "ms3", "avss")), ("--split", split, ("train", "val", "test")))
    for name, value, allowed in choices:
        if value not in allowed:
            raise UsageError(f"{name} {value}: choose one of {', '.join(allowed)}")
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from avsseg.evaluation.evaluate import Evaluation, EvaluationSettings
    from avsseg.pipeline.device import channels_last, resolve_device
    from avsseg.pipeline.scoring import memory_faults
    from avsseg.weights.store import load_model
    from avsseg.writers.base import PartialOutput, written_whole

    if out and os.path.isfile(model) and out.exists() and os.path.samefile(out, model):
        raise UsageError(f"--out {printable(out)}: is the model itself. Choose another name")
    # found now, not after the whole evaluation
    for target in filter(None, (out, report and report / "index.html")):
        PartialOutput(target).discard()
    _check_subset(data, subset)
    negatives = tuple(dict.fromkeys(name.strip() for name in negative.split(",") if name.strip()))
    settings = EvaluationSettings(
        data,
        cast(Any, subset),
        cast(Any, split),
        cast(Any, protocol),
        batch,
        size,
        negatives,
        seed,
        workers,
        mute,
    )
    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(model, allow_untrained=allow_untrained, device=resolve_device(device))
    channels_last(loaded.model)
    if os.path.isfile(model):  # all runs call theirs best.safetensors
        loaded = replace(loaded, name=_in_its_folder(Path(model)))
    evaluation = Evaluation(loaded, settings)
    if evaluation.mute and mute is None:
        typer.echo(
            f"avsseg: note: {loaded.name} was trained with --mute, so it is played silence. --no-mute plays it sound",
            err=True,
        )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(evaluation.clips) * (1 + len(negatives)))
        with memory_faults(printable(data), "Close other programs, or give a smaller --size"):
            result = evaluation.run(lambda: progress.advance(task))
    text = json.dumps(without_nan(result), indent=2)
    page: Path | None = None
    try:
        if out:
            with written_whole(out) as partial:
                partial.write_text(text + "\n")
        if report:
            from avsseg.evaluation.report import write_report

            page = write_report(report, evaluation, result)
    finally:  # behind the files, since `| head` closes the pipe, and also where a full disk refused them
        if as_json:
            typer.echo(text)
        else:
            print_tables(result)
    if page:
        typer.echo(str(page), err=as_json)


def without_nan(value: Any) -> Any:
    """The same with null for every NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def print_tables(result: Mapping[str, Any]) -> None:
    """The result as tables on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from avsseg.evaluation.tables import conditions, heading, tables

    console = Console()
    # as text: a file's name may have brackets
    typer.echo(heading(result))
    typer.echo(conditions(result))
    for table in tables(result):
        shown = Table(table.title, *table.header)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        if table.note:
            typer.echo(table.note)


def _check_subset(data: Path, subset: str) -> None:
    """Raises DataError, naming the subsets that are there, if the folder does not hold that one."""
    from avsseg.data.avsbench_layout import subsets_in

    held = subsets_in(data)
    if subset not in held:
        flags = " or ".join(f"--subset {name}" for name in held)
        raise DataError(f"{printable(data)}: holds no {subset}, but {' and '.join(held)}. Add {flags}")


def _in_its_folder(path: Path) -> str:
    """The path as given, but with a folder in any case."""
    return str(path if len(path.parts) > 1 else Path(path.absolute().parent.name, path))
