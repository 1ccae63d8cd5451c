"""The model that a run begins with: random, with pretrained encoders, or from a checkpoint where that fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from avsseg.errors import UsageError, printable
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig, preset
from avsseg.training.settings import DEFAULT_SIZE, TrainingSettings
from avsseg.weights.cache import find_weights
from avsseg.weights.pretrained import load_audio_weights, load_backbone_weights
from avsseg.weights.store import LoadedModel, load_model

logger = logging.getLogger(__name__)

# what classes are told apart by, a row each
TOLD = frozenset(f"{head}.{of}" for head in ("heard_head", "agreement.seen_head") for of in ("weight", "bias"))
# how much masks go by them
AGREED = ("agreement.weight", "agreement.offset")
# the logit of a class that cannot be told yet: a probability of 0.02
UNKNOWN_CLASS = -4.0


def _start(settings: TrainingSettings) -> LoadedModel:
    # the encoders of stage encoders come in a model that marks nothing yet
    return load_model(settings.start_from, allow_untrained=Path(settings.start_from).suffix == ".safetensors")


def _has_learned_blocks(loaded: LoadedModel) -> bool:
    before = loaded.training.get("settings")
    if isinstance(before, dict) and before.get("stage") == "encoders" and not before.get("start_from"):
        return False  # those of stage encoders from nothing are random still
    return not loaded.model.blocks_give_nothing()


def with_size(settings: TrainingSettings) -> TrainingSettings:
    """With the side of the input that a run without one has. Raises WeightsError."""
    if settings.size:
        return settings
    return replace(settings, size=_start(settings).input_size if settings.start_from else DEFAULT_SIZE)


def build_model(
    settings: TrainingSettings,
    *,
    heard: Sequence[str] = (),
    find: Callable[[str | Path], Path] = find_weights,
) -> AvsMamba:
    """The model that a run begins with: random, with pretrained encoders, or from a checkpoint where it fits.

    `find` gives the file of published weights.

    It tells the classes `heard` apart, by what the checkpoint knew of those that it names too. Without any it keeps the
    checkpoint's where masks go by them.
    Raises UsageError for a VGGish that would stay random, and WeightsError for weights that cannot be had.
    """
    settings = with_size(settings)
    if settings.start_from:
        loaded = _start(settings)
        if loaded.input_size != settings.size:
            logger.warning(
                "%s works at %d pixels and is trained at %d from here on (size %d keeps its own)",
                printable(settings.start_from), loaded.input_size, settings.size, loaded.input_size,
            )  # fmt: skip
        if settings.stage == "plain" and _has_learned_blocks(loaded):
            logger.warning(
                "%s: what its scan blocks learned is lost: stage plain has them rest, and they learn anew after it",
                printable(settings.start_from),
            )
        agreement = settings.num_classes == 1 and (settings.agreement or loaded.config.agreement)
        config = AvsMambaConfig.from_dict(
            {
                **loaded.config.to_dict(),
                "num_classes": settings.num_classes,
                "input_size": settings.size,
                "drop_path": settings.drop_path,
                # its masks go by its own classes where no others are told
                "heard_classes": len(heard) or (loaded.config.heard_classes if agreement else 0),
                "agreement": agreement,
            }
        )
        model = AvsMamba(config)
        own = model.state_dict()
        given = loaded.model.state_dict()
        if any(loaded.heard) and not heard and not settings.mute and settings.num_classes == 1:
            logger.warning(
                "%s names what sounds, and the model trained from it will not: class_weight=0.5 teaches the names of "
                "these clips, where they list them",
                printable(settings.start_from),
            )
        if heard:
            given |= _told_before(own, given, loaded.heard, heard)
        fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict({**own, **fitting})
        for name in sorted((set(own) & set(given)) - set(fitting)):
            logger.warning("%s: %s has another shape there and starts anew", settings.start_from, name)
        return model
    changes: dict[str, object] = {
        "num_classes": settings.num_classes,
        "input_size": settings.size,
        "drop_path": settings.drop_path,
        "heard_classes": len(heard),
        "agreement": settings.agreement,
    }
    if settings.backbone:
        changes["backbone"] = settings.backbone
    config = preset(settings.model, ablate=settings.ablate or None, **changes)
    if config.audio_encoder == "vggish" and not settings.init_audio:
        raise UsageError(
            f"{settings.model} hears through a VGGish that training leaves as it is, and it would stay random. Give "
            "--init-audio vggish, or its file (`avsseg weights list`)"
        )
    model = AvsMamba(config)
    if settings.init_visual:
        load_backbone_weights(model.visual_backbone, find(settings.init_visual))
    if settings.init_audio:
        load_audio_weights(model.audio_encoder, find(settings.init_audio))
    return model


def _told_before(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], before: Sequence[str], heard: Sequence[str]
) -> dict[str, Tensor]:
    """What tells the classes `heard` apart: as it was given for those that have a name `before`, else as its own.

    Where masks have learned to go by them, new classes begin as never seen nor heard: as its own they would be
    everywhere to some extent. Without any that is known the masks learn anew how far to go by them.
    """
    told = {name: own[name].clone() for name in (*TOLD, *AGREED) if name in own}
    known = {at: before.index(name) for at, name in enumerate(heard) if name and name in before}
    for name in set(told) & set(given) if known else ():
        if name in AGREED:
            told[name] = given[name]
            continue
        if name.endswith("bias") and "agreement.weight" in given:
            told[name].fill_(UNKNOWN_CLASS)
        for at, was_at in known.items():
            told[name][at] = given[name][was_at]
    return told


def frozen_statistics(settings: TrainingSettings) -> tuple[str, ...]:
    """The parts of the model whose batch normalisation stays as it is; "" is the whole model."""
    if settings.frozen_statistics == "yes" or (settings.frozen_statistics == "auto" and settings.start_from):
        return ("",)
    # statistics that were never gathered are no normalisation: an encoder that starts from nothing gathers its own
    given = settings.frozen_statistics == "auto"
    sources = {
        "visual_backbone": given and settings.init_visual,
        "audio_encoder": settings.frozen_audio or (given and settings.init_audio),
    }
    return tuple(part for part, source in sources.items() if source)
