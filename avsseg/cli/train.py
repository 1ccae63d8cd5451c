"""`avsseg train`: trains or fine-tunes a model on a folder in AVSBench's layout."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avsseg.errors import UsageError, printable
from avsseg.model.config import ABLATIONS, BACKBONE_ALIASES, PRESETS, VISUAL_BACKBONES
from avsseg.training.settings import (
    PRESET_NAMES,
    TrainingSettings,
    read_toml,
    training_preset,
    with_changes,
    write_toml,
)
from avsseg.training.stages import (
    BEST,
    LAST,
    STAGES_NAME,
    check_scene_settings,
    from_what_there_is,
    scene_stages,
    stage_to_go_on_with,
)

if TYPE_CHECKING:
    from avsseg.training.trainer import Progress

EXAMPLES = """[bold]Examples[/bold]

avsseg data synth scenes --clips 400  [dim]a rendered dataset to try it on[/dim]

avsseg train --data scenes --out runs/first --preset scenes --from avs-mamba-tiny  [dim]an hour; Ctrl-C keeps all[/dim]

avsseg train --resume --out runs/first  [dim]goes on exactly where it stopped[/dim]

avsseg train --data my-clips --out runs/mine --from avs-mamba-tiny --learning-rate 1e-4  [dim]fine-tunes[/dim]

avsseg train --subset s4 --data AVSBench --out runs/s4 --preset paper --init-visual b5.pth --init-audio vggish.pth

torchrun --nproc-per-node 2 -m avsseg train --data scenes --out runs/two  [dim]two processes, gradients averaged[/dim]
"""

# of settings whose flag has another name
FLAGS = {
    "start_from": "--from",
    "init_visual": "--init-visual",
    "init_audio": "--init-audio",
    "learning_rate": "--learning-rate",
}
_WHAT, _HOW, _MACHINE = "What is learned", "How", "Machine and run"


def train(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run.", rich_help_panel=_MACHINE)
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder in AVSBench's layout.", show_default=False, rich_help_panel=_WHAT),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="s4, ms3 or avss. Default: ms3.", show_default=False, rich_help_panel=_WHAT)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(PRESET_NAMES)}: all settings at once. `paper` is the published recipe of the subset; "
            "`scenes` is four runs one after the other, for what `data synth` renders. Default: tiny.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(PRESETS)}.", show_default=False, rich_help_panel=_WHAT)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help=f"Another visual backbone: {', '.join(VISUAL_BACKBONES)}; or short, {', '.join(BACKBONE_ALIASES)}.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    ablate: Annotated[
        str | None,
        typer.Option(
            help=f"A row of the paper's Tables III to VII: {', '.join(ABLATIONS)}.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Fine-tune: a model's name or a .safetensors file.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    init_visual: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pretrained visual backbone: a file, or a name of `avsseg weights list`.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    init_audio: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pretrained VGGish: a file, or `vggish` for that of `avsseg weights list`. "
            "Every model but avs-mamba-tiny needs it.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the square input, in pixels. Default: that of --preset paper or --config, else of --from, "
            "else 128; --preset scenes begins with 128.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    mute: Annotated[
        bool | None,
        typer.Option(
            "--mute",
            help="Train without sound, for comparison; with --preset scenes, all but the encoders.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="0: no limit.", show_default=False, rich_help_panel=_HOW)] = None,
    minutes: Annotated[
        float | None, typer.Option(help="End after so long; 0: no limit.", show_default=False, rich_help_panel=_HOW)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Clips a batch and process; --accumulate batches make a step.",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default=False, rich_help_panel=_HOW)] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.", show_default=False, rich_help_panel=_HOW)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches a step.", show_default=False, rich_help_panel=_HOW)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"Any other setting: {', '.join(field.name for field in fields(TrainingSettings))}.",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Settings from a file, such as another run's settings.toml.",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.", rich_help_panel=_MACHINE)
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda:0, mps.", show_default=False, rich_help_panel=_MACHINE)
    ] = None,
    threads: Annotated[int | None, typer.Option(show_default=False, rich_help_panel=_MACHINE)] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that load data.", show_default=False, rich_help_panel=_MACHINE),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default=False, rich_help_panel=_MACHINE)] = None,
) -> None:
    """Train or fine-tune on a folder in AVSBench's layout; the best model by the val split is kept."""
    flags = {
        name: value
        for name, value in {
            "subset": subset, "data": data, "model": model, "backbone": backbone, "ablate": ablate,
            "start_from": start_from, "init_visual": init_visual, "init_audio": init_audio, "size": size, "mute": mute,
            "epochs": epochs, "minutes": minutes, "batch": batch, "learning_rate": learning_rate,
            "precision": precision, "accumulate": accumulate, "device": device, "threads": threads,
            "workers": workers, "seed": seed,
        }.items()
        if value is not None
    }  # fmt: skip
    flags |= dict(_parse(text) for text in setting or [])
    staged = (out / STAGES_NAME).is_file()
    if staged and not resume and preset != "scenes":
        raise UsageError(f"{printable(out)}: holds a run already. Go on with --resume, or choose another --out")
    staged = staged or (preset == "scenes" and not resume)
    settings = gather(out, preset, flags, config, resume=resume)
    if not settings.data:
        raise UsageError("no data: give --data DIR, a folder in AVSBench's layout (`avsseg data synth DIR` makes one)")
    if preset == "paper" and not settings.init_visual and not settings.start_from and _leads():
        typer.echo(
            "avsseg: warning: the paper's visual backbone starts from ImageNet weights, this one from random ones. "
            "Give --init-visual (`avsseg weights list`)",
            err=True,
        )
    _run(out, settings, resume=resume, staged=staged)


