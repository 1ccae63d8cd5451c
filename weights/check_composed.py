"""Scores weights on the fixed composed clips: pictures and recordings that training never saw.

    python weights/check_composed.py weights/avs-mamba-tiny.safetensors --split test [--strips strips.png]

Printed as JSON, all by the strict protocol at 224 px: M_J and M_F over frames with truth; on frames with two visible
objects of which one sounds, IoU with it, with the silent one, and M_J of marking both; area marked in clips of silence
and of off-screen sounds (together: case none); M_J by class and by the least trusted mask in a clip (human, white
background, pseudo); of frames with truth of one class and a mask, how many get a name and how many of those the right
one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from composed_benchmark import BENCHMARK, FRAME_TIMES, SIZE, TEST_SEEDS, VAL_SEEDS
from composed_clips import load_sources
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.avsbench import SplitName
from avsseg.data.compose import ComposedClip, compose_clip
from avsseg.data.compose_pool import SplitSources
from avsseg.data.compose_sources import VOID, Sources
from avsseg.media.audio import log_mel_examples
from avsseg.metrics.object import StrictObjectMetrics, frame_scores
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.weights.store import load_model
from avsseg.writers.base import NAME_PROBABILITY

TRUST = {1.0: "human", 0.7: "white background", 0.4: "pseudo"}
# an object of fewer pixels is not in view
VISIBLE_PIXELS = 100


@dataclass(frozen=True)
class Outcome:
    """One clip: frames (T, H, W, 3), class maps and truth (T, H, W), probability (T, H, W), heard (T, K) of sounds."""

    clip: ComposedClip
    frames: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    probability: NDArray[np.float32]
    heard: NDArray[np.float32]


@torch.no_grad()
def probabilities(
    model: AvsMamba, frames: NDArray[np.uint8], waveform: NDArray[np.float32], *, mute: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of masks (T, H, W) at the frames' size, the model works at its own, and of sounds (T, K). `mute`: in silence."""
    side = model.config.input_size
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True).round().to(torch.uint8)
    sound = torch.zeros(len(waveform)) if mute else torch.from_numpy(waveform)
    log_mel = log_mel_examples(sound, [float(t) for t in range(len(frames))])
    logits, heard = model.masks_and_sounds(normalise(small.permute(0, 2, 3, 1))[None], log_mel[None])
    sized = F.interpolate(logits[0], size=frames.shape[1:3], mode="bilinear", align_corners=False)
    sounds = torch.zeros(len(frames), 0) if heard is None else heard[0]
    return sized[:, 0].sigmoid().numpy(), sounds.sigmoid().numpy()


def outcomes(
    model: AvsMamba, sources: Sources, split: SplitName, seeds: range, *, mute: bool = False
) -> Iterator[Outcome]:
    """The fixed clips of a split and what the model makes of them."""
    clips = SplitSources(sources, split, BENCHMARK)
    for seed in seeds:
        clip = compose_clip(clips, seed)
        views = [clip.scene.paint(t, SIZE, SIZE) for t in FRAME_TIMES]
        frames, classes = (np.stack(list(part)) for part in zip(*views, strict=True))
        truth = clip.masks(list(classes))
        yield Outcome(clip, frames, classes, truth, *probabilities(model, frames, clip.waveform, mute=mute))


def called(item: Outcome, heard: Sequence[str], names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name given or "", class) of each frame that is marked while one class in view sounds."""
    for t in range(len(item.truth)):
        sounding = {k for k in np.unique(item.classes[t][item.truth[t]]) if k != VOID}
        if len(sounding) == 1 and (item.probability[t] > 0.5).any():
            likeliest = int(item.heard[t].argmax())
            sure = item.heard[t, likeliest] >= NAME_PROBABILITY
            yield heard[likeliest] if sure else "", names[sounding.pop()]


def score(
    items: Iterator[Outcome], names: tuple[str, ...], heard: Sequence[str] = ()
) -> tuple[dict[str, Any], list[tuple[float, Outcome]]]:
    """All figures, and (M_J, outcome) of every clip with truth; `heard` are the model's names of sounds."""
    strict, both = StrictObjectMetrics(), StrictObjectMetrics()
    groups: dict[str, StrictObjectMetrics] = defaultdict(StrictObjectMetrics)
    pairs = []
    ranked = []
    given: list[tuple[str, str]] = []
    for item in items:
        probability, truth = torch.from_numpy(item.probability), torch.from_numpy(item.truth)
        if heard:
            given += called(item, heard, names)
        scores = frame_scores(probability, truth)
        strict.update(scores)
        groups[f"case/{item.clip.case}"].update(scores)
        if item.clip.case == "none":
            groups["none/" + ("off-screen" if item.clip.tracks else "silence")].update(scores)
        groups[f"masks/{TRUST[round(item.clip.scene.weight, 2)]}"].update(scores)
        for track in item.clip.tracks:
            on = torch.from_numpy(track.sounding & item.truth.any((1, 2)))
            if on.any():
                groups[f"class/{names[track.class_index]}"].update(frame_scores(probability[on], truth[on]))
        if item.truth.any():
            sounding = scores.truth > 0
            ranked.append((float((scores.intersection / scores.union.clamp(min=1))[sounding].mean()), item))
        if item.clip.case == "two" and len(item.clip.objects) == 2:
            union = np.isin(item.classes, item.clip.objects)
            frames = [t for t in range(len(truth)) if _one_of_two(item, t)]
            for t in frames:
                marked = item.probability[t] > 0.5
                silent = union[t] & ~item.truth[t]
                pairs.append((_iou(marked, item.truth[t]), _iou(marked, silent)))
            if frames:
                marks = torch.from_numpy(union[frames]).float()
                both.update(frame_scores(marks, truth[frames]))
    on_pairs = np.array(pairs)
    result: dict[str, Any] = {
        **strict.result(),
        "two_objects_one_sounds": {
            "frames": len(pairs),
            "IoU_with_sounding": float(on_pairs[:, 0].mean()),
            "IoU_with_silent": float(on_pairs[:, 1].mean()),
            "IoU_of_marking_both": both.result()["M_J"],
            "sounding_above_silent": float((on_pairs[:, 0] > on_pairs[:, 1]).mean()),
        },
    }
    if given:
        named = [name == right for name, right in given if name]
        share, right = len(named) / len(given), float(np.mean(named)) if named else None
        result["names"] = {"frames": len(given), "named": share, "right": right}
    for key, metrics in sorted(groups.items()):
        kind, name = key.split("/", 1)
        found = metrics.result()
        kept = "false_positive_area" if "none" in (kind, name) else "M_J"
        result.setdefault(kind, {})[name] = {kept: found[kept], "frames": found["frames"]}
    return result, ranked


