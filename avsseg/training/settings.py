"""Everything that a training run on AVSBench can be told, its presets, and the TOML file that keeps it. No torch.

A setting is given, in this order of weight, by a flag, by the file of `--config`, by the preset.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from avsseg.errors import UsageError, printable
from avsseg.model.config import ABLATIONS, PRESETS
from avsseg.writers.base import written_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SubsetName = Literal["s4", "ms3", "avss"]
DEFAULT_SIZE = 128


@dataclass(frozen=True)
class TrainingSettings:
    """One run. Lengths of 0 mean no limit (`minutes`) or by `minutes` alone (`epochs`)."""

    # what is learned from what
    subset: SubsetName = "ms3"
    stage: str = "masks"  # or plain: without the Mamba blocks; or encoders: these alone, from classes
    data: str = ""
    model: str = "avs-mamba-tiny"
    backbone: str = ""  # "": the model's own
    ablate: str = ""
    start_from: str = ""  # --from: a checkpoint whose weights are taken where they fit
    init_visual: str = ""
    init_audio: str = ""
    size: int = 0  # 0: that of `start_from`, else DEFAULT_SIZE
    mute: bool = False  # every sound replaced by silence: what the pictures alone give away
    # how long, how fast
    epochs: int = 60
    minutes: float = 0.0
    batch: int = 2
    accumulate: int = 1
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.02
    drop_path: float = 0.1  # the share of residual branches that a clip skips
    gradient_clip: float = 1.0  # 0: none
    beta_2: float = 0.98  # AdamW's second
    ema_decay: float = 0.995
    precision: str = "fp32"
    encoder_rate: float = 1.0  # factor on the learning rate of both encoders
    freeze_epochs: int = 0  # for so long both encoders stay as they are
    frozen_audio: bool = False  # the audio encoder stays as it is, which saves its backward pass
    frozen_statistics: str = "auto"  # batch normalisation: auto (frozen where it starts from trained weights), yes, no
    # losses
    dice_weight: float = 1.0
    bce_weight: float = 1.0
    semantic_loss: str = "cross-entropy"  # of AVSS: cross-entropy (the authors' code) or binary (the paper's text)
    layer_weight: float = 1.0  # of earlier decoder layers (deep supervision)
    class_weight: float = 0.0  # of telling the classes of what sounds, where the dataset lists them
    agreement: bool = False  # not in the paper: masks also go by where a class that sounds is seen; with class_weight
    # augmentation
    augment: bool = True
    resize: float = 2.0  # largest factor by which clips are made larger or smaller; 1: none
    rotate: float = 0.0  # largest turn, degrees
    hue: float = 18.0  # largest turn of the colours, degrees
    recolour: float = 0.0  # probability of other colours altogether, for classes that colour says nothing about
    retexture: float = 0.0  # probability of other textures, likewise
    crops: float = 0.6  # of stage plain: share of steps that see what sounds at half the picture's side
    audio_gain_db: float = 0.0
    audio_noise_db: float = 0.0  # level of white noise in dB, such as -40; 0: none
    audio_mix: float = 0.0
    pair: float = 0.0  # probability that a clip shares its picture with another; above 0 each has two soundtracks
    # the machine
    seed: int = 0
    workers: int = 1
    threads: int = 0
    device: str = "auto"
    validate_minutes: float = 0.0  # 0: after every epoch, or every 6 minutes if `epochs` is 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = hints[field.name] if isinstance(hints[field.name], type) else str
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                if abs(value) > sys.float_info.max:
                    raise UsageError(
                        f"{field.name} has {len(str(abs(value)))} digits, must be a number that a float holds"
                    )
                object.__setattr__(self, field.name, float(value))
            elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise UsageError(f"{field.name} is {value!r}, must be {wanted.__name__}")
            if isinstance(value, str) and not _is_unicode(value):
                # TOML, which keeps the settings, is UTF-8
                raise UsageError(f"{printable(value)}: the name is not UTF-8. Rename it, or give a link to it")
        _one_of("subset", self.subset, ("s4", "ms3", "avss"))
        _one_of("model", self.model, tuple(PRESETS))
        _one_of("stage", self.stage, ("masks", "plain", "encoders"))
        _one_of("ablate", self.ablate, ("", *ABLATIONS))
        _one_of("schedule", self.schedule, ("cosine", "constant"))
        _one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        _one_of("frozen_statistics", self.frozen_statistics, ("auto", "yes", "no"))
        # above that a step's own seed would be no number that PyTorch takes, and a processor has no more threads
        for name, most in (("seed", 10**12), ("threads", 1024)):
            if getattr(self, name) > most:
                raise UsageError(f"{name} is {getattr(self, name)}, must be {most} at most")
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be 1 or more")
        _one_of("semantic_loss", self.semantic_loss, ("cross-entropy", "binary"))
        signed = ("audio_noise_db",)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and field.name not in signed and not 0 <= value < math.inf:
                raise UsageError(f"{field.name} is {value}, must be a number that is not negative")
        if self.start_from and (self.backbone or self.ablate or self.init_visual or self.init_audio):
            raise UsageError("--from brings its own model: leave out --backbone, --ablate, --init-visual, --init-audio")
        if self.stage == "encoders" and self.mute:
            raise UsageError("stage encoders learns from the sound: leave out --mute")
        if self.stage == "encoders" and self.frozen_audio:
            raise UsageError("stage encoders teaches the audio encoder: leave out frozen_audio")
        if self.frozen_audio and not (self.start_from or self.init_audio):
            raise UsageError("frozen_audio would keep random weights: give --from or --init-audio, or leave it out")
        if self.agreement and not self.class_weight:
            raise UsageError(
                "agreement is of classes that are told apart: give class_weight=0.5 too, or agreement=false"
            )
        if self.agreement and (self.mute or self.subset == "avss"):
            raise UsageError(
                "agreement is of one mask with what is heard: give agreement=false with --mute or subset avss"
            )
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}, must be at least 0 (no average) and below 1")
        for name in ("beta_2", "drop_path"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be at least 0 and below 1")
        if not -math.inf < self.audio_noise_db <= 0:
            raise UsageError(f"audio_noise_db is {self.audio_noise_db}, must be negative, such as -40, or 0 (no noise)")
        if self.resize < 1:
            raise UsageError(f"resize is {self.resize}, must be 1 (none) or more")
        for name in ("pair", "recolour", "retexture", "crops", "audio_mix"):
            if getattr(self, name) > 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be 0 to 1")
        if self.epochs == 0 and self.minutes == 0:
            raise UsageError("the run would have no end: give epochs or minutes")

    @property
    def num_classes(self) -> int:
        """1 for the object subsets, 71 for AVSS."""
        return 71 if self.subset == "avss" else 1


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}. Choose one of: {', '.join(a if a else repr(a) for a in allowed)}")


_PAPER: dict[str, dict[str, Any]] = {
    "s4": {"size": 512, "batch": 2, "epochs": 60, "bce_weight": 0.0},
    # the visual backbone waits for the rest; VGGish, the other encoder, learns in no preset
    "ms3": {"size": 512, "batch": 2, "epochs": 120, "bce_weight": 0.0, "freeze_epochs": 20},
    "avss": {"size": 224, "batch": 6, "epochs": 50, "dice_weight": 0.0},
}
# the paper's recipe (V-B), with the losses that the authors train: dice alone for objects, cross-entropy for classes;
# a constant rate, no average, one draw of the augmentation a clip
_PAPER_COMMON: dict[str, Any] = {
    "model": "avs-mamba-pvt-v2-b5",
    "learning_rate": 2e-5,
    "schedule": "constant",
    "warmup_steps": 0,
    "ema_decay": 0.0,
    "weight_decay": 0.01,
    "gradient_clip": 0.0,
    "beta_2": 0.999,
}
# of all runs of `avsseg.training.stages`. Which way up things are and what colour they have says nothing in scenes that
# `data synth` renders
SCENES_COMMON: dict[str, Any] = {
    "epochs": 0,
    "minutes": 60.0,
    "rotate": 180.0,
    "hue": 180.0,
    "recolour": 0.5,
    "resize": 1.4,
    "audio_gain_db": 6.0,
    "frozen_statistics": "no",
    "pair": 0.6,
    "class_weight": 0.5,
    "agreement": True,
}
PRESET_NAMES = ("tiny", "paper", "scenes")


def training_preset(name: str, subset: str) -> TrainingSettings:
    """The preset of that name for a subset. Raises UsageError."""
    _one_of("preset", name, PRESET_NAMES)
    _one_of("subset", subset, tuple(_PAPER))
    if name == "paper":
        return TrainingSettings(subset=subset, **_PAPER_COMMON, **_PAPER[subset])  # type: ignore[arg-type]
    common = SCENES_COMMON if name == "scenes" else {}
    return TrainingSettings(subset=subset, **common)  # type: ignore[arg-type]


def with_changes(settings: TrainingSettings, changes: Mapping[str, Any], *, where: str) -> TrainingSettings:
    """The settings with some changed; `where` names the source in errors. Raises UsageError."""
    known = {field.name for field in fields(TrainingSettings)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise UsageError(f"{where}: unknown settings {', '.join(unknown)}. Known: {', '.join(sorted(known))}")
    try:
        return replace(settings, **changes)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a settings file. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{printable(path)}: is not TOML ({error})") from error


def write_toml(path: Path, settings: TrainingSettings) -> None:
    """Keeps the settings beside the run, as `--config` reads them. Raises OutputError."""
    # JSON's strings, numbers and booleans are TOML's too, but for DEL as it is, and nothing here is nested
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(settings).items()]
    with written_whole(path) as partial:
        partial.write_text("".join(lines).replace("\x7f", "\\u007F"), encoding="utf-8")
