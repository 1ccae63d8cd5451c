"""What clips hear in place of their own sound: `avsseg.metrics.negatives`, through the same front end."""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from avsseg.data.avsbench import AvsBenchClips, ClipExample
from avsseg.data.listing import rendered_families
from avsseg.errors import UsageError
from avsseg.evaluation.contents import Contents
from avsseg.media.audio import SAMPLE_RATE_HZ, log_mel_examples
from avsseg.metrics.negatives import fits_swap, noise, off_screen, silence, swap_partner


class ReplacedSounds:
    """Sounds of `negatives`, drawn by `seed` and the clip's index. Raises UsageError for what cannot be replaced."""

    def __init__(self, clips: AvsBenchClips, contents: Contents, negatives: Collection[str], seed: int) -> None:
        self.clips = clips
        self.contents = contents
        self.seed = seed
        unheard = [clip.name for clip in clips.clips if clip.wav is None or not clip.wav.is_file()]
        if negatives and unheard:
            raise UsageError(f"{unheard[0]}: has no wav file, whose sound --negative could replace")
        if "swap" in negatives and len(clips) < 2:
            raise UsageError("swapping sounds needs two clips at least")

    def log_mel(self, negative: str, index: int, example: ClipExample) -> Tensor:
        """(T, 1, 96, 64): that of the other sound, as long as the clip's real seconds; padding stays silent."""
        waveform = example.waveform.numpy()
        own = waveform[: int(example.real.sum()) * SAMPLE_RATE_HZ]
        rng = np.random.default_rng([self.seed, index])
        if negative == "silence":
            other = silence(own)
        elif negative == "noise":
            other = noise(own, rng)
        elif negative == "swap":
            partner = self.clips[self._swaps[0][index]]
            # AVSS's clips last 5 or 10 s: the sound of a shorter one begins anew
            other = np.resize(partner.waveform.numpy()[: int(partner.real.sum()) * SAMPLE_RATE_HZ], own.shape)
        else:
            entry = self.contents.listing.get(example.name)
            other = off_screen(len(own), rng, rendered_families(entry) if entry else ())
        played = torch.from_numpy(np.pad(other, (0, len(waveform) - len(own))))
        return log_mel_examples(played, [float(t) for t in range(len(example.frames))])

    @property
    def clips_without_fitting_partner(self) -> int:
        """For how many clips no sound was sure to be of no class in their pictures, when sounds are swapped."""
        return self._swaps[1]

    @functools.cached_property
    def _swaps(self) -> tuple[list[int], int]:
        """Whose sound each clip gets, and how many of those sounds do not fit."""
        names = [clip.name for clip in self.clips.clips]
        visible = [self.contents.visible(clip) for clip in self.clips.clips]
        heard = [self.contents.heard(clip) for clip in self.clips.clips]
        partners = [swap_partner(index, visible, heard, names) for index in range(len(names))]
        return partners, sum(not fits_swap(seen, heard[k]) for seen, k in zip(visible, partners, strict=True))
