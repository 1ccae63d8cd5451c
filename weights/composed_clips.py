"""Endless training data for `train_composed.py`: composed clips, and some rendered ones, drawn by seed while it runs.

Classes are counted through: first those of the composed sources (background first), then the rendered families. The
background, which has a label, is no class of sound: sounds have one column less.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from composed_benchmark import BENCHMARK
from log_mel_changes import change_log_mel
from rendered_clips import ClipSettings as RenderedSettings
from rendered_clips import clip as rendered_clip
from rendered_clips import picture as rendered_picture
from rendered_clips import sound as rendered_sound
from torch import Tensor

from avsseg.data.avsbench import SplitName
from avsseg.data.compose import with_sound
from avsseg.data.compose_canvas import draw_scene
from avsseg.data.compose_pool import Case, SplitSources
from avsseg.data.compose_sound import draw_slots, lay_track, mix_tracks
from avsseg.data.compose_sources import VOID, Sources, read_sources
from avsseg.data.synthetic_shapes import CLASSES as FAMILIES
from avsseg.media.audio import log_mel_examples

# the share of soundtracks that are
CHANGED_SOUNDS = 0.6
# `sound` draws a class by the number of its recordings to this power
RARE_EXPONENT = 0.25
TRAINING = replace(BENCHMARK, one=0.28, two=0.42, several=0.08, none=0.22, smallest=0.015, motion=1.3)


@dataclass(frozen=True)
class DrawSettings:
    """What a training example looks like; `variants` are different sounds to the same pictures."""

    size: int = 128
    seconds: int = 5
    variants: int = 2
    rendered_share: float = 0.15


class TrainingClips:
    """Examples of one split by seed."""

    def __init__(self, sources: Sources, split: SplitName, settings: DrawSettings) -> None:
        self.sources = SplitSources(sources, split, replace(TRAINING, seconds=settings.seconds))
        self.split = split
        self.settings = settings
        self.first_family = len(sources.classes)
        self.classes = self.first_family + len(FAMILIES)

    def _is_rendered(self, seed: int) -> bool:
        return bool(np.random.default_rng([77, seed]).uniform() < self.settings.rendered_share)

    def picture(self, seed: int) -> dict[str, Tensor]:
        """Two views of a scene: frames (2, H, W, 3), labels (2, H, W), weight (2,)."""
        size = self.settings.size
        if self._is_rendered(seed):
            pair = [rendered_picture(2 * seed + i, split="train", size=size) for i in range(2)]
            frames, labels = (torch.stack([example[key] for example in pair]) for key in ("frames", "labels"))
            return {"frames": frames, "labels": self._shifted(labels), "weight": torch.ones(2)}
        _, _, scene = draw_scene(self.sources, seed)
        views = [scene.paint(t, size, size) for t in (0.0, float(self.settings.seconds))]
        return {
            "frames": torch.from_numpy(np.stack([frame for frame, _ in views])),
            "labels": torch.from_numpy(np.stack([classes for _, classes in views])),
            "weight": torch.full((2,), scene.weight),
        }

    def sound(self, seed: int) -> dict[str, Tensor]:
        """log_mel (T, 1, 96, 64) and heard (T, classes - 1) of one or two voices, without a picture."""
        heard = np.zeros((self.settings.seconds, self.classes - 1), np.float32)
        if self._is_rendered(seed):
            example = rendered_sound(seed, split="train")
            heard[:, self.first_family - 1 :] = example["heard"].numpy()[: self.settings.seconds]
            return {"log_mel": example["log_mel"][: self.settings.seconds], "heard": torch.from_numpy(heard)}
        rng = np.random.default_rng([78, seed])
        recordings = self.sources.recordings
        audible = sorted(recordings)
        # some classes have five recordings, some two hundred: drawn by these numbers the rare ones were never learned
        weights = np.array([len(recordings[k]) for k in audible]) ** RARE_EXPONENT
        voices = rng.choice(audible, 1 + int(rng.uniform() < 0.25), replace=False, p=weights / weights.sum())
        tracks = []
        for k in voices:
            on = draw_slots(rng, self.settings.seconds)
            track = lay_track(rng, int(k), recordings[int(k)], on)
            heard[track.sounding, k - 1] = 1
            tracks.append(track)
        waveform = torch.from_numpy(mix_tracks(rng, tracks, self.settings.seconds))
        seconds = [float(t) for t in range(self.settings.seconds)]
        log_mel = log_mel_examples(waveform, seconds)
        if rng.uniform() < CHANGED_SOUNDS:
            log_mel = change_log_mel(log_mel, rng)
        return {"log_mel": log_mel, "heard": torch.from_numpy(heard)}

    def clip(self, seed: int) -> dict[str, Tensor]:
        """A clip with `variants` sounds, as `JointObjective` takes it."""
        settings = self.settings
        if self._is_rendered(seed):
            rendered = RenderedSettings(settings.size, settings.seconds, settings.variants, easy_fraction=0.6)
            example = rendered_clip(seed, "train", rendered)
            families = example["heard"]
            heard = families.new_zeros(*families.shape[:-1], self.classes - 1)
            heard[..., self.first_family - 1 :] = families
            return {**example, "labels": self._shifted(example["labels"]), "heard": heard}
        case, objects, scene = draw_scene(self.sources, seed)
        views = [scene.paint(t + 0.5, settings.size, settings.size) for t in range(settings.seconds)]
        maps = [classes for _, classes in views]
        log_mels, masks, heards = [], [], []
        for variant in range(settings.variants):
            clip = with_sound(self.sources, seed, variant, self._case(case, objects, variant), objects, scene)
            heard = np.zeros((settings.seconds, self.classes - 1), np.float32)
            for k, sounding in clip.sounding().items():
                heard[sounding, k - 1] = 1
            log_mel = log_mel_examples(torch.from_numpy(clip.waveform), [float(t) for t in range(settings.seconds)])
            rng = np.random.default_rng([79, seed, variant])
            log_mels.append(change_log_mel(log_mel, rng) if rng.uniform() < CHANGED_SOUNDS else log_mel)
            masks.append(clip.masks(maps))
            heards.append(heard)
        return {
            "frames": torch.from_numpy(np.stack([frame for frame, _ in views])),
            "labels": torch.from_numpy(np.stack(maps)),
            "weight": torch.tensor(scene.weight),
            "log_mel": torch.stack(log_mels),
            "masks": torch.from_numpy(np.stack(masks)),
            "heard": torch.from_numpy(np.stack(heards)),
        }

    def _case(self, case: Case, objects: tuple[int, ...], variant: int) -> Case:
        """The second sound to a single object is often none, so that the picture alone never decides."""
        if case == "one" and variant % 2:
            return "none" if len(objects) == 1 else "two"
        if case == "none" and variant % 2:
            return "two" if len(objects) > 1 else "one"
        return case

    def _shifted(self, labels: Tensor) -> Tensor:
        return torch.where((labels > 0) & (labels != VOID), labels + (self.first_family - 1), labels)


def load_sources(folder: Path) -> Sources:
    """The unpacked archive, read once and kept in `sources.pickle` beside it (our own file)."""
    kept = folder / "sources.pickle"
    if not kept.is_file():
        whole = folder.resolve()  # pictures are read when drawn, perhaps from another working directory
        sources = read_sources(whole / "images", whole / "masks", whole / "sounds")
        kept.write_bytes(pickle.dumps(sources, protocol=5))
    loaded: Sources = pickle.loads(kept.read_bytes())
    return loaded
