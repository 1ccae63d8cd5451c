"""What writing a dataset in AVSBench's layout shares: its files, a video of frames and sound, clips in parallel."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import signal
import threading
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, TypeVar

import ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.errors import EnvironmentFault, OutputError, UsageError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ
from avsseg.media.ffmpeg import FfmpegProcess, command, file_url
from avsseg.writers.base import output_errors, written_whole

Subset = Literal["s4", "ms3"]
ROOTS: dict[Subset, tuple[str, str]] = {"s4": ("Single-source", "s4"), "ms3": ("Multi-sources", "ms3")}
# AVSBench keeps sample 15 of 16 a second, so its frame of second t is the one at t + 15/16.
FRAME_OFFSET_S = 15 / 16
LISTING_NAME = "clips.json"

Context = TypeVar("Context")
Split = TypeVar("Split", bound=str)
Result = TypeVar("Result")


def dataset_paths(folder: Path, subset: Subset, counts: Iterable[int]) -> tuple[Path, Path]:
    """(metadata table, data folder) of a dataset to write, of so many clips a split; nothing is made yet.

    The table is to be written last: a folder without it is unfinished, and is begun anew. Raises UsageError if the
    table is there already or no clips are asked for.
    """
    root, short = ROOTS[subset]
    table = folder / root / f"{short}_meta_data.csv"
    if table.exists():
        raise UsageError(f"{printable(table)} exists: the dataset is already there. Choose another folder")
    if sum(counts) == 0:
        raise UsageError("a dataset of no clips: ask for at least one")
    return table, folder / root / f"{short}_data"


def make_folder(folder: Path) -> None:
    """The folder and those above it. Raises OutputError."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_table(table: Path, rows: Sequence[Sequence[str]]) -> None:
    """The metadata table, header first; it appears whole or not at all. Raises OutputError."""
    with written_whole(table) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def clip_seeds(counts: dict[Split, int], seed: int) -> list[tuple[Split, int]]:
    """A (split, seed) a clip: a million seeds each for every `seed` of a dataset."""
    first = seed * 1_000_000
    return [(split, first + index) for split, count in counts.items() for index in range(count)]


def frame_times(seconds: int, frame_rate: int) -> list[float]:
    """The times of the frames that AVSBench would keep of a video of that rate, one a second."""
    return [int((t + FRAME_OFFSET_S) * frame_rate) / frame_rate for t in range(seconds)]


def write_clip_files(
    data: Path,
    subset: Subset,
    split: str,
    category: str,
    name: str,
    frames: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    waveform: NDArray[np.float32],
) -> Path:
    """Frames (T, H, W, 3), masks (T, H, W) and wav of one clip; returns where its video belongs, its folder made.

    Of the masks of S4's training clips only the first is written, as AVSBench has it. Raises OutputError.
    """
    single = subset == "s4"
    place = Path(split) / category if single else Path()
    annotated = 1 if single and split == "train" else len(frames)
    frame_name = f"{name}_" if single else f"{name}.mp4_"
    mask_place = place if single else Path(split)
    for t, frame in enumerate(frames):
        _save(data / "visual_frames" / place / name / f"{frame_name}{t + 1}.png", Image.fromarray(frame))
    for t in range(annotated):
        _save(data / "gt_masks" / mask_place / name / f"{name}_{t + 1}.png", mask_image(masks[t], subset))
    write_wav(data / "audio_wav" / mask_place / f"{name}.wav", waveform)
    video = data / "raw_videos" / place / f"{name}.mp4"
    with output_errors(video):
        video.parent.mkdir(parents=True, exist_ok=True)
    return video


def mask_image(mask: NDArray[np.bool_], subset: Subset) -> Image.Image:
    """S4 stores one bit a pixel, MS3 a palette whose entries 0 and 255 are in use."""
    if subset == "s4":
        return Image.fromarray(mask.astype(np.uint8) * 255).convert("1")
    palette = Image.frombytes("P", mask.shape[::-1], (mask.astype(np.uint8) * 255).tobytes())
    palette.putpalette([level for level in range(256) for _ in range(3)])
    return palette


