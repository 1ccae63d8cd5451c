"""`avsseg train`: trains or fine-tunes a model on a folder in AVSBench's layout."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from avsseg.cli.train_runs import leads, run_training
from avsseg.cli.train_settings import gather, parse_setting
from avsseg.errors import UsageError, printable
from avsseg.model.config import ABLATIONS, BACKBONE_ALIASES, PRESETS, VISUAL_BACKBONES
from avsseg.training.run_folder import STAGES
from avsseg.training.settings import PRESET_NAMES, TrainingSettings

EXAMPLES = """[bold]Examples[/bold]

avsseg data synth scenes --clips 400  [dim]a rendered dataset to try it on[/dim]

avsseg train --data scenes --out runs/first --preset scenes --from avs-mamba-tiny  [dim]an hour; Ctrl-C keeps all[/dim]

avsseg train --resume --out runs/first  [dim]goes on exactly where it stopped[/dim]

avsseg train --data my-clips --out runs/mine --from avs-mamba-tiny --learning-rate 1e-4  [dim]fine-tunes[/dim]

avsseg train --subset s4 --data AVSBench --out runs/s4 --preset paper --init-visual b5.pth --init-audio vggish.pth

torchrun --nproc-per-node 2 -m avsseg train --data scenes --out runs/two  [dim]two processes, gradients averaged[/dim]
"""

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
    given = dict(parse_setting(text) for text in setting or [])
    for name in flags.keys() & given.keys():
        if flags[name] != given[name]:
            raise UsageError(f"--set {name}={given[name]}: its own option says {flags[name]}. Leave one out")
    flags |= given
    staged = (out / STAGES).is_file()
    if staged and not resume and preset != "scenes":
        raise UsageError(f"{printable(out)}: holds a run already. Go on with --resume, or choose another --out")
    staged = staged or (preset == "scenes" and not resume)
    settings = gather(out, preset, flags, config, resume=resume)
    if not settings.data:
        raise UsageError("no data: give --data DIR, a folder in AVSBench's layout (`avsseg data synth DIR` makes one)")
    if preset == "paper" and not settings.init_visual and not settings.start_from and leads():
        typer.echo(
            "avsseg: warning: the paper's visual backbone starts from ImageNet weights, this one from random ones. "
            "Give --init-visual (`avsseg weights list`)",
            err=True,
        )
    run_training(out, settings, resume=resume, staged=staged)
