"""A video's panels or features as a picture of a few instants, or as a video with its sound."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.errors import MediaError, UsageError
from avsseg.media.drawn_video import DrawnVideo
from avsseg.media.frames import check_range, mask_times, sample_frames
from avsseg.media.probe import VideoInfo
from avsseg.pipeline.options import SegmentOptions
from avsseg.pipeline.segment import segment
from avsseg.visualization.features import FeatureMoments, FeatureTrack, FrameFeatures
from avsseg.visualization.options import VisualizeOptions
from avsseg.visualization.panel import (
    Painter,
    Shown,
    Waveform,
    draw_instant,
    draw_rows,
    draw_waveform,
    feature_painter,
    picture_size,
    prediction_painter,
    read_waveform,
    strip_size,
    tile_size,
    truth_painter,
    unchanged,
)
from avsseg.visualization.truth import TruthMasks, truth_masks
from avsseg.weights import LoadedModel
from avsseg.writers.base import written_whole
from avsseg.writers.video import mask_alpha

FASTEST_FRAME_RATE = 30.0
DEFAULT_FRAME_RATE = 25.0  # where the file does not tell its own
FEATURE_COLUMNS = ("features before CIP", "features after CIP")

Listener = Callable[[int, int | None], None]  # masks done, and all if that is known


class Visualization:
    """What is to be drawn of one video. `warnings`, complete after drawing, says what the user should know.

    `load` gives the model, and is called only once all else is found to be in order.

    Raises:
        UsageError, MediaError: a range or an instant lies outside of the video.
        DataError: the truth cannot be read.
    """

    def __init__(
        self,
        info: VideoInfo,
        load: Callable[[], LoadedModel],
        segment_options: SegmentOptions,
        options: VisualizeOptions,
        listener: Listener = lambda done, total: None,
    ) -> None:
        rate, start_s, end_s = segment_options.rate, segment_options.start_s, segment_options.end_s
        check_range(info, rate=rate, start_s=start_s, end_s=end_s)
        self.warnings: tuple[str, ...] = info.warnings
        self._info = info
        self._load = load
        self._segment_options = segment_options
        self._options = options
        self._truth: TruthMasks | None = truth_masks(options.truth) if options.truth is not None else None
        if self._truth is not None:
            self._truth.check_shape(info)
        self._total = mask_times(info, rate=rate, start_s=start_s, end_s=end_s)
        self._listener = listener
        if options.at_s:
            self._wanted()

    @functools.cached_property
    def _loaded(self) -> LoadedModel:
        loaded = self._load()
        if not loaded.trained:
            self._add_warnings([f"{loaded.name} was never trained: what it marks is noise"])
        return loaded

    def save_picture(self, path: Path) -> Path:
        """Writes a PNG with a row for each instant asked for; an instant's row is that of the mask that covers it.

        Raises:
            UsageError: an instant lies outside of what is shown, or the file's length is unknown and none is named.
            MediaError, DataError, OutputError: the video, the truth or the result cannot be read or written.
        """
        wanted = self._wanted()
        columns = self._panels(last=max(wanted)) if self._options.kind == "panel" else self._chosen_features(wanted)
        rows = list(self._with_frames(columns, wanted))
        if not rows:
            raise MediaError(self._info.path, "it ends before the first instant asked for", "Name earlier ones.")
        missing = wanted - {shown.index for shown, _ in rows}
        if missing:
            from_s = self._segment_options.start_s + min(missing) / self._segment_options.rate
            self._add_warnings(
                [f"the picture ends before {from_s:.1f} s: {len(missing)} of {len(wanted)} rows are left out"]
            )
        picture = draw_rows(rows, self._waveform())
        with written_whole(path) as partial:
            picture.save(partial, format="PNG")
        return path

    def save_video(self, path: Path) -> Path:
        """Writes an MP4 that shows every frame, up to `FASTEST_FRAME_RATE` a second, with the sound.

        Features are computed twice: once to fit the PCA, whose colours must agree from the first frame to the last, and
        once to draw, as those of a long video do not fit into memory.

        Raises:
            MediaError, DataError, OutputError: the video, the truth or the result cannot be read or written.
        """
        info, options = self._info, self._segment_options
        frame_rate = min(info.frame_rate or DEFAULT_FRAME_RATE, FASTEST_FRAME_RATE)
        columns = self._panels() if self._options.kind == "panel" else self._painted(self._features, self._features)
        names = ["frame", *(["truth"] if self._truth else [])]
        count = len(names) + (1 if self._options.kind == "panel" else len(FEATURE_COLUMNS))
        tile = tile_size(info)
        width, height = picture_size(tile, count)
        waveform = self._waveform()
        with (
            written_whole(path) as partial,
            closing(columns),
            closing(self._frames(frame_rate)) as frames,
            DrawnVideo(
                info,
                partial,
                width=width,
                height=height,
                frame_rate=frame_rate,
                start_s=options.start_s,
                end_s=options.end_s,
                audio_track=options.audio_track,
                display_path=path,
            ) as video,
        ):
            shown = next(columns)
            ahead = next(columns, None)
            for number, frame in enumerate(frames):
                time_s = (number + 0.5) / frame_rate
                while ahead is not None and ahead.index <= time_s * options.rate:
                    shown, ahead = ahead, next(columns, None)
                instant = Shown(shown.index, options.start_s + time_s, shown.columns)
                strip = draw_waveform(waveform, instant.timestamp_s, strip_size(tile, count), shown.timestamp_s)
                video.write(np.asarray(draw_instant(instant, frame, strip)))
        return path

    def _wanted(self) -> frozenset[int]:
        """Indices of the masks whose instants a picture shows."""
        options, total = self._segment_options, self._total
        if not self._options.at_s:
            if total is None:
                raise UsageError(f"{self._info.path.name} does not say how long it is: name instants with --at")
            rows = min(self._options.rows, total)
            return frozenset(math.floor((row + 0.5) * total / rows) for row in range(rows))
        wanted = set()
        for at_s in self._options.at_s:
            index = math.floor((at_s - options.start_s) * options.rate + 1e-9)
            if index < 0 or (total is not None and index >= total):
                last_s = "" if total is None else f" and before {options.start_s + total / options.rate:g} s"
                raise UsageError(f"--at {at_s:g}: must be from {options.start_s:g} s on{last_s}")
            wanted.add(index)
        return frozenset(wanted)

    def _panels(self, last: int | None = None) -> Generator[Shown, None, None]:
        """Frame, truth and prediction of every mask up to `last`."""
        with segment(self._info, model=self._loaded, options=self._segment_options) as track:
            for mask in track:
                painter = prediction_painter(mask_alpha(mask.probability, self._options.threshold))
                yield Shown(mask.index, mask.timestamp_s, self._columns(mask.timestamp_s, {"prediction": painter}))
                self._listener(mask.index + 1, self._total if last is None else last + 1)
                if mask.index == last:
                    return
            self._add_warnings(track.damage)

    def _chosen_features(self, wanted: Collection[int]) -> Iterator[Shown]:
        with closing(self._features(max(wanted))) as track:
            chosen = [features for features in track if features.index in wanted]
        return self._painted(lambda: chosen, lambda: chosen)

    def _features(self, last: int | None = None) -> Generator[FrameFeatures, None, None]:
        with closing(FeatureTrack(self._info, self._loaded, self._segment_options)) as track:
            for features in track:
                yield features
                self._listener(features.index + 1, self._total if last is None else last + 1)
                if features.index == last:
                    return
            self._add_warnings(track.damage)

    def _painted(
        self, fitted: Callable[[], Iterable[FrameFeatures]], drawn: Callable[[], Iterable[FrameFeatures]]
    ) -> Generator[Shown, None, None]:
        """Frame, truth and features of all `drawn`, in the colours of a PCA of all `fitted`, one for each stage."""
        before, after = FeatureMoments(), FeatureMoments()
        for features in fitted():
            before.add(features.before)
            after.add(features.after)
        colours = before.colours(), after.colours()
        for features in drawn():
            stages = zip(FEATURE_COLUMNS, colours, (features.before, features.after), strict=True)
            painters = {name: feature_painter(stage.paint(feature)) for name, stage, feature in stages}
            yield Shown(features.index, features.timestamp_s, self._columns(features.timestamp_s, painters))

    def _add_warnings(self, damage: Iterable[str]) -> None:
        # features of a video are read twice
        self.warnings = tuple(dict.fromkeys((*self.warnings, *damage)))

    def _columns(self, timestamp_s: float, painters: dict[str, Painter]) -> dict[str, Painter]:
        columns: dict[str, Painter] = {"frame": unchanged}
        if self._truth is not None:
            columns["truth"] = truth_painter(self._truth.at(timestamp_s))
        return {**columns, **painters}

    def _with_frames(self, columns: Iterator[Shown], wanted: Collection[int]) -> Iterator[tuple[Shown, Image.Image]]:
        """The wanted ones, each with the frame on screen at the middle of its interval."""
        with closing(self._frames(self._segment_options.rate)) as frames:
            numbered = enumerate(frames)
            for shown in columns:
                if shown.index in wanted:
                    frame = next((frame for number, frame in numbered if number == shown.index), None)
                    if frame is not None:
                        yield shown, frame

    def _frames(self, rate: float) -> Generator[Image.Image, None, None]:
        """Frames at that rate, in the shape of a tile."""
        tile, options = tile_size(self._info), self._segment_options
        with sample_frames(
            self._info, rate=rate, size=max(tile), start_s=options.start_s, end_s=options.end_s
        ) as frames:
            for frame in frames:
                yield _resized(frame, tile)

    def _waveform(self) -> Waveform:
        options = self._segment_options
        return read_waveform(self._info, options.start_s, options.end_s, options.audio_track)


def _resized(frame: NDArray[np.uint8], tile: tuple[int, int]) -> Image.Image:
    return Image.fromarray(frame).resize(tile, Image.Resampling.LANCZOS)
