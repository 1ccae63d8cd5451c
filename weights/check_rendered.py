"""What the masks do when the sound is taken away or given to the other object, on scenes that training never saw.

    python weights/check_rendered.py weights/avs-mamba-tiny.safetensors [--seeds 20] [--strips strips.png]

Each scene of the test split has two objects that sound in turn. Printed as JSON: strict M_J, the muted area as a share
of the area with sound, and the share of scenes in which the mask moves to the other object when the voices are swapped;
then, over ordinary test scenes (1 to 4 objects, 0 to 3 sources), strict M_J and the marked share of silent frames.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.synthetic import mix, render_pictures, render_scene, sounding_masks, sounding_seconds
from avsseg.data.synthetic_dataset import two_in_turn
from avsseg.media.audio import log_mel_examples
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.weights.store import load_model

SECONDS = 6
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """One scene: frames (T, H, W, 3), truths and predictions (T, H, W) with its own sound, swapped, and muted."""

    frames: NDArray[np.uint8]
    truth: Masks
    swapped_truth: Masks
    heard: Masks
    swapped: Masks
    muted: Masks

    @property
    def iou(self) -> float:
        """Mean over frames with truth."""
        union = (self.heard | self.truth).sum((1, 2))
        sounding = self.truth.any((1, 2))
        return float(((self.heard & self.truth).sum((1, 2))[sounding] / union[sounding]).mean())

    @property
    def muted_share(self) -> float:
        """Area predicted without sound over area predicted with it; infinite if nothing was predicted with sound."""
        return float(self.muted.sum() / self.heard.sum()) if self.heard.any() else float("inf")

    @property
    def moves(self) -> bool:
        """Whether most of what is marked lies on the sounding object, in both ways of giving out the voices."""
        own = (self.heard & self.truth).sum() > (self.heard & self.swapped_truth).sum()
        other = (self.swapped & self.swapped_truth).sum() > (self.swapped & self.truth).sum()
        return bool(own and other)


@torch.inference_mode()
def outcome(model: AvsMamba, seed: int) -> Outcome:
    """The model's masks of one test scene under its own, swapped and absent sound."""
    size = model.config.input_size
    seconds = [float(t) for t in range(SECONDS)]
    description, events = two_in_turn(seed, split="test", seconds=SECONDS)
    _, swapped_events = two_in_turn(seed, split="test", seconds=SECONDS, swapped=True)
    frames, owner = render_pictures(description, size, size, [t + 0.5 for t in seconds])
    pictures = normalise(torch.from_numpy(frames))[None]

    def predict(waveform: NDArray[np.float32]) -> Masks:
        log_mel = log_mel_examples(torch.from_numpy(waveform), seconds)[None]
        masks: Masks = (model(pictures, log_mel)[0, :, 0] > 0).numpy()
        return masks

    waveform = mix(description, events)
    return Outcome(
        frames,
        sounding_masks(owner, sounding_seconds(description, events)),
        sounding_masks(owner, sounding_seconds(description, swapped_events)),
        predict(waveform),
        predict(mix(description, swapped_events)),
        predict(np.zeros_like(waveform)),
    )


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    """The figures over all scenes."""
    heard = sum(int(o.heard.sum()) for o in outcomes)
    return {
        "scenes": len(outcomes),
        "M_J": float(np.mean([o.iou for o in outcomes])),
        "muted_share": sum(int(o.muted.sum()) for o in outcomes) / max(1, heard),
        "worst_muted_share": max(o.muted_share for o in outcomes),
        "moves": float(np.mean([o.moves for o in outcomes])),
    }


@torch.inference_mode()
def ordinary(model: AvsMamba, seeds: int) -> dict[str, float]:
    """Strict M_J over the sounding frames and marked area over the silent frames of scenes of every kind."""
    ious, areas = [], []
    for seed in range(seeds):
        scene = render_scene(seed, split="test", size=model.config.input_size)
        log_mel = log_mel_examples(torch.from_numpy(scene.waveform), [float(t) for t in range(len(scene.frames))])
        logits = model(normalise(torch.from_numpy(scene.frames))[None], log_mel[None])
        for mask, truth in zip((logits[0, :, 0] > 0).numpy(), scene.masks, strict=True):
            if truth.any():
                ious.append((mask & truth).sum() / (mask | truth).sum())
            else:
                areas.append(mask.mean())
    return {"ordinary_M_J": float(np.mean(ious)), "silent_area": float(np.mean(areas))}


def strips(outcomes: list[Outcome]) -> Image.Image:
    """A row a scene: frames with the mask in red and the truth's outline in white; right, with swapped sound."""
    rows = []
    for one in outcomes:
        cells = [
            _tint(one.frames[t], masks[t], truth[t])
            for masks, truth in ((one.heard, one.truth), (one.swapped, one.swapped_truth))
            for t in (0, 2, 3, 5)
        ]
        rows.append(np.concatenate(cells, axis=1))
    return Image.fromarray(np.concatenate(rows))


def _tint(frame: NDArray[np.uint8], mask: Masks, truth: Masks) -> NDArray[np.uint8]:
    picture = frame.astype(np.float32) * 0.7
    picture[mask] = picture[mask] * 0.4 + np.array([255, 0, 0], np.float32) * 0.6
    inner = np.zeros_like(truth)
    inner[1:-1, 1:-1] = truth[2:, 1:-1] & truth[:-2, 1:-1] & truth[1:-1, 2:] & truth[1:-1, :-2]
    picture[truth & ~inner] = 255
    return picture.astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--strips", type=Path, help="PNG that shows the first scenes")
    options = parser.parse_args()
    model = load_model(options.weights).model
    outcomes = [outcome(model, seed) for seed in range(options.seeds)]
    report: dict[str, Any] = {**summary(outcomes), **ordinary(model, options.seeds)}
    if options.strips:
        strips(outcomes[:8]).save(options.strips)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
