"""Training clips with two soundtracks each, where the truth of both is known without any label.

A clip in silence, in noise or with the sound of nothing that it shows has an empty truth. Two clips that share a
picture, half of it each, have the truth of either for either sound and that of both for the mixture: what is seen is
the same, so only the sound can decide.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avsseg.data.avsbench import ClipExample
from avsseg.media.audio import SAMPLE_RATE_HZ, SILENT_LOG_MEL, log_mel_examples

Heard = Literal["first", "second", "both", "nothing"]
Wrong = Literal["silence", "noise", "absent"]
# the two sounds that only listening tells apart are to meet most often
SHARES: dict[Heard, float] = {"first": 0.35, "second": 0.35, "both": 0.2, "nothing": 0.1}
SOUNDTRACKS = 2
# of a clip alone; a model that has never met them takes noise and other things' sounds for those of what it sees
WRONG: dict[Wrong, float] = {"silence": 0.3, "noise": 0.15, "absent": 0.55}
NOISE_DB = (-45.0, -10.0)  # RMS, of full scale


class _Soundtrack(NamedTuple):
    log_mel: Tensor
    masks: Tensor
    heard: Tensor


def heard_and_wrong(clip: ClipExample, absent: ClipExample | None, rng: np.random.Generator) -> ClipExample:
    """The clip with its own sound and with one that nothing in its picture makes, drawn by `WRONG`.

    `absent` is a clip that sounds of nothing that this one shows, None where none is known; it is as long. log_mel
    becomes (2, T, 1, 96, 64) and masks (2, T, h, w), the second's all 0; `heard` (2, T, K), here and in `side_by_side`.
    """
    names = [name for name in WRONG if name != "absent" or absent is not None]
    shares = np.array([WRONG[name] for name in names])
    kind = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    log_mel, heard = _silence(clip), torch.zeros_like(clip.heard)
    if kind == "absent" and absent is not None:
        log_mel, heard = absent.log_mel, absent.heard
    elif kind == "noise":
        seconds = len(clip.log_mel)
        level = np.float32(10 ** (rng.uniform(*NOISE_DB) / 20))
        noise = torch.from_numpy(rng.standard_normal(seconds * SAMPLE_RATE_HZ, np.float32) * level).clamp(-1, 1)
        log_mel = log_mel_examples(noise, [float(t) for t in range(seconds)])
    wrong = _Soundtrack(log_mel, torch.zeros_like(clip.masks), heard)
    return _with_soundtracks(clip, [_Soundtrack(clip.log_mel, clip.masks, clip.heard), wrong])


def side_by_side(first: ClipExample, second: ClipExample, rng: np.random.Generator) -> ClipExample:
    """One clip that shows a half of each of two of the same length, with masks of their frames' size; two soundtracks.

    The halves lie beside or above each other; each is the one that holds most of its clip's truth. The soundtracks are
    two different ones of the first clip's, the second's, both at once and none, by `SHARES`: log_mel
    (2, T, 1, 96, 64), masks (2, T, h, w). Only frames that both clips annotate are annotated.
    """
    axis, swapped = int(rng.integers(1, 3)), bool(rng.integers(2))
    size = first.masks.shape[axis]
    frames, masks = [], []
    for clip, length in ((first, size // 2), (second, size - size // 2)):
        start = _densest(clip.masks, axis, length, rng)
        frames.append(clip.frames.narrow(axis, start, length))
        masks.append(clip.masks.narrow(axis, start, length))
    nothing = [torch.zeros_like(mask) for mask in masks]
    sounds = _sounds(first, second)
    names, shares = list(sounds), np.array([SHARES[name] for name in sounds])
    soundtracks = []
    for index in rng.choice(len(names), SOUNDTRACKS, replace=False, p=shares / shares.sum()):
        heard = names[int(index)]
        halves = [
            masks[0] if heard in ("first", "both") else nothing[0],
            masks[1] if heard in ("second", "both") else nothing[1],
        ]
        soundtracks.append(_Soundtrack(sounds[heard], _joined(halves, axis, swapped), _heard(first, second, heard)))
    shared = first._replace(
        name=f"{first.name} + {second.name}",
        frames=_joined(frames, axis, swapped),
        annotated=first.annotated & second.annotated,
        real=first.real & second.real,
    )
    return _with_soundtracks(shared, soundtracks)


def _sounds(first: ClipExample, second: ClipExample) -> dict[Heard, Tensor]:
    """What may be heard; log-mels alone, without waveforms, cannot be mixed."""
    sounds: dict[Heard, Tensor] = {"first": first.log_mel, "second": second.log_mel, "nothing": _silence(first)}
    if len(first.waveform) and len(second.waveform):
        mixture = (first.waveform + second.waveform).clamp(-1, 1)
        sounds["both"] = log_mel_examples(mixture, [float(t) for t in range(len(first.log_mel))])
    return sounds


def _silence(clip: ClipExample) -> Tensor:
    return torch.full_like(clip.log_mel, SILENT_LOG_MEL)


def _densest(masks: Tensor, axis: int, length: int, rng: np.random.Generator) -> int:
    """Where the stretch of that length along an axis of (T, h, w) begins that holds most truth; drawn among equals."""
    by_line = (masks > 0).sum(dim=[other for other in range(3) if other != axis])
    inside = by_line.unfold(0, length, 1).sum(-1)
    best = torch.nonzero(inside == inside.max()).flatten()
    return int(best[int(rng.integers(len(best)))])


def _joined(halves: list[Tensor], axis: int, swapped: bool) -> Tensor:
    return torch.cat(halves[::-1] if swapped else halves, dim=axis)


def _heard(first: ClipExample, second: ClipExample, which: Heard) -> Tensor:
    return {
        "first": first.heard,
        "second": second.heard,
        "both": torch.maximum(first.heard, second.heard),
        "nothing": torch.zeros_like(first.heard),
    }[which]


def _with_soundtracks(clip: ClipExample, soundtracks: list[_Soundtrack]) -> ClipExample:
    log_mels, masks, heard = zip(*soundtracks, strict=True)
    return clip._replace(log_mel=torch.stack(log_mels), masks=torch.stack(masks), heard=torch.stack(heard))
