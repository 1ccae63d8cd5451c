"""One training run on an AVSBench folder: model, data, trainer and what is left in the run's folder.

RUN/settings.toml        everything that the run was told
RUN/model.json           the model's configuration
RUN/train.csv, val.csv   what it logged; tensorboard/ the same for TensorBoard
RUN/last.pt, best.pt     its whole state, at the last step and at the best validation
RUN/best.safetensors     the model of the best validation, for `avsseg run --model`; last.safetensors likewise
RUN/curves.png           loss and scores
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed

from avsseg.data.augment import Augmentation
from avsseg.data.avsbench import AvsBenchClips
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.errors import DataError, EnvironmentFault, UsageError, printable
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig, preset
from avsseg.pipeline.segment import resolve_device
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.clips import ClipObjective, ClipOrder, clip_batches, validation
from avsseg.training.curves import draw_curves
from avsseg.training.settings import TrainingSettings, write_toml
from avsseg.training.trainer import LOGS, Interrupted, Progress, Trainer, TrainerSettings
from avsseg.weights.pretrained import load_audio_weights, load_backbone_weights
from avsseg.weights.store import BINARY_CATEGORIES, load_model, save_model
from avsseg.writers.base import written_whole

logger = logging.getLogger(__name__)

SETTINGS_NAME = "settings.toml"
MODEL_NAME = "model.json"
ENCODERS = ("model.visual_backbone.", "model.audio_encoder.")


def build_model(settings: TrainingSettings) -> AvsMamba:
    """The model that a run begins with: random, with pretrained encoders, or from a checkpoint where it fits."""
    if settings.start_from:
        loaded = load_model(settings.start_from)
        config = AvsMambaConfig.from_dict(
            {
                **loaded.config.to_dict(),
                "num_classes": settings.num_classes,
                "input_size": settings.size,
                "drop_path": settings.drop_path,
            }
        )
        model = AvsMamba(config)
        own = model.state_dict()
        fitting = {k: v for k, v in loaded.model.state_dict().items() if own[k].shape == v.shape}
        model.load_state_dict({**own, **fitting})
        for name in sorted(set(own) - set(fitting)):
            logger.warning("%s: %s has another shape there and starts anew", settings.start_from, name)
        return model
    changes: dict[str, object] = {
        "num_classes": settings.num_classes,
        "input_size": settings.size,
        "drop_path": settings.drop_path,
    }
    if settings.backbone:
        changes["backbone"] = settings.backbone
    model = AvsMamba(preset(settings.model, ablate=settings.ablate or None, **changes))
    if settings.init_visual:
        load_backbone_weights(model.visual_backbone, Path(settings.init_visual))
    if settings.init_audio:
        load_audio_weights(model.audio_encoder, Path(settings.init_audio))
    return model


def _same_model(folder: Path) -> AvsMamba:
    """The architecture of a run that goes on; its weights come from `last.pt`. Raises DataError."""
    path = folder / MODEL_NAME
    try:
        return AvsMamba(AvsMambaConfig.from_dict(json.loads(path.read_text())))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{printable(path)}: cannot be read ({error}). Start a new run in another folder") from error


class TrainingRun:
    """A run that is ready to start. Raises UsageError or DataError for what would stop it later."""

    def __init__(
        self,
        folder: Path,
        settings: TrainingSettings,
        *,
        resume: bool = False,
        listener: Callable[[Progress], None] | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        if (folder / "last.pt").exists() and not resume:
            raise UsageError(f"{printable(folder)}: holds a run already. Go on with --resume, or choose another --out")
        if resume and not (folder / "last.pt").exists():
            raise UsageError(f"{printable(folder)}: holds no run to resume (no last.pt)")
        self.rank, self.world = _rank_and_world()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = own_device(settings.device)
        augmentation = None
        if settings.augment:
            augmentation = Augmentation(
                gain_db=settings.audio_gain_db, noise_db=settings.audio_noise_db or None, mix=settings.audio_mix
            )
        root = Path(settings.data)
        self.clips = AvsBenchClips(
            root, settings.subset, "train", size=settings.size, augmentation=augmentation, seed=settings.seed
        )
        self.val: AvsBenchClips | None = None
        try:
            self.val = AvsBenchClips(root, settings.subset, "val", size=settings.size)
        except DataError as error:
            if "lists no val clip" not in str(error):
                raise
            logger.warning("%s: no val clips, so the last state counts as the best", printable(root))
        torch.manual_seed(settings.seed)
        model = (_same_model(folder) if resume else build_model(settings)).to(device)
        trained_start = bool(settings.start_from or settings.init_visual or settings.init_audio)
        frozen_statistics = settings.frozen_statistics == "yes" or (
            settings.frozen_statistics == "auto" and trained_start
        )
        objective = ClipObjective(
            model,
            dice_weight=settings.dice_weight,
            bce_weight=settings.bce_weight,
            layer_weight=settings.layer_weight,
            frozen_statistics=frozen_statistics,
            mute=settings.mute,
            binary=settings.semantic_loss == "binary",
        )
        if not resume and self.rank == 0:
            # what a run left that was killed before its first checkpoint
            for name in (*LOGS, "best.pt", "best.safetensors", "last.safetensors"):
                (folder / name).unlink(missing_ok=True)
        self.order = self._order(first=0)
        steps_per_epoch = max(1, self.order.batches_per_epoch // settings.accumulate)
        self.trainer = Trainer(
            objective,
            folder,
            self._trainer_settings(steps_per_epoch),
            learning_rate_scales=dict.fromkeys(ENCODERS, settings.encoder_rate),
            listener=listener,
            tensorboard=True,
        )
        if resume:
            self.trainer.restore()
        if self.rank == 0:
            write_toml(folder / SETTINGS_NAME, settings)
            with written_whole(folder / MODEL_NAME) as partial:
                partial.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")

    def _trainer_settings(self, steps_per_epoch: int) -> TrainerSettings:
        s = self.settings
        return TrainerSettings(
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            beta_2=s.beta_2,
            schedule="constant" if s.schedule == "constant" else "cosine",
            warmup_steps=s.warmup_steps,
            steps=s.epochs * steps_per_epoch if s.epochs else 10_000_000,
            minutes=s.minutes or math.inf,
            accumulate=s.accumulate,
            gradient_clip=s.gradient_clip,
            precision=s.precision,  # type: ignore[arg-type]
            ema_decay=s.ema_decay,
            frozen=ENCODERS,
            frozen_steps=s.freeze_epochs * steps_per_epoch,
            seed=s.seed,
            log_every=min(20, steps_per_epoch),
            validate_minutes=s.validate_minutes,
            # on a fast machine epochs are the natural unit
            validate_steps=steps_per_epoch if s.validate_minutes == 0 else 10_000_000,
        )

    def _order(self, first: int) -> ClipOrder:
        s = self.settings
        return ClipOrder(len(self.clips), s.batch, seed=s.seed, first=first, rank=self.rank, world=self.world)

    def train(self) -> Path:
        """Trains to the end; the path of the best model. Raises Interrupted if it was asked to stop."""
        order = self._order(first=self.trainer.step * self.settings.accumulate)
        batches = clip_batches(self.clips, order, self.settings.workers)
        check = validation(self.val, mute=self.settings.mute) if self.val is not None else None
        try:
            self.trainer.train(batches, check)
        except Interrupted:
            self._leave()
            raise
        return self._leave()

    def _leave(self) -> Path:
        """Writes the models and the curves; what a run that stopped early has so far."""
        best = self.folder / "best.safetensors"
        if self.rank != 0:
            return best
        names = ["last"] + (["best"] if (self.folder / "best.pt").exists() else [])
        for name in names:
            export(self.folder / f"{name}.pt", self.folder / f"{name}.safetensors", self.trainer, self.settings)
        try:
            draw_curves(self.folder)
        except EnvironmentFault as error:
            logger.warning("%s", error)
        return best if "best" in names else self.folder / "last.safetensors"


def export(checkpoint: Path, target: Path, trainer: Trainer, settings: TrainingSettings) -> None:
    """The averaged model of a checkpoint as a file that `--model` takes."""
    state = load_checkpoint(checkpoint)
    assert isinstance(trainer.average, ClipObjective)
    model = AvsMamba(trainer.average.model.config)
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)})
    categories = CLASS_NAMES if settings.num_classes > 1 else BINARY_CATEGORIES
    best = state["best_score"]
    provenance = {
        "settings": asdict(settings),
        "steps": state["step"],
        "minutes": round(state["elapsed_s"] / 60, 1),
        "best_val_M_J": best if math.isfinite(best) else None,
    }
    save_model(target, model.eval(), categories=categories, training=provenance)


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def own_device(name: str) -> torch.device:
    """The device of that name; of several CUDA GPUs, each process of `torchrun` gets its own."""
    device = resolve_device(name)
    if device.type == "cuda" and ":" not in name and "LOCAL_RANK" in os.environ:
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    return device
