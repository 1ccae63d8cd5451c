"""The stage before the masks: the encoders learn classes and outlines of what sounds, where no pretrained ones exist.

The backbone, with the pyramid's convolutions, sees crops around what sounds, the audio encoder single seconds. Most of
a frame says nothing about the class, and the rest of the model costs several times as much as the encoders: in a run of
the whole model the sounds were told apart after ten minutes and the shapes were not (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.data.augment import Augmentation, distort
from avsseg.data.avsbench import AvsBenchClips, SplitName
from avsseg.errors import DataError, printable
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.training.clips import ClipBatch, ClipOrder, batch_tensor, collate, crop_side
from avsseg.training.distributed import from_all, rank_and_world
from avsseg.training.losses import UNKNOWN, bce_loss, dice_loss
from avsseg.training.objectives import ModelObjective, hearing_loss, seen_classes, seen_head
from avsseg.training.trainer import Validation

# a step and process; a clip's sound costs as much as two
CROPS = 64
# how far what sounds may lie from the middle of its crop, in crop sides
SHIFT = 0.25


class SoundingFrames(NamedTuple):
    """The N frames of a split in which one listed class alone sounds and is marked, all in memory.

    frames (N, H, W, 3) uint8, marked (N, h, w) bool, classes (N,) int64.
    """

    frames: Tensor
    marked: Tensor
    classes: Tensor


def sounding_frames(clips: AvsBenchClips, split: SplitName) -> SoundingFrames:
    """Of all clips of a split, without augmentation. Raises DataError for a damaged file, or if there is none."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in range(len(clips)):
        frames, masks, heard = clips.pictures_and_sounds(index)
        marked = masks > 0
        chosen = marked.flatten(1).any(1) & (heard.sum(-1) == 1)
        found.append((frames[chosen], marked[chosen], heard[chosen].argmax(-1)))
    together = SoundingFrames(*(torch.cat(part) for part in zip(*found, strict=True)))
    if not len(together.classes):
        raise DataError(
            f"{printable(clips.root)}: in no frame of the {split} split one class alone sounds and is marked, which "
            "stage=encoders, with which --preset scenes begins, learns from. Add such clips, or leave it out"
        )
    return together


def encoder_batches(
    batches: Iterator[ClipBatch], sounding: SoundingFrames, augmentation: Augmentation | None, order: ClipOrder
) -> Iterator[ClipBatch]:
    """The sounds of `batches`, which come in that order, each with `CROPS` frames drawn from all that sound.

    name, log_mel and heard as `collate` gives them; frames (N, H, W, 3), marked (N, h, w) and classes (N,) of others.
    The colours of each frame are changed by a draw of its own.
    """
    for number, batch in enumerate(batches, order.first):
        rng = np.random.default_rng([order.seed, number, order.rank, 2])  # not the draws of the clips
        # each of them once where there are enough: pictures of one thing at once teach little about the others
        repeated = len(sounding.classes) < CROPS
        chosen = torch.from_numpy(rng.choice(len(sounding.classes), CROPS, replace=repeated))
        frames = sounding.frames[chosen]
        if augmentation is not None:
            frames = torch.from_numpy(np.stack([distort(frame.numpy(), augmentation, rng) for frame in frames]))
        yield {
            **{name: batch[name] for name in ("name", "log_mel", "heard")},
            "frames": frames,
            "marked": sounding.marked[chosen],
            "classes": sounding.classes[chosen],
        }


