"""What a benchmark measures; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from avsseg.errors import UsageError
from avsseg.model.config import BACKBONE_ALIASES, FIGURE_10_MODELS, PRESETS, VISUAL_BACKBONES, AvsMambaConfig
from avsseg.pipeline.options import LARGEST_SIZE, Precision
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

DEFAULT_MODELS = (DEFAULT_MODEL, *FIGURE_10_MODELS)
LONGEST_CLIP = 1000
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class BenchOptions:
    """One table: every model at every size.

    Attributes:
        models: names of models, checkpoints (.safetensors), or visual backbones, which are then measured inside the
            paper's model.
        sizes: sides in pixels of the square input.
        frames: T, the frames of a clip.
        batch: clips that go through the model in one pass.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" is float32 on the CPU; on CUDA bfloat16 autocast, or float16 where bfloat16 is only emulated.
        threads: CPU threads of the model; None leaves PyTorch's choice.
        repeats: timed passes of each row; the median counts.
        rate: frames that a second of video gives the model, for the speed against playback.

    Raises:
        UsageError: a value is out of its bounds, or a name is unknown.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    sizes: tuple[int, ...] = (224,)
    frames: int = 5
    batch: int = 1
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    repeats: int = 3
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not self.models or not self.sizes:
            raise UsageError("nothing to measure: name at least one model and one size")
        for name in self.models:
            if not is_checkpoint(name):
                model_config(name)
        for size in self.sizes:
            if not 32 <= size <= LARGEST_SIZE:
                raise UsageError(f"size is {size}; it must be from 32 to {LARGEST_SIZE} pixels")
        if not 1 <= self.frames <= LONGEST_CLIP:
            raise UsageError(f"frames is {self.frames}; it must be from 1 to {LONGEST_CLIP}")
        if not 1 <= self.batch <= LARGEST_BATCH:
            raise UsageError(f"batch is {self.batch}; it must be from 1 to {LARGEST_BATCH} clips")
        if self.repeats < 1:
            raise UsageError(f"repeats is {self.repeats}; it must be at least 1")
        if not 0.001 <= self.rate <= 1000:
            raise UsageError(f"rate is {self.rate:g}; it must be from 0.001 to 1000 frames a second")


def is_checkpoint(name: str) -> bool:
    """Whether weights are to be read for it: those of a file, or those that the package has for a model's name."""
    return name.endswith(".safetensors") or name in shipped_weights()


def model_config(name: str) -> AvsMambaConfig:
    """The preset of that name, or the paper's model with the visual backbone of that name. Raises UsageError."""
    if name in PRESETS:
        return PRESETS[name]
    try:
        return AvsMambaConfig(backbone=name)
    except UsageError as error:
        backbones = ", ".join((*VISUAL_BACKBONES, *BACKBONE_ALIASES))
        raise UsageError(
            f"{name!r} is neither a model ({', '.join(PRESETS)}), nor a .safetensors file, nor a visual backbone "
            f"({backbones})"
        ) from error