def _save(path: Path, image: Image.Image) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_wav(path: Path, waveform: NDArray[np.float32]) -> None:
    """Samples (n,) in -1..1 as 16 kHz mono 16-bit PCM; what is louder is clipped. Raises OutputError."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE_HZ)
            file.writeframes(np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())


def encode_video(
    path: Path, frames: Iterable[NDArray[np.uint8]], waveform: NDArray[np.float32], size: tuple[int, int], rate: int
) -> None:
    """Frames (H, W, 3) of `size` (W, H; even numbers), `rate` a second, and their sound as H.264 and AAC in an mp4.

    Nothing is left behind at `path` on failure. Raises OutputError if ffmpeg fails.
    """
    sound = path.with_name(path.name + ".wav")
    partial = path.with_name(path.name + ".partial")
    write_wav(sound, waveform)
    pictures = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{size[0]}x{size[1]}", r=rate)
    output = ffmpeg.output(
        pictures,
        ffmpeg.input(file_url(sound)).audio,
        file_url(partial),
        format="mp4",
        vcodec="libx264",
        pix_fmt="yuv420p",
        preset="veryfast",
        crf=26,
        acodec="aac",
        audio_bitrate="96k",
        ar=48000,
        movflags="+faststart",
    )
    try:
        with FfmpegProcess(command(output), stdin=True) as process:
            try:
                for frame in frames:
                    process.write(frame.tobytes())
                process.close_stdin()
            except BrokenPipeError:
                pass  # ffmpeg has ended early; its exit code and messages say why
            if process.wait() != 0:
                lines, _ = process.messages()
                raise OutputError(f"{printable(path)}: ffmpeg failed ({lines[-1] if lines else 'no message'})")
        with output_errors(path):
            partial.replace(path)
    finally:
        sound.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def write_clips(
    write: Callable[[Context, Split, int], Result], context: Context, seeds: Sequence[tuple[Split, int]], jobs: int
) -> Iterator[Result]:
    """What `write(context, split, seed)` returns for each of the seeds, in their order, as each is done.

    With more than one job, in processes of their own: `write` is a function of a module, and `context` is sent to each
    process once. Raises what `write` raises, and EnvironmentFault if a process is killed.
    """
    if jobs <= 1:
        for split, seed in seeds:
            yield write(context, split, seed)
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(seeds)), multiprocessing.get_context("spawn"), initializer=_receive, initargs=(write, context)
    )
    try:
        with _interrupts_ignored():  # the first `submit` starts the processes, which inherit that
            futures = [pool.submit(_write_in_process, split, seed) for split, seed in seeds]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise EnvironmentFault("a process was killed, for lack of memory most likely. Use fewer --jobs") from error
    finally:
        # after Ctrl-C the clips not begun are not written. No `with`: it calls this again, and takes that back
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C means nothing for the moment; it cannot be switched outside the main thread, where it never arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_in_process: tuple[Callable[[Any, Any, int], Any], Any]


def _receive(write: Callable[[Any, Any, int], Any], context: Any) -> None:
    global _in_process
    # the process that started this one decides what Ctrl-C means; Windows lets nothing inherit that
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _in_process = write, context


def _write_in_process(split: str, seed: int) -> Any:
    write, context = _in_process
    return write(context, split, seed)


def write_listing(folder: Path, about: Mapping[str, Any], clips: Sequence[Mapping[str, Any]]) -> None:
    """Writes `clips.json`: what is known of the dataset, and of each clip on a line of its own. Raises OutputError."""
    # in ASCII: a name of a source that is no UTF-8 could not be written else
    lines = ",\n".join("  " + json.dumps(entry) for entry in clips)
    head = json.dumps(about, indent=1).removesuffix("\n}")
    with written_whole(folder / LISTING_NAME) as partial:
        partial.write_text(f'{head},\n "clips": [\n{lines}\n ]\n}}\n', encoding="utf-8")
