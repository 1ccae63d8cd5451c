"""What a training stage minimises: modules that take a batch (a dict of tensors) and return its loss and what to log.

The encoders learn alone first, where no pretrained ones exist: `VisualObjective` from single pictures,
`AudioObjective` from single seconds. `JointObjective` trains the whole model on clips, each picture with several
sounds, so that only the sound can decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.vggish import EMBEDDING_DIM
from avsseg.training.losses import UNKNOWN, mask_loss

Batch = dict[str, Tensor]
Objective = TypeVar("Objective", bound="ModelObjective")


def class_loss(logits: Tensor, labels: Tensor, foreground_weight: float, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits (N, K, h, w) against labels (N, h, w), 255 left out; class 0 is the background.

    Objects cover little of a picture, so their classes count `foreground_weight` times. `weight` (N,) is for pictures.
    """
    class_weight = logits.new_full((logits.shape[1],), foreground_weight)
    class_weight[0] = 1
    labels = labels.long()
    each = F.cross_entropy(logits, labels, weight=class_weight, ignore_index=UNKNOWN, reduction="none")
    counted = class_weight[labels.where(labels != UNKNOWN, 0)] * (labels != UNKNOWN)
    if weight is not None:
        each, counted = each * weight[:, None, None], counted * weight[:, None, None]
    return each.sum() / counted.sum().clamp(min=1)


def hearing_loss(told: Tensor, heard: Tensor) -> Tensor:
    """Binary cross-entropy of logits (..., K) of what sounds in each second against heard (..., K) of 0 and 1.

    Seconds in which no listed class sounds may hold an unlisted one, and are left out.
    """
    listed = heard.any(-1)
    each = F.binary_cross_entropy_with_logits(told, heard, reduction="none").mean(-1)
    return (each * listed).sum() / listed.sum().clamp(min=1)


