"""`avsseg run`: the main job."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from avsseg.cli.options import (
    MACHINE,
    SEGMENTATION,
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
from avsseg.errors import OutputError, UsageError, printable
from avsseg.pipeline.journal import Journal, read_journal
from avsseg.pipeline.options import FORMATS, Interpolation, ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.plan import (
    Job,
    Shard,
    choose_formats,
    find_inputs,
    parse_shard,
    plan_outputs,
    results_folder,
    to_make,
)
from avsseg.pipeline.resume import Recipe, plan_work, recipe

if TYPE_CHECKING:
    from avsseg.pipeline.batch import InputResult

EXAMPLES = """[bold]Examples[/bold]

avsseg run clip.mp4 --out overlay.mp4  [dim]the video with the sounding pixels tinted[/dim]

avsseg run clip.mp4 --out masks/  [dim]a folder of PNG masks, one a second, and masks.json[/dim]

avsseg run clip.mp4 --out masks.json --rate 4  [dim]COCO JSON, four masks a second[/dim]

avsseg run clip.mp4 --out cutout.mov --format cutout  [dim]the sounding thing alone, ProRes 4444 with transparency[/dim]

avsseg run clip.mp4 --out result --format overlay,masks,coco,csv  [dim]all four in one folder[/dim]

avsseg run -r videos --out results --format coco  [dim]every video under videos/, mirrored under results/[/dim]

avsseg run -r videos --out results --format coco  [dim]again: only what is new or was not finished[/dim]

avsseg run -r videos --out results --shard 2/8  [dim]the second of eight machines that share the folder results/[/dim]

avsseg run -r videos --out results --engine ray --ray-address auto  [dim]on the machines of a Ray cluster[/dim]