class EncoderObjective(ModelObjective):
    """Cross-entropy of the class of what sounds, in the pixels of crops around it, and of what sounds in each second.

    The logit of its own class is also to mark what sounds and nothing else (dice and BCE): what is not marked there may
    be another thing, but as a rule none of this class.

    Takes the batches of `encoder_batches`. Crops have half the side of their frame; in training each is changed by a
    draw of its own.
    """

    def __init__(self, model: AvsMamba, change: Change, *, frozen_statistics: Sequence[str] = ()) -> None:
        super().__init__(model, frozen_statistics)
        self.change = change
        self.class_head = seen_head(model)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, float]]:
        told, heard = self._told(batch)
        logits, share, classes = self._seen(batch)
        marked = share > 0.5
        labels = classes[:, None, None].where(marked, UNKNOWN)
        pixels = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="none").sum((1, 2))
        there = marked.flatten(1).any(1)
        # what is small counts as much as what is large
        seeing = (pixels / marked.sum((1, 2)).clamp(min=1)).sum() / there.sum().clamp(min=1)
        own = logits.gather(1, classes[:, None, None, None].expand(-1, 1, *share.shape[1:]))
        of_shape = own, share[:, None], there[:, None]
        shape = dice_loss(*of_shape) + bce_loss(*of_shape)
        exact = _exact(told, heard)
        right = _votes_right(logits, marked, classes)
        logged = {name: float(part.float().mean()) for name, part in (("seen", right), ("heard", exact))}
        return seeing + shape + hearing_loss(told, heard), {**logged, "shape": float(shape.detach())}

    @torch.no_grad()
    def right_seen(self, batch: ClipBatch) -> Tensor:
        """(N,) bool: whether most of a crop's marked pixels are of its class."""
        logits, share, classes = self._seen(batch)
        return _votes_right(logits, share > 0.5, classes)

    @torch.no_grad()
    def right_heard(self, batch: ClipBatch) -> Tensor:
        """(n,) bool: whether all classes of each second with a listed sound are told, at a probability of 0.5."""
        return _exact(*self._told(batch))

    def _told(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Logits and truth (B * T, K) of what sounds."""
        assert self.model.heard_head is not None
        device = next(self.model.parameters()).device
        log_mel, heard = (batch_tensor(batch, name).to(device).flatten(0, 1) for name in ("log_mel", "heard"))
        return self.model.heard_head(self.model.audio_encoder(log_mel)).float(), heard

    def _seen(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, K, h, w) of crops, which share of each of their pixels is marked (N, h, w), and classes (N,)."""
        device = next(self.model.parameters()).device
        frames, marked, classes = (batch_tensor(batch, name).to(device) for name in ("frames", "marked", "classes"))
        side = crop_side(frames.shape[1])
        pictures, seen = sounding_crops(frames, marked, side, self.change if self.training else Change())
        logits = seen_classes(self.model, self.class_head, self.model.picture_feature(normalise(pictures)))
        return logits, F.interpolate(seen[:, None].float(), size=logits.shape[-2:], mode="area")[:, 0], classes


def _votes_right(logits: Tensor, marked: Tensor, classes: Tensor) -> Tensor:
    votes = (F.one_hot(logits.argmax(1), logits.shape[1]) * marked[..., None]).sum((1, 2))
    return (votes.argmax(1) == classes)[marked.flatten(1).any(1)]


def _exact(told: Tensor, heard: Tensor) -> Tensor:
    return ((told > 0) == (heard > 0)).all(-1)[heard.any(-1)]


class Change(NamedTuple):
    """How far a crop may be moved (crop sides), scaled (a factor), turned (degrees), and whether half are flipped."""

    shift: float = 0.0
    resize: float = 1.0
    rotate: float = 0.0
    flip: bool = False


def sounding_crops(frames: Tensor, marked: Tensor, side: int, change: Change) -> tuple[Tensor, Tensor]:
    """Square crops of `side` pixels around the centre of what is marked, each with its own draw of PyTorch's generator.

    frames (N, H, W, 3) uint8, marked (N, h, w) bool -> (N, side, side, 3) float32 of 0..255, (N, side, side) bool.
    Beyond the frame there is its mirror image, marked as it is.
    """
    N, H, W = frames.shape[:3]
    h, w = marked.shape[1:]
    device = frames.device
    weight = marked.float()
    total = weight.sum((1, 2)).clamp(min=1)
    ys = ((torch.arange(h, device=device) + 0.5) * 2 / h - 1)[:, None]
    xs = (torch.arange(w, device=device) + 0.5) * 2 / w - 1
    centre = torch.stack([(weight * xs).sum((1, 2)) / total, (weight * ys).sum((1, 2)) / total], dim=1)
    scale = torch.exp((2 * torch.rand(N, device=device) - 1) * math.log(change.resize))
    angle = (2 * torch.rand(N, device=device) - 1) * math.radians(change.rotate)
    mirror = torch.where(torch.rand(N, device=device) < 0.5, -1.0, 1.0) if change.flip else torch.ones(N, device=device)
    extent = torch.tensor([side / W, side / H], device=device)  # half of it, in -1..1
    centre = centre + (2 * torch.rand(N, 2, device=device) - 1) * 2 * change.shift * extent * scale[:, None]
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cosine * mirror * side / W, -sine * side / W, centre[:, 0]], dim=1),
        torch.stack([sine * mirror * side / H, cosine * side / H, centre[:, 1]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [N, 3, side, side], align_corners=False)
    pixels = frames.float().movedim(-1, 1)
    crops = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    seen = F.grid_sample(weight[:, None], grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return crops.movedim(1, -1), seen[:, 0] > 0.5


def encoder_validation(clips: AvsBenchClips) -> Validation:
    """Of the val split, the shares of crops and of seconds whose classes are told; `score` is their mean.

    The processes of a run share crops and clips.
    """
    rank, world = rank_and_world()
    sounding = SoundingFrames(*(field[rank::world].clone() for field in sounding_frames(clips, "val")))
    nothing = torch.zeros(0, dtype=torch.bool)

    def own_share(objective: EncoderObjective) -> tuple[Tensor, Tensor]:
        parts = [SoundingFrames(*part) for part in zip(*(field.split(CROPS) for field in sounding), strict=True)]
        seen = [objective.right_seen(part._asdict()).cpu() for part in parts if len(part.classes)]
        heard = [objective.right_heard(collate([clips[index]])).cpu() for index in range(len(clips))[rank::world]]
        return torch.cat([*seen, nothing]), torch.cat([*heard, nothing])

    def validate(objective: nn.Module) -> dict[str, float]:
        assert isinstance(objective, EncoderObjective)
        parts = from_all(lambda: own_share(objective), printable(clips.root))
        told = [torch.cat(of_all) for of_all in zip(*parts, strict=True)]
        shares = [float(part.float().mean()) if len(part) else 0.0 for part in told]
        return {"seen": shares[0], "heard": shares[1], "score": sum(shares) / 2}

    return validate