def gather(
    out: Path, preset: str | None, flags: dict[str, Any], config: Path | None, *, resume: bool
) -> TrainingSettings:
    """Preset, file and flags put together; a run that is resumed brings its own. Raises UsageError."""
    if resume:
        kept = next((path for path in (out / STAGES_NAME, out / "settings.toml") if path.is_file()), None)
        if kept is None:
            raise UsageError(f"{printable(out)}: holds no run to resume (no settings.toml)")
        settings = with_changes(TrainingSettings(), read_toml(kept), where=printable(kept))
        machine = {"device", "threads", "workers", "data", "epochs", "minutes"}
        sources = [name for name, given in (("--preset", preset), ("--config", config)) if given]
        changed = {name for name, value in flags.items() if getattr(settings, name) != value} - machine
        other = [f"{FLAGS.get(name, name)} ({getattr(settings, name)})" for name in sorted(changed)] + sources
        if other:
            named = ", ".join(other)
            raise UsageError(f"--resume goes on with the settings of the run: {named} cannot change now. Leave it out")
        if kept.name == STAGES_NAME:
            check_scene_settings(flags)
        return with_changes(settings, flags, where="command line")
    if config and config.name == STAGES_NAME and preset != "scenes":
        raise UsageError(
            f"{printable(config)}: is of all runs of --preset scenes. Give that, too, or the settings.toml of one run"
        )
    values = read_toml(config) if config else {}
    if preset == "scenes":
        usual = asdict(training_preset("scenes", "ms3"))
        # the file of such a run has all settings, most of which say nothing
        check_scene_settings({**{name: value for name, value in values.items() if value != usual.get(name)}, **flags})
    chosen = str(flags.get("subset", values.get("subset", "ms3")))
    if "epochs" not in {*flags, *values} and flags.get("minutes", values.get("minutes")):
        # where the minutes are, so that what is wrong with them is said of their source
        if "minutes" in flags:
            flags = {**flags, "epochs": 0}
        else:
            values = {**values, "epochs": 0}
    if preset == "scenes" and flags.get("mute", values.get("mute")) and "agreement" not in {*flags, *values}:
        # likewise: nothing is heard that masks could go by
        if "mute" in flags:
            flags = {**flags, "agreement": False}
        else:
            values = {**values, "agreement": False}
    settings = with_changes(training_preset(preset or "tiny", chosen), values, where=printable(config or ""))
    # what does not go together may come from both
    source = f"command line with {printable(config)}" if config else "command line"
    settings = with_changes(settings, flags, where=source)
    if settings.start_from and "model" in flags:
        raise UsageError("--from brings its own model: leave out --model")
    return settings


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    known = {field.name: field.default for field in fields(TrainingSettings)}
    if not equals or name not in known:
        raise UsageError(f"--set {text}: must be NAME=VALUE, NAME one of {', '.join(known)}")
    kind: type = type(known[name])
    try:
        if kind is bool:
            return name, {"true": True, "false": False, "1": True, "0": False}[value.strip().lower()]
        return name, kind(value.strip())
    except (ValueError, KeyError) as error:
        raise UsageError(f"--set {text}: the value must be a {kind.__name__}") from error


def _leads() -> bool:
    """Whether this is the process of `torchrun` that speaks, or the only one."""
    return not _distributed() or os.environ["RANK"] == "0"


