"""One training run on an AVSBench folder: model, data, trainer and what is left in the run's folder."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from avsseg.data.augment import Augmentation
from avsseg.data.avsbench import AvsBenchClips
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.errors import AvssegError, DataError, EnvironmentFault, UsageError, printable
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.model.yamnet import Yamnet
from avsseg.pipeline.device import resolve_device
from avsseg.pipeline.scoring import memory_faults
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.clips import ClipBatch, ClipObjective, ClipOrder, clip_batches, second_batches, validation
from avsseg.training.curves import draw_curves
from avsseg.training.distributed import MEMORY_REMEDY, rank_and_world, together
from avsseg.training.encoders import (
    SHIFT,
    Change,
    EncoderObjective,
    encoder_batches,
    encoder_validation,
    sounding_frames,
)
from avsseg.training.objectives import ModelObjective
from avsseg.training.run_folder import (
    BEST,
    BEST_STATE,
    LAST,
    LAST_STATE,
    MODEL,
    SETTINGS,
    check_folder,
    forget_start,
    held,
)
from avsseg.training.settings import TrainingSettings, write_toml
from avsseg.training.start import build_model, frozen_statistics, with_size
from avsseg.training.trainer import Interrupted, NonFiniteError, Progress, Trainer, TrainerSettings, Validation
from avsseg.weights.cache import find_weights
from avsseg.weights.store import BINARY_CATEGORIES, save_model
from avsseg.writers.base import output_errors, written_whole

logger = logging.getLogger(__name__)

# its names of the classes of sound, beside the configuration
HEARD = "heard"
ENCODERS = ("model.visual_backbone.", "model.audio_encoder.")
# a run without epochs cannot be validated after each of them
DEFAULT_VALIDATE_MINUTES = 6.0


def _objective(model: AvsMamba, settings: TrainingSettings) -> ModelObjective:
    frozen = frozen_statistics(settings)
    if settings.stage == "encoders":
        change = Change(SHIFT, settings.resize, settings.rotate, flip=True) if settings.augment else Change()
        return EncoderObjective(model, change, frozen_statistics=frozen)
    return ClipObjective(
        model,
        class_weight=0.0 if settings.mute else settings.class_weight,
        dice_weight=settings.dice_weight,
        bce_weight=settings.bce_weight,
        layer_weight=settings.layer_weight,
        frozen_statistics=frozen,
        mute=settings.mute,
        binary=settings.semantic_loss == "binary",
    )


def _augmentation(settings: TrainingSettings) -> Augmentation | None:
    if not settings.augment:
        return None
    return Augmentation(
        resize=(1 / settings.resize, settings.resize),
        gain_db=settings.audio_gain_db,
        noise_db=settings.audio_noise_db or None,
        mix=settings.audio_mix,
        rotate=settings.rotate,
        hue=settings.hue,
        recolour=settings.recolour,
        retexture=settings.retexture,
    )


def _same_model(folder: Path, data: Path, heard: Sequence[str]) -> AvsMamba:
    """The architecture of a run that goes on; its weights come from `last.pt`.

    Raises DataError, and UsageError where `data` has other classes of sound, `heard`, than the run began with.
    """
    path = folder / MODEL
    try:
        kept = json.loads(path.read_text())
        before = kept.pop(HEARD, None)
        model = AvsMamba(AvsMambaConfig.from_dict(kept))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{printable(path)}: cannot be read ({error}). Start a new run in another folder") from error
    # earlier versions kept no names
    if list(heard) != before if before is not None else len(heard) not in (0, model.config.heard_classes):
        raise UsageError(
            f"{printable(data)}: lists other classes of sound than the clips that {printable(folder)} began with. Go "
            "on with those, or train --from its best.safetensors in another --out"
        )
    return model


class TrainingRun:
    """A run that is ready to start. Raises UsageError, DataError or OutputError for what would stop it later."""

    def __init__(
        self,
        folder: Path,
        settings: TrainingSettings,
        *,
        resume: bool = False,
        listener: Callable[[Progress], None] | None = None,
        find: Callable[[str | Path], Path] = find_weights,
    ) -> None:
        self.folder = folder
        self.settings = settings = with_size(settings)
        self.rank, self.world = rank_and_world()
        with output_errors(folder):
            check_folder(folder, resume=resume, leads=self.rank == 0)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = own_device(settings.device)
        if settings.precision == "fp16" and device.type != "cuda":
            raise UsageError(
                f"precision fp16 trains on CUDA alone, and the device is {device}. Use --precision bf16 or fp32, or "
                "--device cuda"
            )
        encoders = settings.stage == "encoders"
        # a muted model hears none of them
        by_class = encoders or (settings.class_weight > 0 and not settings.mute)
        root = Path(settings.data)
        self.clips = AvsBenchClips(
            root,
            settings.subset,
            "train",
            size=settings.size,
            augmentation=_augmentation(settings),
            seed=settings.seed,
            list_sounds=by_class,
        )
        self.order = self._order(first=0)
        if by_class and not self.clips.sound_classes:
            asker = "stage=encoders, with which --preset scenes begins," if encoders else "class_weight"
            raise UsageError(
                f"{printable(root)}: {asker} needs to know what sounds in which clip, and nothing says so (the "
                "datasets of `avsseg data synth` and `compose` do, in clips.json). Leave it out"
            )
        self.val: AvsBenchClips | None = None
        try:
            self.val = AvsBenchClips(root, settings.subset, "val", size=settings.size, list_sounds=encoders)
        except DataError as error:
            if "lists no val clip" not in str(error):
                raise
            logger.warning("%s: no val clips, so the last state counts as the best", printable(root))
        torch.manual_seed(settings.seed)
        classes = self.clips.sound_classes
        model = _same_model(folder, root, classes) if resume else build_model(settings, heard=classes, find=find)
        model.to(device)
        if settings.stage == "plain":
            model.rest_blocks()
        if isinstance(model.audio_encoder, Yamnet) and encoders:
            # told apart by its features alone few of the seconds of `data synth` are (benchmarks/RESULTS.md)
            model.audio_encoder.requires_grad_(True)
        if settings.frozen_audio:
            model.audio_encoder.requires_grad_(False)
        objective = _objective(model, settings).to(device)  # its own layers, too
        with held(folder) if self.rank == 0 else contextlib.nullcontext():
            # another run may have begun, or ended, since
            check_folder(folder, resume=resume, leads=self.rank == 0)
            if not resume and self.rank == 0:
                forget_start(folder)
            self.trainer = Trainer(
                objective,
                folder,
                self._trainer_settings(),
                learning_rate_scales=dict.fromkeys(ENCODERS, settings.encoder_rate),
                listener=listener,
                tensorboard=True,
            )
            if resume:
                self.trainer.restore()
            if self.rank == 0:
                write_toml(folder / SETTINGS, settings)
                with written_whole(folder / MODEL) as partial:
                    partial.write_text(json.dumps({**model.config.to_dict(), HEARD: classes}, indent=1) + "\n")

    def _trainer_settings(self) -> TrainerSettings:
        s = self.settings

        def steps_of(epochs: int) -> int:
            return -(-epochs * self.order.batches_per_epoch // s.accumulate)  # the last one may begin another epoch

        by_epoch = s.epochs > 0 and s.validate_minutes == 0
        return TrainerSettings(
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            beta_2=s.beta_2,
            schedule="constant" if s.schedule == "constant" else "cosine",
            warmup_steps=s.warmup_steps,
            steps=steps_of(s.epochs) if s.epochs else 10_000_000,
            minutes=s.minutes or math.inf,
            accumulate=s.accumulate,
            gradient_clip=s.gradient_clip,
            precision=s.precision,  # type: ignore[arg-type]
            ema_decay=s.ema_decay,
            frozen=ENCODERS,
            frozen_steps=steps_of(s.freeze_epochs),
            seed=s.seed,
            log_every=min(20, steps_of(1)),
            validate_minutes=math.inf if by_epoch else s.validate_minutes or DEFAULT_VALIDATE_MINUTES,
            validate_steps=steps_of(1) if by_epoch else 10_000_000,
        )

    def _order(self, first: int) -> ClipOrder:
        s = self.settings
        return ClipOrder(len(self.clips), s.batch, seed=s.seed, first=first, rank=self.rank, world=self.world)

    def train(self) -> Path:
        """Trains to the end; the path of the best model. Raises Interrupted if it was asked to stop.

        What there is by then is left in the folder also when AvssegError ends it: NonFiniteError when the loss is no
        longer a number, OutputError when the disk refuses, DataError or MediaError for a damaged file. Raises
        UsageError, and touches nothing, where another process trains in the folder.
        """
        with contextlib.ExitStack() as stack:
            keep = functools.partial(stack.enter_context, held(self.folder))
            together(keep if self.rank == 0 else lambda: None, printable(self.folder))
            return self._train()

    def _train(self) -> Path:
        batches, check = together(self._prepared, printable(self.folder))
        try:
            with memory_faults(printable(self.folder), MEMORY_REMEDY):
                self.trainer.train(batches, check)
        except Interrupted:  # in all processes at the same step
            self._leave()
            raise
        except AvssegError as error:
            model = self.folder / BEST
            # the first error is the one to be told
            with contextlib.suppress(AvssegError):
                model = self._leave() if self.trainer.failed_together else self._leave_alone()
            if isinstance(error, NonFiniteError) and model.exists():
                rate = f"--learning-rate {self.settings.learning_rate / 2:g}"
                raise NonFiniteError(f"{error} in another --out: --from {printable(model)} {rate}") from error
            if isinstance(error, EnvironmentFault) and (self.folder / LAST_STATE).exists():
                raise EnvironmentFault(f"{error}; the state of the last checkpoint is kept") from error
            raise
        return self._leave()

    def _prepared(self) -> tuple[Iterator[ClipBatch], Validation | None]:
        """The batches from the step on that comes next, and how the model is validated.

        Raises EnvironmentFault where memory runs out: some stages hold what they train or validate on in memory.
        """
        with memory_faults(printable(self.folder), MEMORY_REMEDY):
            first = self.trainer.step * self.settings.accumulate
            encoders, plain = (self.settings.stage == name for name in ("encoders", "plain"))
            # single seconds are taken from the clips of a group of batches
            seconds = self.clips.seconds if plain else 1
            order = self._order(first=first - first % seconds)
            # of two sounds a muted model hears neither: which of them a picture is to be marked for would be chance
            pair = 0.0 if self.settings.mute or encoders else self.settings.pair
            batches = clip_batches(self.clips, order, self.settings.workers, pair=pair)
            if encoders:
                batches = encoder_batches(batches, sounding_frames(self.clips, "train"), self.clips.augmentation, order)
            elif plain:
                batches = second_batches(batches, seconds, first=first, crops=self.settings.crops)
            check = None
            if self.val is not None:
                check = encoder_validation(self.val) if encoders else validation(self.val, mute=self.settings.mute)
            return batches, check

    def _leave(self) -> Path:
        """As `_leave_alone`, where all processes come: they wait, as `torchrun` stops the first when one has ended."""
        return together(self._leave_alone, printable(self.folder))

    def _leave_alone(self) -> Path:
        """Writes the models and the curves; what a run that stopped early has so far."""
        best = self.folder / BEST
        if self.rank != 0:
            return best
        pairs = ((BEST_STATE, BEST), (LAST_STATE, LAST))
        there = [(self.folder / state, self.folder / model) for state, model in pairs if (self.folder / state).exists()]
        if not there:
            return best
        for state, model in there:
            export(state, model, self.trainer, self.settings, self.clips.sound_classes)
        try:
            draw_curves(self.folder)
        except EnvironmentFault as error:
            logger.warning("%s", error)
        return there[0][1]


def export(
    checkpoint: Path, target: Path, trainer: Trainer, settings: TrainingSettings, heard: Sequence[str] = ()
) -> None:
    """The averaged model of a checkpoint as a file that `--model` takes; `heard` names its classes of sound."""
    state = load_checkpoint(checkpoint)
    assert isinstance(trainer.average, ModelObjective)
    config = trainer.average.model.config
    model = AvsMamba(config)
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)})
    categories = CLASS_NAMES if settings.num_classes > 1 else BINARY_CATEGORIES
    best = state["best_score"]
    masks = settings.stage != "encoders"
    provenance = {
        "settings": asdict(settings),
        "steps": state["step"],
        "minutes": round(state["elapsed_s"] / 60, 1),
        f"best_val_{'M_J' if masks else 'score'}": best if math.isfinite(best) else None,
    }
    # classes that nothing in these clips was told by have no names
    heard = heard or ("",) * config.heard_classes
    save_model(target, model.eval(), categories=categories, heard=heard, training=provenance, trained=masks)


def own_device(name: str) -> torch.device:
    """The device of that name; of several CUDA GPUs, each process of `torchrun` gets its own."""
    device = resolve_device(name)
    if device.type == "cuda" and ":" not in name and rank_and_world()[1] > 1:
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    return device