find . -name '*.mp4' -print0 | avsseg run -0 - --out results --json  [dim]a list on stdin, JSON lines on stdout[/dim]
"""

LATEST_S = 1e7  # four months

_OUTPUT = "Output"
_REPORT = "Reporting"


def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Videos: files, folders, patterns such as 'videos/*.mp4', or - for a list of paths on stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="Where the result goes. One input: a name that ends in .mp4, .mkv, .mov or .webm is an overlay video, "
            ".json is COCO JSON, .csv a list of when something sounds, any other a folder of PNG masks (0 and 255; a "
            "palette for models of several classes). Several inputs: a folder that mirrors theirs.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ],
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="LIST",
            help=f"One or more of {', '.join(FORMATS)}, with commas between. A matte is a video of the masks, white on "
            "black; a cutout is the sounding thing alone, on transparency (.mov: ProRes 4444, .webm: VP9); csv says "
            "when something sounds. Default: what the suffix of --out says, otherwise masks.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            help="Probability above which a pixel sounds, above 0 and below 1. With several classes the likeliest "
            "counts.",
            rich_help_panel=_OUTPUT,
        ),
    ] = OutputOptions.threshold,
    interpolate: Annotated[
        Interpolation,
        typer.Option(help="Between two masks a video holds the nearer one or mixes both.", rich_help_panel=_OUTPUT),
    ] = OutputOptions.interpolate,
    names: Annotated[
        bool,
        typer.Option(
            "--names/--no-names",
            help="Write the name of what sounds into overlays, where the model gives one.",
            rich_help_panel=_OUTPUT,
        ),
    ] = OutputOptions.names,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Make results again that exist already. Without it, those of a batch that were made with the same "
            "settings, model and input are kept, and if one was made otherwise nothing is done at all.",
            rich_help_panel=_OUTPUT,
        ),
    ] = OutputOptions.overwrite,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be made of each input and what is done already.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search the subfolders of folders too.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="The paths on stdin end in NUL, as find -print0 writes them.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Take only the I-th of N parts of the inputs, I from 1 to N: run the same command on N machines. A "
            "part is chosen by the path below the folder that is named, whatever else is in it.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            max=4096,
            metavar="N",
            help="Inputs in work at once: while the model looks at one, others are decoded and written; a GPU looks at "
            "short clips of several together. Results come as they are finished. With Ray: the number of its workers. "
            "Default: 1; with Ray one for each GPU, or for each machine.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: the inputs go to the workers of a Ray cluster, whose machines share the folders, or of a Ray "
            'started here. It needs `pip install "avsseg\\[ray]"`.',
            rich_help_panel=MACHINE,
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: RAY_ADDRESS, else a new one here.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    rate: RateOption = SegmentOptions.rate,
    size: SizeOption = SegmentOptions.size,
    window: Annotated[
        int, typer.Option(metavar="MASKS", help="Masks the model sees at once.", rich_help_panel=SEGMENTATION)
    ] = SegmentOptions.window,
    overlap: Annotated[
        int,
        typer.Option(
            metavar="MASKS",
            help="Masks that neighbouring windows share and cross-fade; 0 is faster and may flicker at the seams.",
            rich_help_panel=SEGMENTATION,
        ),
    ] = SegmentOptions.overlap,
    start: StartOption = None,
    end: EndOption = None,
    audio_track: AudioTrackOption = SegmentOptions.audio_track,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="A damaged video is an error. Default: the masks of what can be read, and a warning.",
            rich_help_panel=SEGMENTATION,
        ),
    ] = OutputOptions.strict,
    model: ModelOption = ModelOptions.model,
    allow_untrained: AllowUntrainedOption = ModelOptions.allow_untrained,
    device: DeviceOption = ModelOptions.device,
    precision: PrecisionOption = SegmentOptions.precision,
    threads: ThreadsOption = ModelOptions.threads,
    scan_backend: Annotated[
        Literal["auto", "cpp", "triton", "torch", "mamba-ssm"],
        typer.Option(help="Implementation of the selective scan; avsseg info lists them.", rich_help_panel=MACHINE),
    ] = "auto",
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object for each input on stdout.", rich_help_panel=_REPORT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only errors on stderr.", rich_help_panel=_REPORT)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log every step and show tracebacks.", rich_help_panel=_REPORT)
    ] = False,
) -> None:
    """Mark the sounding pixels of videos: as tinted overlays, mattes, cutouts, PNG masks, COCO JSON or CSV.

    Results appear whole or not at all. A batch that was interrupted goes on with the same command: OUT/.avsseg notes

    what is finished. An input that fails does not stop the others; exit code 1 says that there was one.

    The path of each finished result goes to stdout, all else to stderr.
    """
    segment_options = SegmentOptions(
        rate=rate,
        size=size,
        window=window,
        overlap=overlap,
        start_s=parse_time(start) if start is not None else SegmentOptions.start_s,
        end_s=parse_time(end) if end is not None else SegmentOptions.end_s,
        audio_track=audio_track,
        precision=precision,
    )
    output_options = OutputOptions(
        threshold=threshold, interpolate=interpolate, names=names, overwrite=overwrite, strict=strict
    )
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"--device {device}: choose auto, cpu, cuda, cuda:N or mps")
    model_options = ModelOptions(model, allow_untrained, device, threads, scan_backend)

    if ray_address is not None and engine != "ray":
        raise UsageError("--ray-address is about --engine ray; add that, or drop it")
    if null and "-" not in inputs:
        raise UsageError("-0 is about the list on stdin; name - as an input, or drop it")
    listed = read_list(null=null) if "-" in inputs else iter(())
    made = (out / key for key in read_journal(out))
    found = find_inputs(inputs, recursive=recursive, listed=listed, exclude=out, made=made)
    wanted_formats = choose_formats(formats, out, several=found.several)
    planned = plan_outputs(found, out, wanted_formats)
    part = parse_shard(shard) if shard is not None else Shard()
    planned = [job for item, job in zip(found.found, planned, strict=True) if part.holds(item.mirrored)]
    folder = results_folder(found, out, wanted_formats)
    made_by = recipe(segment_options, output_options, model_options)
    planned = left_to_do(planned, folder, made_by, overwrite=overwrite)
    if dry_run:
        raise typer.Exit(print_plan(planned, overwrite=overwrite, as_json=json_lines))

    from avsseg.cli.progress import BatchProgress, summary
    from avsseg.pipeline.batch import exit_code, run_batch

    results = []
    stdout = sys.stdout  # an engine may keep other output from it
    with contextlib.ExitStack() as stack:
        journal = None
        if folder is not None and any(to_make(job, overwrite=overwrite) for job in planned):
            journal = stack.enter_context(Journal(folder, part))
            planned = left_to_do(planned, folder, made_by, overwrite=overwrite)  # another run may have finished some
        progress = stack.enter_context(BatchProgress(len(planned), quiet=quiet))
        if not planned:
            progress.note(f"no input falls into shard {shard}")
        workers = min(jobs or 1, len(planned)) or 1
        make: Callable[..., Generator[InputResult, None, None]] = functools.partial(run_batch, workers=workers)
        if engine == "ray":
            from avsseg.pipeline.ray_engine import run_on_ray

            make = functools.partial(run_on_ray, workers=jobs and workers, address=ray_address)
        batch = make(
            planned,
            segment_options=segment_options,
            model_options=model_options,
            output_options=output_options,
            reporter=progress,
            journal=journal,
        )
        for result in stack.enter_context(contextlib.closing(batch)):
            results.append(result)
            if json_lines:
                print_line(json.dumps(result.as_json()), stdout)
            else:
                for path in result.outputs:
                    print_line(str(path), stdout)
        if len(planned) > 1:
            for line in summary(results):
                progress.note(line)
        if found.several:
            statuses = Counter(result.status for result in results)
            progress.note(f"{statuses['done']} done, {statuses['skipped']} skipped, {statuses['failed']} failed")
    raise typer.Exit(exit_code(results))


def parse_time(text: str) -> float:
    """Seconds from "90", "90.5", "1:30" or "0:01:30.5".

    Raises:
        UsageError: the text is none of these.
    """
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise UsageError(f"{text!r} is not a time; write seconds, such as 90.5, or HH:MM:SS, such as 0:01:30.5")
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    if seconds > LATEST_S:
        raise UsageError(f"{text!r} is not a time in a video; the latest is {LATEST_S:.0f} seconds")
    return seconds


def read_list(*, null: bool) -> Iterator[str]:
    """The paths on stdin, one a line or each ended by NUL."""
    content = sys.stdin.buffer.read()
    if not null and b"\0" in content:
        raise UsageError(
            "the list on stdin holds NUL bytes; add -0 if these end its paths. A video cannot be piped in: save it to "
            "a file first"
        )
    for item in content.split(b"\0" if null else b"\n"):
        name = item if null else item.rstrip(b"\r")
        if name:
            yield os.fsdecode(name)


def print_line(line: str, stream: TextIO | None = None) -> None:
    """A line on stdout, at once; a reader that has gone is left to `main`."""
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def left_to_do(jobs: list[Job], folder: Path | None, made_by: Recipe, *, overwrite: bool) -> list[Job]:
    """The jobs with what is to be made of each; `folder` is the one with the journal, or None for a single result."""
    if folder is None:
        return jobs
    history = read_journal(folder)  # a broken one is told even where nothing of it is needed
    return jobs if overwrite else plan_work(jobs, folder, history, made_by)


def print_plan(jobs: list[Job], *, overwrite: bool, as_json: bool) -> int:
    """Prints what each job would make; returns the exit code, 1 if an input is missing."""
    code = 0
    for job in jobs:
        if not os.path.exists(job.input):
            code = 1
            error = f"{printable(job.input)}: no such file"
            if as_json:
                print_line(json.dumps({"input": str(job.input), "status": "failed", "outputs": [], "error": error}))
            else:
                print(f"avsseg: error: {error}", file=sys.stderr)
            continue
        wanted = [str(job.outputs[name]) for name in to_make(job, overwrite=overwrite)]
        if as_json:
            status = "planned" if wanted else "skipped"
            print_line(json.dumps({"input": str(job.input), "status": status, "outputs": wanted}))
        elif wanted:
            print_line(f"{printable(job.input)} -> {', '.join(printable(path) for path in wanted)}")
        else:
            print_line(f"{printable(job.input)}: done already")
    return code