def _distributed() -> bool:
    """Whether `torchrun` began this process: others set RANK and WORLD_SIZE, too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run(out: Path, settings: TrainingSettings, *, resume: bool, staged: bool) -> None:
    from avsseg.training.distributed import process_group

    leads = _leads()
    # the others would say everything once more
    logging.getLogger("avsseg").setLevel(logging.INFO if leads else logging.ERROR)
    with process_group() if _distributed() else contextlib.nullcontext(), _reporter(leads) as listener:
        if staged:
            best = _run_stages(out, settings, listener, resume=resume)
        else:
            best, _ = _run_one(out, settings, listener, resume=resume, whole=out)
    if leads:
        typer.echo(str(best))


def _run_one(
    out: Path,
    settings: TrainingSettings,
    listener: Any,
    *,
    resume: bool,
    whole: Path,
    ready: Callable[[], object] = lambda: None,
) -> tuple[Path, bool]:
    """The best model of a run, which may be one of several in the folder of the `whole`, and whether to stop there.

    `ready` is called when nothing that was given can stop the run any more.
    """
    from avsseg.training.distributed import together
    from avsseg.training.run import TrainingRun
    from avsseg.training.trainer import Interrupted

    def begin() -> TrainingRun:
        run = TrainingRun(out, settings, resume=resume, listener=listener)
        ready()
        return run

    run = together(begin, printable(out))
    with _stopping(run.trainer.request_stop) as stopped_by:
        try:
            return run.train(), run.trainer.stop_requested
        except Interrupted:
            if _leads():
                kept = next((p for p in (out / BEST, out / LAST) if p.exists()), None)
                model = f", the model so far is {kept}" if kept and settings.stage != "encoders" else ""
                typer.echo(f"stopped at step {run.trainer.step}{model}; {_go_on(whole)}", err=True)
            if signal.SIGTERM in stopped_by:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise KeyboardInterrupt from None


def _go_on(out: Path) -> str:
    return f"go on with: avsseg train --resume --out {out}"


def _run_stages(out: Path, settings: TrainingSettings, listener: Any, *, resume: bool) -> Path:
    from avsseg.training.distributed import all_wait, any_of_all, rank_and_world
    from avsseg.training.run import forget_start
    from avsseg.writers.base import output_errors, written_whole

    runs = scene_stages(out, settings, processes=rank_and_world()[1])
    first = stage_to_go_on_with(out, runs, resume=resume)
    leads = _leads()

    def keep_settings() -> None:
        if leads:
            with output_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            write_toml(out / STAGES_NAME, settings)

    for number, (folder, stage) in enumerate(runs[first:], start=first + 1):
        going = resume and (folder / "last.pt").exists()
        all_wait()  # for the model to start from; and none may see what another has begun
        if leads:
            typer.echo(f"run {number} of {len(runs)}, {stage.minutes:.3g} minutes: {folder}", err=True)
            if resume and not going:
                forget_start(folder)
        best, stop = _run_one(
            *(folder, from_what_there_is(stage), listener), resume=going, whole=out, ready=keep_settings
        )
        if any_of_all(stop) and number < len(runs):  # too late for the run that has ended by itself
            if leads:
                typer.echo(f"stopped after run {number}; {_go_on(out)}", err=True)
            raise KeyboardInterrupt
    if leads:
        with written_whole(out / BEST) as partial:
            shutil.copyfile(best, partial)
    return out / BEST


@contextlib.contextmanager
def _stopping(request: Callable[[], None]) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM ends the run after the step in work, a second one at once; which came."""
    # with one process of `torchrun` gone there is no step to finish, and that is what it sends the others SIGTERM for
    numbers = [signal.SIGINT] if _distributed() else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as under nohup
    came: list[int] = []

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        typer.echo("stopping after this step; press Ctrl-C again to stop at once", err=True)
        give_back()
        came.append(number)
        request()

    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        give_back()


@contextlib.contextmanager
def _reporter(leads: bool) -> Iterator[Any]:
    """A bar on a terminal, a line every twenty steps elsewhere; both on stderr."""
    if not leads:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.description}"))
    with Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0, step=0)

        def listen(progress: Progress) -> None:
            text = describe(progress)
            if bar.tasks[0].finished and progress.done < 1:  # another run begins
                bar.reset(task)
            bar.update(task, completed=progress.done, description=text, step=progress.step)
            if not console.is_terminal and progress.step % 20 == 0:
                typer.echo(f"step {progress.step} ({100 * progress.done:.0f} %): {text}", err=True)

        yield listen


def describe(progress: Progress) -> str:
    """One line about where the run is."""
    parts = [f"loss {progress.values['loss']:.3f}"]
    if "M_J" in progress.values:
        parts.append(f"M_J {progress.values['M_J']:.3f}")
    for name in ("M_J", "seen", "heard"):
        if name in progress.validation:
            parts.append(f"val {name} {progress.validation[name]:.3f}")
    left = progress.seconds_left
    parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return ", ".join(parts)
