"""`avsseg data compose`: a dataset of clips made from the user's own pictures, masks and recordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avsseg.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.table import Table

    from avsseg.data.compose_dataset import ComposedDatasetSettings
    from avsseg.data.compose_pool import ComposeSettings
    from avsseg.data.compose_sources import Sources

Counts = Mapping[str, Mapping[str, tuple[int, int]]]

_TEXT = """[bold]The three folders[/bold]

IMAGES/NAME.jpg  [dim]pictures (.jpg, .jpeg, .png, .webp, .bmp), 16 px a side at least; subfolders are read too[/dim]

MASKS/NAME.png  [dim]a mask for each, in the same subfolder, of the same name and size: 0 where no class is, 255 where
it is unknown, else the number of the class, as grey level or palette index[/dim]

MASKS/classes.txt  [dim]the classes, one a line: the background first, then the class of mask value 1, 2, ...[/dim]

SOUNDS/CLASS/NAME.wav  [dim]recordings, anything that ffmpeg reads, 60 s of each at most; deeper subfolders are read
too. A class that no picture has is heard off-screen only[/dim]

Without classes.txt: IMAGES/CLASS/NAME.jpg and MASKS/CLASS/NAME.png, and any mask value but 0 is that class. Names that
begin with a dot are left out.

[bold]Splits[/bold]

No picture and no recording is used in two splits. They are drawn by a hash of the names, about 80 % of a class for
training, 10 % each for val and test. Files of one folder whose names differ in a number at their end only (dog_001,
dog_002) count as frames of one recording and stay together, as do equal files. With --unrelated they count as
unrelated, as names that are numbers alone (00001, 00002) always do: give the frames of a video a prefix. A class needs
three such groups of pictures and three of recordings, or it is in training alone. To choose yourself, add tables; they
must list every file:

IMAGES/splits.csv  [dim]columns name (dog/1 for dog/1.jpg), split (train, val or test) and, if wanted, kind (scene, or
cutout: only ever pasted onto others, or backdrop: shows no class and needs no mask) and weight (0 to 1, how far the
mask is to be trusted: noted in clips.json)[/dim]

SOUNDS/splits.csv  [dim]columns name (dog/1.wav) and split[/dim]

[bold]Example[/bold]

