"""Reads AVSBench's subsets S4, MS3 and AVSS, from folders as distributed and as `avsseg data synth` writes them.

Log-mels are made from the wav files, an example a second at exact seconds. The distributed pickles, cut every 0.96 s,
are read where a wav is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from avsseg.data.augment import Augmentation, augment, augment_sound
from avsseg.data.avsbench_files import mask_values, open_image, open_mask, read_sound, read_wav
from avsseg.data.avsbench_layout import (
    MOST_SECONDS,
    SECONDS,
    ClipFiles,
    SplitName,
    Subset,
    list_clips,
    missing_sound,
)
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.listing import ListedClip, read_listing
from avsseg.data.log_mel_files import read_log_mel
from avsseg.errors import DataError, UsageError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ, SILENT_LOG_MEL, log_mel_examples
from avsseg.metrics.negatives import fits_swap

__all__ = [
    "SECONDS", "AvsBenchClips", "ClipExample", "ClipFiles", "SplitName", "Subset", "list_clips", "open_image",
    "read_wav",
]  # fmt: skip


Number = TypeVar("Number", np.uint8, np.float32)


class ClipExample(NamedTuple):
    """One clip of T seconds: 5, or 10 for AVSS, where shorter clips end in black, silent padding.

    Attributes:
        name, category: as in `ClipFiles`.
        frames: (T, H, W, 3) uint8, RGB.
        log_mel: (T, 1, 96, 64) float32, example t from t seconds on.
        masks: (T, h, w) uint8 class indices; 0 and 1 for S4 and MS3; 0 where not annotated.
        annotated: (T,) bool: `masks` holds truth.
        real: (T,) bool: False for padding.
        waveform: (16000 T,) float32 at 16 kHz, zero where the recording has ended; (0,) if there is only a pickle.
        heard: (T, K) float32: 1 for those of `AvsBenchClips.sound_classes` that sound in a second.
    """

    name: str
    category: str
    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    annotated: Tensor
    real: Tensor
    waveform: Tensor
    heard: Tensor


class AvsBenchClips(Dataset[ClipExample]):
    """Clips of one split, squashed to `size` x `size` pixels: frames bilinear, masks nearest.

    Masks are `truth_size` x `truth_size`: as the frames if None, as their files if 0. `augmentation` changes a clip by
    a draw that depends on `seed`, the epoch and its index alone. `sound_classes` are the classes that sound somewhere,
    if `list_sounds` asks for them and the dataset lists them. Raises DataError for an incomplete folder.
    """

    def __init__(
        self,
        root: Path,
        subset: Subset,
        split: SplitName,
        *,
        size: int,
        truth_size: int | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        list_sounds: bool = False,
    ) -> None:
        if size < 1 or (truth_size or 0) < 0:
            raise UsageError(f"clips of {size} pixels with truth of {truth_size}: sizes are above 0")
        self.clips = list_clips(root, subset, split)
        self.root = root
        self.subset: Subset = subset
        self.num_classes = len(CLASS_NAMES) if subset == "avss" else 1
        self.seconds = MOST_SECONDS[subset]
        self.size = size
        self.truth_size = size if truth_size is None else truth_size
        self.augmentation = augmentation
        self.seed = seed
        self._epoch = 0
        self._listing = read_listing(root, subset) if list_sounds else {}
        self.sound_classes = tuple(sorted(frozenset().union(*(clip.heard for clip in self._listing.values()))))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose draws are made from now on, in this process and in those made later."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipExample:
        """Raises DataError for a damaged or missing file."""
        index = range(len(self.clips))[index]  # one draw for a clip, also when counted from the end
        files = self.clips[index]
        rng = np.random.default_rng([self.seed, self._epoch, index])
        frames, masks = self._pictures(files, rng)
        waveform, log_mel = self._sound(files, rng, index)
        time = torch.arange(self.seconds)
        return ClipExample(
            files.name,
            files.category,
            torch.from_numpy(_padded(frames, self.seconds)),
            log_mel,
            torch.from_numpy(_padded(masks, self.seconds)),
            time < len(files.masks),
            time < len(files.frames),
            waveform,
            self._heard(self._listing.get(files.name)),
        )

    def pictures_and_sounds(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """`frames`, `masks` and `heard` of the annotated seconds as they are, whatever the augmentation.

        Raises DataError for a damaged or missing file.
        """
        files = self.clips[index]
        frames, masks = self._pictures(files, None)
        shared = min(len(frames), len(masks))
        heard = self._heard(self._listing.get(files.name))
        return torch.from_numpy(frames[:shared]), torch.from_numpy(masks[:shared]), heard[:shared]

    def sounding_of_nothing_in(self, index: int, rng: np.random.Generator) -> int | None:
        """Another clip with sounds of listed classes alone that the clip `index` never shows; None if none is found.

        The first from a place that `rng` draws. Needs `list_sounds`.
        """
        shown = self._listing.get(self.clips[index].name)
        if shown is None:
            return None
        first = int(rng.integers(len(self.clips)))
        for step in range(len(self.clips)):
            candidate = (first + step) % len(self.clips)
            listed = self._listing.get(self.clips[candidate].name)
            if candidate != index and listed is not None and fits_swap(shown.visible, listed.heard):
                return candidate
        return None

    def _heard(self, clip: ListedClip | None) -> Tensor:
        heard = torch.zeros(self.seconds, len(self.sound_classes))
        for t, classes in enumerate(clip.sounding if clip is not None else ()):
            for name in classes:
                heard[t, self.sound_classes.index(name)] = 1
        return heard

    def _pictures(
        self, files: ClipFiles, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """frames (t, H, W, 3) and masks (at most t, h, w), augmented if there is an `rng`."""
        frames = [open_image(path, "RGB") for path in files.frames]
        masks = open_masks(files, self.subset)
        size = (self.size, self.size)
        truth_size = (self.truth_size, self.truth_size) if self.truth_size else masks[0].size
        if self.augmentation is not None and rng is not None:
            pictures, masks = augment(frames, masks, self.augmentation, rng, size=size, truth_size=truth_size)
        else:
            pictures = np.stack([np.asarray(frame.resize(size, Image.Resampling.BILINEAR)) for frame in frames])
            masks = [mask.resize(truth_size, Image.Resampling.NEAREST) for mask in masks]
        values = [mask_values(mask, path) for mask, path in zip(masks, files.masks, strict=True)]
        return pictures, np.stack(values)

    def _sound(self, files: ClipFiles, rng: np.random.Generator, index: int) -> tuple[Tensor, Tensor]:
        if files.wav is None:
            return torch.zeros(0), self._stored_log_mel(files)
        waveform = _waveform(files.wav, len(files.frames))
        if self.augmentation is not None:
            other = self._other_sound(len(files.frames), rng, index)
            waveform = augment_sound(waveform, self.augmentation, rng, other=other)
        samples = torch.from_numpy(_padded(waveform, self.seconds * SAMPLE_RATE_HZ))
        return samples, log_mel_examples(samples, [float(t) for t in range(self.seconds)])

    def _other_sound(self, seconds: int, rng: np.random.Generator, index: int) -> NDArray[np.float32] | None:
        """The sound of another clip, if the draw says so and that clip has one."""
        assert self.augmentation is not None
        mixes, step = rng.uniform() < self.augmentation.mix, rng.uniform()
        if not mixes or len(self.clips) < 2:
            return None
        other = self.clips[(index + 1 + int(step * (len(self.clips) - 1))) % len(self.clips)]
        return None if other.wav is None else _waveform(other.wav, seconds)

    def _stored_log_mel(self, files: ClipFiles) -> Tensor:
        if files.log_mel is None:
            raise missing_sound(files, self.root)
        examples = read_log_mel(files.log_mel)[: len(files.frames)]
        # AVSBench's rule for clips that are a little short: the last second is heard again
        examples = torch.cat([examples, examples[-1:].expand(len(files.frames) - len(examples), -1, -1, -1)])
        silence = torch.full_like(examples[:1], SILENT_LOG_MEL).expand(self.seconds - len(examples), -1, -1, -1)
        return torch.cat([examples, silence])


def open_masks(files: ClipFiles, subset: Subset) -> list[Image.Image]:
    """A clip's masks as `open_mask` gives them. Raises DataError for damaged ones and for ones of different sizes."""
    masks = [open_mask(path, classes=subset == "avss", colours=files.colour_masks) for path in files.masks]
    for mask, path in zip(masks, files.masks, strict=True):
        if mask.size != masks[0].size:
            first = f"{masks[0].width}x{masks[0].height}"
            raise DataError(f"{printable(path)}: is {mask.width}x{mask.height}, the clip's first mask {first}")
    return masks


def _waveform(path: Path, seconds: int) -> NDArray[np.float32]:
    """(16000 seconds,): cut, or continued with silence."""
    samples = seconds * SAMPLE_RATE_HZ
    return _padded(read_sound(path)[:samples], samples)


def _padded(array: NDArray[Number], length: int) -> NDArray[Number]:
    """Zeros after the end of the first axis."""
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])