class ModelObjective(nn.Module):
    """A loss of the whole `model` or of parts of it.

    `frozen_statistics` names the parts whose batch normalisation stays as it is; "" is the whole model.
    """

    def __init__(self, model: AvsMamba, frozen_statistics: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.frozen_statistics = tuple(frozen_statistics)

    def train(self: Objective, mode: bool = True) -> Objective:
        """Batch normalisation keeps its statistics where they are frozen: a few clips are no sample of all pictures."""
        super().train(mode)
        for part in self.frozen_statistics:
            for module in self.model.get_submodule(part).modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def seen_head(model: AvsMamba) -> nn.Conv2d | None:
    """What is to tell the model's `heard_classes` apart in its mask feature; None if it has that for `agreement`."""
    return None if model.agreement is not None else nn.Conv2d(model.config.dim, model.config.heard_classes, 1)


def seen_classes(model: AvsMamba, head: nn.Conv2d | None, mask_feature: Tensor) -> Tensor:
    """Logits (N, K, h, w) float32 of a `seen_head`, or of the model's own, in mask_feature (N, C, h, w)."""
    if model.agreement is not None:
        head = model.agreement.seen_head
    assert head is not None
    return head(mask_feature).float()


class ClassMap(nn.Module):
    """Which class each pixel is of, from the backbone's four scales (N, c_i, h_i, w_i): logits (N, K, h_1, w_1)."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, 64, 1) for c in channels)
        self.head = nn.Sequential(
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(64, classes, 1),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        scales = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        size = scales[0].shape[-2:]
        merged = torch.stack([F.interpolate(s, size=size, mode="bilinear") for s in scales]).sum(0)
        logits: Tensor = self.head(merged)
        return logits


class VisualObjective(nn.Module):
    """Class map of one picture from the backbone's four scales.

    Batches: frames (N, H, W, 3) uint8, labels (N, H, W) uint8 below `classes` or 255, optional weight (N,).
    """

    def __init__(self, backbone: nn.Module, channels: tuple[int, ...], classes: int, foreground_weight: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.foreground_weight = foreground_weight
        self.class_map = ClassMap(channels, classes)

    def logits(self, frames: Tensor) -> Tensor:
        """(N, K, H / 4, W / 4)."""
        logits: Tensor = self.class_map(self.backbone(normalise(frames)))
        return logits

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        labels = batch["labels"][..., 2::4, 2::4]  # at the logits' pixels: full size would cost more than the backbone
        logits = self.logits(batch["frames"])
        loss = class_loss(logits, labels, self.foreground_weight, batch.get("weight"))
        predicted, known = logits.argmax(1), labels != UNKNOWN
        foreground = (labels > 0) & known
        union = (foreground | ((predicted > 0) & known)).sum()
        right = ((predicted == labels) & foreground).sum()
        return loss, {"class_iou": float(right / union.clamp(min=1))}


class AudioObjective(nn.Module):
    """Which classes sound in single seconds. Batches: log_mel (B, T, 1, 96, 64), heard (B, T, K) of 0 and 1."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(EMBEDDING_DIM, classes)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        heard = batch["heard"].flatten(0, 1)
        logits = self.head(self.encoder(batch["log_mel"].flatten(0, 1)))
        exact = ((logits > 0) == (heard > 0)).all(-1).float().mean()
        return F.binary_cross_entropy_with_logits(logits, heard), {"exact": float(exact)}


class JointObjective(ModelObjective):
    """The masks of clips, with two light auxiliary tasks that keep the classes in both modalities' features.

    The model has `agreement`: its `heard_classes` K are those of the tasks. Labels are 0 for none, k for class k, 255
    for what is not known.

    Batches: frames (P, T, H, W, 3) uint8, labels (P, T, H, W) uint8, weight (P,), and for each of V sounds to a clip:
    log_mel (P, V, T, 1, 96, 64), masks (P, V, T, H, W) bool, heard (P, V, T, K).
    """

    CLASS_WEIGHT = 0.4
    AUDIO_WEIGHT = 0.2

    def __init__(
        self,
        model: AvsMamba,
        *,
        foreground_weight: float,
        bce_weight: float = 3.0,
        silent_weight: float = 1.0,
        frozen_statistics: Sequence[str] = (),
    ) -> None:
        super().__init__(model, frozen_statistics)
        self.bce_weight = bce_weight
        self.silent_weight = silent_weight
        self.foreground_weight = foreground_weight

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        model, variants = self.model, batch["log_mel"].shape[1]
        masks = batch["masks"].flatten(0, 1)
        T = masks.shape[1]
        stages = model.stages(normalise(batch["frames"]), batch["log_mel"].flatten(0, 1), sounds=variants)
        mask_feature = stages.mask_feature.flatten(0, 1)
        layer_logits = model.layer_logits_of(stages, masks.shape[-2:])
        clip_weight = batch["weight"].repeat_interleave(variants, 0)[:, None].expand(-1, T)
        frame_weight = clip_weight * torch.where(masks.flatten(2).any(2), 1.0, self.silent_weight)
        loss = mask_loss(layer_logits, masks, frame_weight, bce_weight=self.bce_weight, layer_weight=0.5)
        labels = batch["labels"][..., 2::4, 2::4].repeat_interleave(variants, 0).flatten(0, 1)
        assert model.agreement is not None
        assert model.heard_head is not None
        classes = model.agreement.seen_logits(mask_feature)
        seen = class_loss(classes, labels, self.foreground_weight, clip_weight.flatten())
        heard = F.binary_cross_entropy_with_logits(model.heard_head(stages.embedding), batch["heard"].flatten(0, 1))
        iou, silent_area = iou_and_silent_area(layer_logits[-1], masks)
        logged = {
            "M_J": float(iou.nanmean()),
            "silent_area": float(silent_area.nanmean()),
            "seen": float(seen.detach()),
            "heard": float(heard.detach()),
        }
        return loss + self.CLASS_WEIGHT * seen + self.AUDIO_WEIGHT * heard, logged


@torch.no_grad()
def iou_and_silent_area(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of the frames with truth and predicted area fraction of the frames without; NaN where the other applies.

    logits (B, T, 1, H, W), masks (B, T, H, W) bool -> two (B * T,).
    """
    predicted, truth = (logits.squeeze(2) > 0).flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1)
    sounding = truth.any(1)
    iou = (predicted & truth).sum(1) / (predicted | truth).sum(1).clamp(min=1)
    nothing = torch.full_like(iou, math.nan)
    return torch.where(sounding, iou, nothing), torch.where(sounding, nothing, predicted.float().mean(1))
