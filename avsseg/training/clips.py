"""AVSBench clips as training batches, in an order that a resumed run takes up exactly where it stopped."""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from avsseg.data.avsbench import AvsBenchClips, ClipExample
from avsseg.data.soundtracks import heard_and_wrong, side_by_side
from avsseg.errors import AvssegError, UsageError, printable
from avsseg.media.audio import SILENT_LOG_MEL
from avsseg.metrics.object import StrictObjectMetrics, frame_scores
from avsseg.metrics.semantic import SemanticMetrics
from avsseg.model.avs_mamba import COARSEST_STRIDE, AvsMamba, Stages, normalise, pad_picture
from avsseg.training.distributed import from_all, rank_and_world
from avsseg.training.losses import UNKNOWN, mask_loss, semantic_loss
from avsseg.training.objectives import ModelObjective, hearing_loss, iou_and_silent_area, seen_classes, seen_head
from avsseg.training.trainer import Validation

ClipBatch = dict[str, "Tensor | list[str]"]


class ClipOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), endless, from batch `first` on: each epoch a new permutation by `seed`.

    `world` processes share every permutation: this one is number `rank`. What does not fill a batch of all processes
    is left out, unless it is the only one. Raises UsageError for fewer clips than processes.
    """

    def __init__(self, clips: int, batch: int, *, seed: int, first: int = 0, rank: int = 0, world: int = 1) -> None:
        if clips < world:
            raise UsageError(
                f"{clips} training clips for {world} processes: each needs one of its own. Give --nproc-per-node "
                f"{clips} or less"
            )
        self.clips, self.seed, self.first, self.rank = clips, seed, first, rank
        # a small set must still give every process something
        self.batch = max(1, min(batch, clips // world))
        self.world = world

    @property
    def batches_per_epoch(self) -> int:
        """Of one process."""
        return max(1, self.clips // (self.batch * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.first
        while True:
            epoch, position = divmod(number, self.batches_per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.clips)
            start = (position * self.world + self.rank) * self.batch
            yield [(epoch, int(index)) for index in order[start : start + self.batch]]
            number += 1


class _ByEpoch(Dataset["ClipExample | AvssegError"]):
    """Clips by (epoch, index), so that worker processes know which augmentation to draw.

    With `pair` above 0 each has two soundtracks, and shares its picture with another clip with that probability.
    What is wrong with a file is given as a value: raised in a worker it would lose its type and its message.
    """

    def __init__(self, clips: AvsBenchClips, pair: float = 0.0) -> None:
        self.clips = clips
        self.pair = pair

    def __getitem__(self, key: tuple[int, int]) -> ClipExample | AvssegError:
        epoch, index = key
        self.clips.set_epoch(epoch)
        try:
            clip = self.clips[index]
            if self.pair == 0:
                return clip
            rng = np.random.default_rng([self.clips.seed, epoch, index, 1])  # not the draws of the clip itself
            others = len(self.clips) - 1
            if others and rng.uniform() < self.pair:
                return side_by_side(clip, self.clips[(index + 1 + int(rng.integers(others))) % len(self.clips)], rng)
            absent = self.clips.sounding_of_nothing_in(index, rng)
            return heard_and_wrong(clip, None if absent is None else self.clips[absent], rng)
        except AvssegError as error:
            return error


def collate(examples: Sequence[ClipExample]) -> ClipBatch:
    """Clips one behind the other, without what training does not need.

    name: list of B; frames (B, T, H, W, 3), log_mel (B, T, 1, 96, 64), masks (B, T, h, w), annotated (B, T), heard
    (B, T, K). Clips with S soundtracks: log_mel (B, S, T, 1, 96, 64), masks (B, S, T, h, w) and heard (B, S, T, K).
    """
    return {
        "name": [example.name for example in examples],
        **{
            field: torch.stack([getattr(example, field) for example in examples])
            for field in ("frames", "log_mel", "masks", "annotated", "heard")
        },
    }


def _collate(examples: Sequence[ClipExample | AvssegError]) -> ClipBatch | AvssegError:
    good = [example for example in examples if not isinstance(example, AvssegError)]
    errors = [example for example in examples if isinstance(example, AvssegError)]
    return errors[0] if errors else collate(good)


def clip_batches(clips: AvsBenchClips, order: ClipOrder, workers: int, *, pair: float = 0.0) -> Iterator[ClipBatch]:
    """Endless batches in that order; the result does not depend on `workers`. Raises DataError or MediaError.

    With `pair` above 0 each clip has two soundtracks (`avsseg.data.soundtracks`).
    """
    loader: DataLoader[ClipBatch | AvssegError] = DataLoader(
        _ByEpoch(clips, pair),  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=prepare_worker,
    )
    for batch in loader:
        if isinstance(batch, AvssegError):
            raise batch
        yield batch


# where the seconds of a clip lie in the fields of a batch, from the last axis
SECONDS_AXIS = {"frames": -4, "log_mel": -4, "masks": -3, "annotated": -1, "heard": -2}


def second_batches(
    batches: Iterator[ClipBatch], seconds: int, *, first: int = 0, crops: float = 0.0
) -> Iterator[ClipBatch]:
    """Batches of single seconds: the annotated seconds of `seconds` batches of clips, dealt out to as many batches.

    The seconds of a clip look alike, and a step learns more from different ones. A clip without any has its first in
    them, which is not annotated. The first batch is number `first` of a run, of which `batches` begin with the group.
    A share `crops`, the same in all processes, is marked by `cropped`, a bool, for `ClipObjective`.
    """
    number = first
    while group := list(itertools.islice(batches, seconds)):
        names = [name for batch in group for name in batch["name"]]
        whole = {field: torch.cat([batch_tensor(batch, field) for batch in group]) for field in SECONDS_AXIS}
        pairs = []
        for clip, annotated in enumerate(whole["annotated"]):
            there = annotated.nonzero().flatten().tolist() or [0]
            turn = clip % len(there)  # else a batch would have the same second of every clip
            pairs += [(clip, second) for second in (*there[turn:], *there[:turn])]
        small = all(crop_side(side) < side for side in whole["frames"].shape[2:4])
        for step in range(number % seconds, seconds):
            clips, chosen = torch.tensor(pairs[step::seconds]).unbind(1)
            cropped = small and math.floor((number + 1) * crops) > math.floor(number * crops)
            yield {
                "name": [names[clip] for clip in clips.tolist()],
                **{field: _seconds_of(tensor[clips], field, chosen) for field, tensor in whole.items()},
                "cropped": torch.tensor(cropped),
            }
            number += 1


def _seconds_of(clips: Tensor, field: str, chosen: Tensor) -> Tensor:
    """Of each clip (N, ..., T, ...) the second chosen (N,), as a T of 1."""
    axis = clips.ndim + SECONDS_AXIS[field]
    shape = [-1 if at == 0 else 1 for at in range(clips.ndim)]
    index = chosen.view(shape).expand([1 if at == axis else size for at, size in enumerate(clips.shape)])
    return clips.gather(axis, index)


def prepare_worker(_: int) -> None:
    """One thread, and deaf to what stops a whole group of processes: the one that trains or evaluates decides on it.

    A terminal sends Ctrl-C to all of them, `timeout` and Slurm send SIGTERM. That of its parent is obeyed, with which
    Python and PyTorch end processes that are left; where the sender is not told (not on Linux), so is any.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), name="avsseg-sigterm", daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class ClipObjective(ModelObjective):
    """The loss of AVSBench clips: dice and BCE for one class, cross-entropy and dice for several.

    Annotated frames are weighted alike over all processes, so two of them equal one with the doubled batch.
    With `class_weight` two light tasks keep the model's `heard_classes` apart in what is seen and heard: the embedding
    of a second tells which sound (`heard` of the batch), the mask feature that of a marked pixel where one alone does.
    """

    def __init__(
        self,
        model: AvsMamba,
        *,
        class_weight: float = 0.0,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        layer_weight: float = 1.0,
        frozen_statistics: Sequence[str] = (),
        mute: bool = False,
        binary: bool = False,
    ) -> None:
        super().__init__(model, frozen_statistics)
        self.binary = binary
        self.class_weight = class_weight if model.config.heard_classes else 0.0
        self.seen_head = seen_head(model) if self.class_weight else None
        self.weights = {"dice_weight": dice_weight, "bce_weight": bce_weight, "layer_weight": layer_weight}
        self.mute = mute

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, float]]:
        device = next(self.model.parameters()).device
        frames, log_mel, masks, annotated = (
            batch_tensor(batch, name) for name in ("frames", "log_mel", "masks", "annotated")
        )
        sounds, views = 1, 1
        if log_mel.ndim == 6:
            sounds = log_mel.shape[1]
            log_mel, masks = log_mel.flatten(0, 1), masks.flatten(0, 1)
            annotated = annotated.repeat_interleave(sounds, 0)
        if self.mute:
            log_mel = torch.full_like(log_mel, SILENT_LOG_MEL)
        if "cropped" in batch and batch_tensor(batch, "cropped"):
            # before they go to a GPU, which would have to wait for the place of every crop
            frames, masks = crops_around(frames, masks.unflatten(0, (-1, sounds)))
            views = masks.shape[1]
            frames, masks = frames.flatten(0, 1), masks.flatten(0, 2)
            annotated = annotated.unflatten(0, (-1, sounds)).repeat_interleave(views, 0).flatten(0, 1)
        frames, log_mel, masks, annotated = (
            tensor.to(device, non_blocking=True) for tensor in (frames, log_mel, masks, annotated)
        )
        stages = self.model.stages(normalise(frames), log_mel, sounds=sounds, views=views)
        layer_logits = [logits.float() for logits in self.model.layer_logits_of(stages, frames.shape[2:4])]
        share = _share_of_all(annotated.sum())
        if layer_logits[-1].shape[2] > 1:
            loss = semantic_loss(layer_logits, masks, annotated, binary=self.binary, **self.weights)
            return loss * share, {"M_J": _class_iou(layer_logits[-1].detach(), masks, annotated)}
        loss = mask_loss(layer_logits, masks, annotated, **self.weights)
        iou, _ = iou_and_silent_area(layer_logits[-1], masks > 0)
        logged = {"M_J": float(iou[annotated.flatten()].nanmean())}
        if self.class_weight:
            heard = batch_tensor(batch, "heard").to(device)
            if sounds == 1:
                heard = heard[:, None]
            heard = heard.repeat_interleave(len(masks) // (heard.shape[0] * sounds), 0).flatten(0, 1)
            classes, named = self._class_losses(stages, masks, heard)
            loss, logged = loss + self.class_weight * classes, {**logged, **named}
        return loss * share, logged

    def _class_losses(self, stages: Stages, masks: Tensor, heard: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of masks (B, T, h, w) and heard (B, T, K)."""
        listed = heard.sum(-1)
        assert self.model.heard_head is not None
        hearing = hearing_loss(self.model.heard_head(stages.embedding).float(), heard)
        logits = seen_classes(self.model, self.seen_head, stages.mask_feature.flatten(0, 1))
        # the mask feature is of the picture as the model pads it; what is not marked is of no class
        padded = pad_picture(masks.flatten(0, 1)[:, None].float())
        marked = F.interpolate(padded, size=logits.shape[-2:], mode="nearest")[:, 0] > 0
        labels = heard.argmax(-1).flatten()[:, None, None].where(marked, UNKNOWN)
        labels = labels.where((listed == 1).flatten()[:, None, None], UNKNOWN)
        pixels = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum")
        seeing = pixels / (labels != UNKNOWN).sum().clamp(min=1)
        return seeing + hearing, {"seen": float(seeing.detach()), "heard": float(hearing.detach())}


def _class_iou(logits: Tensor, labels: Tensor, annotated: Tensor) -> float:
    """Mean over the classes that occur of logits (B, T, C, H, W) and labels (B, T, H, W), as in a batch's frames."""
    metrics = SemanticMetrics(logits.shape[2])
    metrics.update(logits.argmax(2)[annotated], labels[annotated].long())
    return metrics.result()["M_J_of_occurring"]


def crop_side(side: int) -> int:
    """About half a picture's side that the backbone can take."""
    return max(COARSEST_STRIDE, round(side / 2 / COARSEST_STRIDE) * COARSEST_STRIDE)


def crops_around(frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """For each sound of each clip a crop, `crop_side` wide and high, around what it marks, or any if it marks nothing.

    frames (B, T, H, W, 3), masks (B, S, T, H, W) -> (B, S, T, h, w, 3) and, of all sounds, (B, S, S, T, h, w).
    """
    B, S, _, H, W = masks.shape
    h, w = crop_side(H), crop_side(W)
    known = (masks > 0) & (masks != UNKNOWN)
    pictures, seen = [], []
    for clip in range(B):
        for sound in range(S):
            marked = known[clip, sound].any(0).nonzero()
            top, left = int(torch.randint(H - h + 1, ())), int(torch.randint(W - w + 1, ()))
            if len(marked):
                y, x = marked[int(torch.randint(len(marked), ()))].tolist()
                top = y - h // 2 + int(torch.randint(-h // 4, h // 4 + 1, ()))
                left = x - w // 2 + int(torch.randint(-w // 4, w // 4 + 1, ()))
                top, left = min(max(top, 0), H - h), min(max(left, 0), W - w)
            pictures.append(frames[clip, :, top : top + h, left : left + w])
            seen.append(masks[clip, ..., top : top + h, left : left + w])
    return torch.stack(pictures).unflatten(0, (B, S)), torch.stack(seen).unflatten(0, (B, S))


def batch_tensor(batch: ClipBatch, name: str) -> Tensor:
    """The tensor of that name."""
    value = batch[name]
    assert isinstance(value, Tensor)
    return value


def _share_of_all(annotated: Tensor) -> Tensor:
    """This process's annotated frames over the mean of all processes': makes means of means a mean over all frames."""
    world = rank_and_world()[1]
    if world == 1:
        return torch.ones((), device=annotated.device)
    total = annotated.double().clone()
    torch.distributed.all_reduce(total)
    return (annotated * world / total.clamp(min=1)).float()


def validation(clips: AvsBenchClips, *, mute: bool = False) -> Validation:
    """Strict M_J and M_F of the val split (frame-wise class means for AVSS); `score`, which picks the best, is M_J.

    The processes of a run share the clips.
    """
    objects = clips.num_classes == 1
    rank, world = rank_and_world()

    @torch.no_grad()
    def own_share(model: AvsMamba) -> tuple[StrictObjectMetrics, SemanticMetrics]:
        device = next(model.parameters()).device
        strict, semantic = StrictObjectMetrics(), SemanticMetrics(max(2, clips.num_classes))
        for index in range(len(clips))[rank::world]:
            example = clips[index]
            log_mel = torch.full_like(example.log_mel, SILENT_LOG_MEL) if mute else example.log_mel
            logits = model(normalise(example.frames)[None].to(device), log_mel[None].to(device))[0].float().cpu()
            scored = example.annotated & example.real
            logits = F.interpolate(logits[scored], size=example.masks.shape[-2:], mode="bilinear", align_corners=False)
            truth = example.masks[scored]
            if objects:
                strict.update(frame_scores(logits.squeeze(1).sigmoid(), truth > 0))
            else:
                semantic.update(logits.argmax(1), truth.long())
        return strict, semantic

    def validate(objective: nn.Module) -> dict[str, float]:
        assert isinstance(objective, ClipObjective)
        model = objective.model
        (strict, semantic), *others = from_all(lambda: own_share(model), printable(clips.root))
        for strict_of_other, semantic_of_other in others:
            strict.merge(strict_of_other)
            semantic.merge(semantic_of_other)
        result = dict(strict.result() if objects else semantic.result())
        kept = {name: float(v) for name, v in result.items() if isinstance(v, (int, float))}
        return {**kept, "score": kept["M_J"]}

    return validate