def shifted(item: Outcome, shift: float) -> Outcome:
    """The outcome with `shift` added to every logit."""
    odds = item.probability / (1 - item.probability).clip(1e-7) * np.float32(np.exp(shift))
    return replace(item, probability=odds / (1 + odds))


def compare_shifts(items: list[Outcome], shifts: list[float], names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """M_J, area marked where nothing in view sounds, on all frames and in the clips of silence or a sound from
    off-screen, and right ones of two, by what is added to the logits.
    """
    found = {}
    for shift in shifts:
        result, _ = score((shifted(item, shift) for item in items), names)
        right = result["two_objects_one_sounds"]["sounding_above_silent"]
        area = result["false_positive_area"]
        found[f"{shift:g}"] = {
            "M_J": result["M_J"],
            "false_positive_area": area,
            "negatives": result["case"]["none"]["false_positive_area"],
            "sounding_above_silent": right,
        }
    return found


def _one_of_two(item: Outcome, t: int) -> bool:
    areas = [(item.classes[t] == k).sum() for k in item.clip.objects]
    audible = [bool((item.truth[t] & (item.classes[t] == k)).any()) for k in item.clip.objects]
    return min(areas) >= VISIBLE_PIXELS and sum(audible) == 1


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def draw_strips(path: Path, items: list[Outcome], side: int = 112) -> None:
    """A row for each clip: its frames with the truth outlined in green above, the prediction in orange below."""
    sheet = Image.new("RGB", (len(FRAME_TIMES) * side, len(items) * 2 * side))
    for row, item in enumerate(items):
        for t in range(len(FRAME_TIMES)):
            for line, (mask, colour) in enumerate(
                ((item.truth[t], (40, 210, 90)), (item.probability[t] > 0.5, (255, 140, 30)))
            ):
                pixels = item.frames[t].astype(np.float32)
                pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(colour, np.float32)
                tile = Image.fromarray(pixels.astype(np.uint8)).resize((side, side))
                sheet.paste(tile, (t * side, (2 * row + line) * side))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path("runs/avset"))
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--clips", type=int, default=0, help="only the first so many")
    parser.add_argument("--mute", action="store_true", help="play silence to the model, for one trained without sound")
    parser.add_argument("--shifts", help="compare what adding these to all logits would do: 0,0.25,0.5")
    parser.add_argument("--strips", type=Path, help="PNG with the best, middle and worst clips")
    options = parser.parse_args()
    loaded = load_model(options.model)
    sources = load_sources(options.data)
    seeds = VAL_SEEDS if options.split == "val" else TEST_SEEDS
    seeds = seeds[: options.clips] if options.clips else seeds
    found = outcomes(loaded.model, sources, options.split, seeds, mute=options.mute)
    if options.shifts:
        shifts = [float(shift) for shift in options.shifts.split(",")]
        print(json.dumps(compare_shifts(list(found), shifts, sources.classes), indent=2))
        return
    result, ranked = score(found, sources.classes, loaded.heard)
    print(json.dumps({"model": options.model, "split": options.split, "clips": len(seeds), **result}, indent=2))
    if options.strips:
        ranked.sort(key=lambda pair: -pair[0])
        middle = len(ranked) // 2
        draw_strips(options.strips, [item for _, item in ranked[:3] + ranked[middle : middle + 3] + ranked[-3:]])


if __name__ == "__main__":
    main()
