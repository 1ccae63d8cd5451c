"""`--preset scenes`: four runs one after the other, which make one model of scenes that `data synth` renders. No torch.

Each has its own folder below that of the whole, RUN/1-encoders and so on, and starts from the best model of the one
before; RUN/best.safetensors is that of the last one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avsseg.errors import UsageError, printable
from avsseg.training.run_folder import BEST, BEST_STATE, LAST, LAST_STATE, SETTINGS
from avsseg.training.settings import DEFAULT_SIZE, SCENES_COMMON, TrainingSettings

# what no folder may hold in which the runs begin
_OF_A_RUN = (BEST, LAST, BEST_STATE, LAST_STATE, SETTINGS)
# what each of the runs has its own of; other settings are for all of them
OWN = (
    *("stage", "batch", "accumulate", "epochs", "learning_rate", "schedule", "freeze_epochs", "frozen_audio"),
    *("layer_weight", "validate_minutes"),
)


@dataclass(frozen=True)
class Stage:
    """One of the runs.

    Attributes:
        name: of its folder.
        share: of the minutes.
        clips: a step, of all processes together.
        larger: factor on the side of the input.
        recoloured: factor on the probability of other colours.
        validations: how often it is looked at on val.
        settings: that differ from those of all.
    """

    name: str
    share: float
    clips: int
    larger: float
    validations: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    recoloured: float = 1


# As measured (benchmarks/RESULTS.md): shapes are learned fastest in small pictures and without the
# blocks, outlines need larger ones, and the blocks little time
_PLAIN: dict[str, Any] = {"stage": "plain", "learning_rate": 1e-3, "frozen_audio": True}
# a model without sound starts from the same encoders: what it lacks is then the sound alone, not what it sees, too
_ENCODERS: dict[str, Any] = {"stage": "encoders", "learning_rate": 1.5e-3, "mute": False}
SCENES = (
    Stage("1-encoders", 8 / 60, 16, 1, 2, _ENCODERS, recoloured=2),
    Stage("2-plain", 22 / 60, 8, 1, 3, {**_PLAIN, "schedule": "constant"}),
    Stage("3-larger", 22 / 60, 8, 1.5, 3, _PLAIN),
    Stage("4-masks", 8 / 60, 4, 1.5, 2, {"learning_rate": 4e-4, "frozen_audio": True, "layer_weight": 0.3}),
)


def check_scene_settings(given: Mapping[str, object]) -> None:
    """Raises UsageError for settings that every run of the preset has its own of."""
    own = sorted(set(given) & set(OWN))
    if own:
        raise UsageError(f"--preset scenes has its own {', '.join(own)} in each of its runs: leave it out")
    if given.get("subset") == "avss":
        raise UsageError("--preset scenes trains masks of objects, not of classes: leave out --subset avss")
    if not given.get("minutes", SCENES_COMMON["minutes"]):
        raise UsageError("--preset scenes shares out minutes: give --minutes 60, say")


Run = tuple[Path, TrainingSettings]  # its folder and its settings


def scene_stages(folder: Path, settings: TrainingSettings, *, processes: int = 1) -> list[Run]:
    """The runs in order. Raises UsageError."""
    small = settings.size or DEFAULT_SIZE
    start = settings
    runs: list[Run] = []
    for stage in SCENES:
        if stage.clips % processes:
            allowed = "1, 2 or 4 processes"
            raise UsageError(f"--preset scenes takes {allowed}, not {processes}: its steps have 4, 8 or 16 clips")
        minutes = settings.minutes * stage.share
        runs.append(
            (
                folder / stage.name,
                replace(
                    start,
                    **stage.settings,
                    minutes=minutes,
                    batch=stage.clips // processes,
                    size=small if stage.larger == 1 else max(1, round(small * stage.larger / 32)) * 32,
                    recolour=min(1.0, settings.recolour * stage.recoloured),
                    validate_minutes=minutes / stage.validations,
                ),
            )
        )
        # what comes later brings the model that it has by then
        start = replace(
            settings, start_from=str(folder / stage.name / BEST), backbone="", ablate="", init_visual="", init_audio=""
        )
    return runs


def stage_to_go_on_with(folder: Path, runs: list[Run], *, resume: bool) -> int:
    """The number of the run that comes next: the last that began, or the first. Raises UsageError.

    A folder in which the runs begin must not hold anything of another run.
    """
    began = [number for number, (of_run, _) in enumerate(runs) if (of_run / LAST_STATE).exists()]
    held = [name for name in _OF_A_RUN if os.path.lexists(folder / name)]
    if not resume and (began or held):
        what = "a run" if began or LAST_STATE in held else held[0]
        raise UsageError(f"{printable(folder)}: holds {what} already. Go on with --resume, or choose another --out")
    return began[-1] if began else 0


def from_what_there_is(settings: TrainingSettings) -> TrainingSettings:
    """Starts from the last model of the run before where that had nothing to choose the best by."""
    best = Path(settings.start_from)
    last = best.parent / LAST
    if best.name == BEST and not best.exists() and last.exists():
        return replace(settings, start_from=str(last))
    return settings