avsseg data compose --images images --masks masks --sounds sounds my-clips --jobs 4
"""
# a paragraph is a line, whatever its length, for the help to wrap
LAYOUT = "\n\n".join(paragraph.replace("\n", " ") for paragraph in _TEXT.strip().split("\n\n"))

# of the classes that have too few files, as many are named
_NAMED = 8

_FOLDERS, _CLIPS, _SHARES = "Sources", "Clips", "What the clips show, as shares relative to each other"


def compose(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder that receives the dataset.", show_default=False)],
    images: Annotated[
        Path, typer.Option(metavar="DIR", help="Pictures.", show_default=False, rich_help_panel=_FOLDERS)
    ],
    masks: Annotated[
        Path, typer.Option(metavar="DIR", help="Their masks.", show_default=False, rich_help_panel=_FOLDERS)
    ],
    sounds: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Recordings, a folder a class.", show_default=False, rich_help_panel=_FOLDERS),
    ],
    unrelated: Annotated[
        bool,
        typer.Option(
            "--unrelated",
            help="Files whose names differ in a number only (dog_001, dog_002) are not frames of one recording.",
            rich_help_panel=_FOLDERS,
        ),
    ] = False,
    clips: Annotated[int, typer.Option(min=0, help="Training clips, of 5 s each.", rich_help_panel=_CLIPS)] = 400,
    val_clips: Annotated[int, typer.Option(min=0, help="Validation clips.", rich_help_panel=_CLIPS)] = 40,
    test_clips: Annotated[int, typer.Option(min=0, help="Test clips.", rich_help_panel=_CLIPS)] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same dataset.", rich_help_panel=_CLIPS)] = 0,
    size: Annotated[
        int, typer.Option(min=32, help="Side of frames and masks in pixels.", rich_help_panel=_CLIPS)
    ] = 224,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes; each holds all recordings in memory.", rich_help_panel=_CLIPS)
    ] = 1,
    one: Annotated[float, typer.Option(min=0, help="One object, which sounds.", rich_help_panel=_SHARES)] = 0.4,
    two: Annotated[
        float, typer.Option(min=0, help="Two objects, of which one sounds at a time.", rich_help_panel=_SHARES)
    ] = 0.3,
    several: Annotated[
        float, typer.Option(min=0, help="Two objects that sound together.", rich_help_panel=_SHARES)
    ] = 0.1,
    none: Annotated[
        float,
        typer.Option(min=0, help="Objects, and silence or a sound from off-screen.", rich_help_panel=_SHARES),
    ] = 0.2,
    motion: Annotated[
        float,
        typer.Option(min=0, help="How far camera and objects move; 0 is a still picture.", rich_help_panel=_CLIPS),
    ] = 1.0,
) -> None:
    """Compose a dataset from pictures with masks and recordings of your own classes, in AVSBench's MS3 layout.

    Pictures are panned, zoomed, put side by side and pasted into each other; sounds begin and end inside the clips.
    Masks and times are exact; pixels that a mask calls unknown (255) count as silent.

    OUT gets frames, masks, wavs, mp4s and clips.json, which says what each clip is made of.
    """
    from rich.console import Console
    from rich.progress import Progress

    from avsseg.data.compose import class_counts
    from avsseg.data.compose_dataset import ComposedDatasetSettings, split_sources, write_composed_dataset
    from avsseg.data.compose_pool import ComposeSettings
    from avsseg.data.compose_sources import read_sources
    from avsseg.data.compose_splits import TABLE_NAME
    from avsseg.data.layout_writer import dataset_paths

    folder = output_folder(out, (images, masks, sounds))
    shown = ComposeSettings(one=one, two=two, several=several, none=none, motion=motion)
    settings = ComposedDatasetSettings(clips, val_clips, test_clips, seed, shown, size=size)
    dataset_paths(folder, "ms3", settings.counts().values())  # before reading, which takes minutes
    console = Console(stderr=True, highlight=False)
    with console.status("reading pictures and recordings"):
        sources = read_sources(images, masks, sounds, jobs=max(4, jobs), unrelated=unrelated)
    for source, groups in ((images, sources.picture_groups), (sounds, sources.sound_groups)):
        if unrelated and groups is None:
            table = printable(source / TABLE_NAME)
            typer.echo(f"avsseg: warning: {table} names the splits, so --unrelated says nothing there", err=True)
    counts = class_counts(sources, shown)
    # wide enough for the table wherever it goes: a pipe has no width that it should be cut to
    Console(stderr=True, width=None if console.is_terminal else 120).print(_table(counts))
    shown_at_all = class_counts(sources, replace(shown, smallest=0))
    for warning in (*sources.warnings, *too_small(counts, shown_at_all, shown), *warnings(counts, settings)):
        typer.echo(f"avsseg: warning: {warning}", err=True)
    try:
        split_sources(sources, settings)
    except UsageError as error:
        raise UsageError(too_few_groups(sources, settings) or str(error)) from error
    with Progress(console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as progress:
        task = progress.add_task("composing", total=clips + val_clips + test_clips)
        for _ in write_composed_dataset(folder, sources, settings, jobs=jobs):
            progress.advance(task)
    typer.echo(str(folder))


def output_folder(out: str, sources: tuple[Path, ...]) -> Path:
    """The folder to write to. Raises UsageError for an empty name, and for one inside the sources."""
    if not out.strip():
        raise UsageError("OUT is empty. Name a folder for the dataset")
    folder = Path(out)
    for source in sources:
        if source.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(f"{printable(folder)}: lies in {printable(source)}, which is read. Choose another folder")
    return folder


def too_small(counts: Counts, shown_at_all: Counts, settings: ComposeSettings) -> Iterator[str]:
    """Classes of which a split has pictures, but none in which they are large enough to be used, a line each."""
    for name, by_split in shown_at_all.items():
        for split, (pictures, _) in by_split.items():
            if pictures and not counts[name][split][0]:
                yield (
                    f"{printable(name)}: covers {settings.smallest:.0%} of none of its {pictures} pictures in {split}, "
                    "so none is used there. Crop them"
                )


def warnings(counts: Counts, settings: ComposedDatasetSettings) -> Iterator[str]:
    """What the user should know of the sources before thousands of clips are made of them, a line each."""
    for name, by_split in counts.items():
        pictures, recordings = by_split["train"]
        if pictures and not recordings:
            yield f"{printable(name)}: is seen but never heard in train"
    for split, count in settings.counts().items():
        usable = [name for name, by_split in counts.items() if all(by_split[split])]
        if not usable:
            if not count:
                yield f"{split}: no class has both pictures and recordings, so no {split} clips could be composed"
        elif count and split != "train":
            missing = [name for name, by_split in counts.items() if all(by_split["train"]) and name not in usable]
            for name in missing:
                yield f"{printable(name)}: is in train, but not both seen and heard in {split}"


def too_few_groups(sources: Sources, settings: ComposedDatasetSettings) -> str:
    """Why no class can be in val or test: which have too few files, and what to do. "" if that is not the reason."""
    from avsseg.data.compose_splits import FEWEST_GROUPS, TABLE_NAME

    of_pictures, of_sounds = sources.picture_groups, sources.sound_groups
    wanted = [split for split, count in settings.counts().items() if count and split != "train"]
    if not wanted or of_pictures is None or of_sounds is None:  # a table may put few files into many splits
        return ""
    groups = {k: (of_pictures[k], of_sounds[k]) for k in sorted(of_pictures.keys() & of_sounds.keys())}
    if not groups or any(min(pair) >= FEWEST_GROUPS for pair in groups.values()):
        return ""
    few = [
        f"{printable(sources.classes[k])} has {shown} of pictures and {heard} of recordings"
        for k, (shown, heard) in groups.items()
    ]
    more = f" and {len(few) - _NAMED} classes more" if len(few) > _NAMED else ""
    none = " ".join(f"--{split}-clips 0" for split in wanted)
    return (
        f"no class can be in {' and '.join(wanted)}, which takes {FEWEST_GROUPS} groups each of pictures and of "
        f"recordings: {', '.join(few[:_NAMED])}{more}. Files whose names differ in a number at their end only "
        f"(dog_001, dog_002) are one group: give --unrelated if they are not of one recording. Or add files, name "
        f"the splits of all in {TABLE_NAME}, or give {none}"
    )


def _table(counts: Counts) -> Table:
    from rich.table import Table
    from rich.text import Text

    splits = list(next(iter(counts.values())))
    table = Table()
    table.add_column("class")
    for split in splits:
        table.add_column(f"{split} pictures", justify="right")
        table.add_column("recordings", justify="right")
    for name, by_split in counts.items():
        table.add_row(Text(printable(name)), *(str(number) for split in splits for number in by_split[split]))
    return table
