"""Reads AVSBench's object subsets, S4 and MS3, from folders as distributed and as `avsseg data synth` writes them.

Log-mels are made from the wav files, an example a second at exact seconds; the distributed pickles, cut every 0.96 s,
are not opened.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from avsseg.errors import DataError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ, log_mel_examples

Subset = Literal["s4", "ms3"]
SplitName = Literal["train", "val", "test"]
SECONDS = 5
_ROOTS: dict[Subset, tuple[str, str]] = {"s4": ("Single-source", "s4"), "ms3": ("Multi-sources", "ms3")}


@dataclass(frozen=True)
class ClipFiles:
    """The files of one clip: frames and masks in order of time; fewer masks than frames where S4 has only the first."""

    name: str
    category: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    wav: Path


@dataclass(frozen=True)
class ClipExample:
    """frames (T, H, W, 3) uint8, log_mel (T, 1, 96, 64), masks (T, H, W) bool, annotated (T,) bool."""

    name: str
    frames: Tensor
    log_mel: Tensor
    masks: Tensor
    annotated: Tensor


def list_clips(root: Path, subset: Subset, split: SplitName) -> list[ClipFiles]:
    """The clips of a split, in the order of the metadata table. Raises DataError naming what is missing."""
    folder_name, short = _ROOTS[subset]
    folder = root / folder_name if (root / folder_name).is_dir() else root
    table = folder / f"{short}_meta_data.csv"
    if not table.is_file():
        raise DataError(f"{printable(table)}: missing. Give the folder that holds {folder_name}/")
    with table.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[-1] == split]
    if not rows:
        raise DataError(f"{printable(table)}: lists no {split} clip")
    data = folder / f"{short}_data"
    return [_clip_files(data, subset, split, row) for row in rows]


def _clip_files(data: Path, subset: Subset, split: SplitName, row: Sequence[str]) -> ClipFiles:
    name = row[0]
    single = subset == "s4"
    category = row[2] if single else ""
    place = Path(split, category) if single else Path(split)
    frame_folder = data / "visual_frames" / (place / name if single else name)
    # MS3 as distributed has a literal .mp4 in the name, frames cut by AVSBench's own script have not
    prefix = f"{name}.mp4_" if not single and (frame_folder / f"{name}.mp4_1.png").exists() else f"{name}_"
    annotated = 1 if single and split == "train" else SECONDS
    files = ClipFiles(
        name,
        category,
        tuple(frame_folder / f"{prefix}{t + 1}.png" for t in range(SECONDS)),
        tuple(data / "gt_masks" / place / name / f"{name}_{t + 1}.png" for t in range(annotated)),
        data / "audio_wav" / place / f"{name}.wav",
    )
    for path in (*files.frames, *files.masks, files.wav):
        if not path.is_file():
            raise DataError(f"{printable(path)}: missing, needed by {split} clip {name}")
    return files


class AvsBenchClips(Dataset[ClipExample]):
    """Clips of one split, squashed to `size` x `size`; masks nearest, frames bilinear."""

    def __init__(self, root: Path, subset: Subset, split: SplitName, *, size: int) -> None:
        self.clips = list_clips(root, subset, split)
        self.size = size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipExample:
        """Raises DataError for a damaged file."""
        files = self.clips[index]
        frames = [_read_image(path, "RGB", self.size, Image.Resampling.BILINEAR) for path in files.frames]
        masks = np.zeros((len(frames), self.size, self.size), bool)
        for t, path in enumerate(files.masks):
            masks[t] = _read_image(path, "L", self.size, Image.Resampling.NEAREST) > 127
        waveform = torch.from_numpy(read_wav(files.wav))
        return ClipExample(
            files.name,
            torch.from_numpy(np.stack(frames)),
            log_mel_examples(waveform, [float(t) for t in range(len(frames))]),
            torch.from_numpy(masks),
            torch.arange(len(frames)) < len(files.masks),
        )


def open_image(path: Path, mode: str | None) -> Image.Image:
    """The decoded picture in that PIL mode, or in its own. Raises DataError for a file that is none or is damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy() if mode is None else image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{printable(path)}: not an image that can be read ({error})") from error


def _read_image(path: Path, mode: str, size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(open_image(path, mode).resize((size, size), resampling))


def read_wav(path: Path) -> NDArray[np.float32]:
    """(samples,) float32 in -1..1 of a 16 kHz mono 16-bit file. Raises DataError for anything else."""
    try:
        with wave.open(str(path), "rb") as file:
            layout = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            samples = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{printable(path)}: not a wav file that can be read ({error})") from error
    if layout != (SAMPLE_RATE_HZ, 1, 2):
        found = f"{layout[0]} Hz, {layout[1]} channels, {8 * layout[2]} bit"
        raise DataError(f"{printable(path)}: has {found}, must have 16000 Hz, 1 channel, 16 bit")
    waveform: NDArray[np.float32] = np.frombuffer(samples, "<i2").astype(np.float32) / np.float32(32768)
    return waveform
