from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import avsseg
from avsseg.errors import EnvironmentFault, MediaError, UsageError, WeightsError
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import probe
from avsseg.media.windows import ClipWindow, clip_windows
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import preset
from avsseg.ops.selective_scan import automatic_backend
from avsseg.pipeline.options import ModelOptions, SegmentOptions
from avsseg.pipeline.scoring import ScoredWindow, class_probabilities
from avsseg.pipeline.segment import (
    blend_windows,
    load_for,
    segment,
)
from avsseg.weights import LoadedModel

CPU = torch.device("cpu")


def test_one_mask_a_second_with_times_sizes_and_probabilities(clip: Path, untrained: LoadedModel) -> None:
    with segment(clip, model=untrained, options=SegmentOptions(size=64)) as track:
        assert track.total == 3
        masks = list(track)
    assert [(mask.index, mask.timestamp_s) for mask in masks] == [(0, 0.5), (1, 1.5), (2, 2.5)]
    for mask in masks:
        assert mask.probability.shape == (1, 64, 64)
        assert mask.probability.dtype == np.float32
        assert 0 <= mask.probability.min() <= mask.probability.max() <= 1


def test_the_masks_are_those_of_the_model_on_the_window(clip: Path, untrained: LoadedModel) -> None:
    options = SegmentOptions(size=64, window=3, overlap=0)
    masks = list(segment(clip, model=untrained, options=options))
    with clip_windows(probe(clip), size=64, window=3) as windows:
        (window,) = windows
    expected = class_probabilities(untrained.model, [window], CPU, "fp32")[0].numpy()
    assert np.array_equal(np.stack([mask.probability for mask in masks]), expected)


def test_the_sounds_are_those_of_the_seconds(clip: Path) -> None:
    torch.manual_seed(0)
    model = AvsMamba(preset("avs-mamba-tiny", heard_classes=3, input_size=64)).eval()
    loaded = LoadedModel(model, "hearing", "", ("sounding",), True, heard=("dog", "cat", ""))
    with segment(clip, model=loaded, options=SegmentOptions(size=64, window=3, overlap=1)) as track:
        assert track.heard == ("dog", "cat", "")
        masks = list(track)
    with clip_windows(probe(clip), size=64, window=3) as windows:
        (window,) = windows
    with torch.no_grad():
        wanted = model.heard_head(model.audio_encoder(window.log_mel)).sigmoid().numpy()
    np.testing.assert_allclose(np.stack([mask.heard for mask in masks]), wanted, atol=1e-5)


def test_rate_start_and_end_choose_the_instants(clip: Path, untrained: LoadedModel) -> None:
    options = SegmentOptions(size=64, rate=2.0, start_s=1.0, end_s=2.5)
    times = [mask.timestamp_s for mask in segment(clip, model=untrained, options=options)]
    assert times == pytest.approx([1.25, 1.75, 2.25])


def test_overlapping_windows_give_each_mask_once(clip: Path, untrained: LoadedModel) -> None:
    options = SegmentOptions(size=64, rate=3.0, window=4, overlap=2)
    masks = list(segment(clip, model=untrained, options=options))
    assert [mask.index for mask in masks] == list(range(9))
    assert [mask.timestamp_s for mask in masks] == pytest.approx([(k + 0.5) / 3 for k in range(9)])


def test_silence_is_segmented_with_one_warning(silent_clip: Path, untrained: LoadedModel) -> None:
    track = segment(silent_clip, model=untrained, options=SegmentOptions(size=64))
    assert len(list(track)) == 2
    assert [text for text in track.warnings if "audio" in text] == ["no audio track; segmented as silent"]
    assert track.damage == ()


def test_an_untrained_model_says_that_its_masks_are_noise(clip: Path, untrained: LoadedModel) -> None:
    with segment(clip, model=untrained, options=SegmentOptions(size=64)) as track:
        assert track.warnings == ("untrained was never trained: these masks are noise",)


def test_a_truncated_video_gives_what_can_be_read_and_says_how_much_is_missing(
    truncated_clip: Path, untrained: LoadedModel
) -> None:
    track = segment(truncated_clip, model=untrained, options=SegmentOptions(size=64))
    masks = list(track)
    assert track.total == 8
    assert 1 <= len(masks) < 8
    assert any("of 8.0 s are missing" in text for text in track.damage)


def test_closing_early_stops_the_decoder(
    make_video: Callable[..., Path], tmp_path: Path, untrained: LoadedModel
) -> None:
    video = make_video(tmp_path / "long.mp4", seconds=60)
    with segment(video, model=untrained, options=SegmentOptions(size=64, window=2, overlap=0)) as track:
        next(track)
        assert any(thread.name == "avsseg-decoder" for thread in threading.enumerate())
    assert not any(thread.name == "avsseg-decoder" for thread in threading.enumerate())
    with pytest.raises(ValueError, match=r"long\.mp4 were closed before their end"):
        list(track)


def test_a_track_that_was_read_to_its_end_stays_at_it(clip: Path, untrained: LoadedModel) -> None:
    with segment(clip, model=untrained, options=SegmentOptions(size=64)) as track:
        assert len(list(track)) == 3
    assert list(track) == []


def test_the_track_ends_with_the_picture_and_says_that_the_sound_goes_on(
    sound_outlasts: Path, untrained: LoadedModel
) -> None:
    with segment(sound_outlasts, model=untrained, options=SegmentOptions(size=64)) as track:
        assert track.total == 4
        assert len(list(track)) == track.total == 2
    assert track.picture_end == PictureEnd(1.5, 15)
    assert track.damage == ()
    assert track.warnings[1:] == ("the picture ends at 1.5 s, the sound at 4.0 s",)


def test_an_audio_track_that_is_not_there_is_an_error(clip: Path, untrained: LoadedModel) -> None:
    with pytest.raises(MediaError, match="has 1 audio track, so there is no audio track 2"):
        segment(clip, model=untrained, options=SegmentOptions(size=64, audio_track=2))


def test_the_public_function_is_this_one(clip: Path) -> None:
    assert avsseg.segment is segment
    with pytest.raises(WeightsError, match=r"no such file|neither a model nor a file"):
        avsseg.segment(clip, model="no-such-model")
    with pytest.raises(MediaError, match="no such file"):
        avsseg.segment("missing.mp4")


def windows_of(values: list[list[float]], step: int) -> list[ScoredWindow]:
    scored = []
    for number, probabilities in enumerate(values):
        count = len(probabilities)
        first = number * step
        frames = np.zeros((count, 1, 1, 3), np.uint8)
        times = tuple(first + index + 0.5 for index in range(count))
        window = ClipWindow(first, frames, torch.zeros(count, 1, 96, 64), times)
        heard = np.arange(first, first + count, dtype=np.float32)[:, None]
        scored.append(ScoredWindow(window, np.array(probabilities, np.float32).reshape(count, 1, 1, 1), heard))
    return scored


def test_shared_masks_are_cross_faded() -> None:
    masks = list(blend_windows(windows_of([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0.25, 0.25]], step=3)))
    values = [float(mask.probability[0, 0, 0]) for mask in masks]
    assert values == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1 + (1 / 3) * -0.75, 1 + (2 / 3) * -0.75])
    assert [mask.index for mask in masks] == list(range(8))
    assert [mask.heard.tolist() for mask in masks] == [[k] for k in range(8)]


def test_windows_that_share_nothing_are_left_as_they_are() -> None:
    masks = list(blend_windows(windows_of([[0.1, 0.2], [0.3, 0.4], [0.5]], step=2)))
    assert [float(mask.probability[0, 0, 0]) for mask in masks] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_window_that_shares_more_than_half_still_gives_each_mask_once() -> None:
    masks = list(blend_windows(windows_of([[1, 1, 1, 1]] * 4, step=1)))
    assert [float(mask.probability[0, 0, 0]) for mask in masks] == pytest.approx([1] * 7)


def test_only_masks_that_may_change_are_held() -> None:
    produced: list[int] = []

    def scored():  # type: ignore[no-untyped-def]
        for number, item in enumerate(windows_of([[0] * 5] * 4, step=3)):
            produced.append(number)
            yield item

    blended = blend_windows(scored())
    next(blended)
    assert produced == [0, 1]


def test_kernels_of_convolutions_lie_channels_last(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [load_for(ModelOptions(device="cpu"))]
    monkeypatch.setattr("avsseg.pipeline.segment.MaskTrack", lambda info, model, options, place: loaded.append(model))
    segment(clip, device="cpu")
    assert len(loaded) == 2
    for model in loaded:
        kernels = [m.weight for m in model.model.modules() if isinstance(m, torch.nn.Conv2d)]
        assert any(not kernel.is_contiguous() for kernel in kernels)
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_bf16_is_close_to_fp32(clip: Path, untrained: LoadedModel) -> None:
    fast = list(segment(clip, model=untrained, options=SegmentOptions(size=64, precision="bf16")))
    exact = list(segment(clip, model=untrained, options=SegmentOptions(size=64, precision="fp32")))
    difference = np.abs(fast[1].probability - exact[1].probability)
    assert 0 < difference.max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "least_iou"), [("fp32", 0.999), ("bf16", 0.995), ("fp16", 0.995)])
def test_the_default_weights_mark_on_a_gpu_what_they_mark_on_a_processor(precision: str, least_iou: float) -> None:
    example = Path(__file__).parents[2] / "examples" / "speaking.mp4"
    marked = [
        np.stack([mask.probability > 0.5 for mask in segment(example, device=device, options=options)])
        for device, options in (("cpu", SegmentOptions()), ("cuda", SegmentOptions(precision=precision)))
    ]
    assert marked[0].any()
    assert (marked[0] & marked[1]).sum() / (marked[0] | marked[1]).sum() > least_iou


def test_the_kernels_for_processors_are_refused_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"scan back end cpp does not run on mps\. Use --device cpu or"):
        load_for(ModelOptions(scan_backend="cpp", device="mps", allow_untrained=True))
    assert automatic_backend(torch.device("mps")) == "torch"


def test_an_unusable_scan_back_end_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match="unknown scan back end 'abacus'"):
        load_for(ModelOptions(scan_backend="abacus", allow_untrained=True))


@pytest.mark.parametrize("scan_backend", ["triton", "mamba-ssm"])
def test_a_scan_back_end_of_another_device_is_refused(scan_backend: str) -> None:
    with pytest.raises(UsageError, match=f"scan back end {scan_backend} does not run on cpu. Use --device cuda or"):
        load_for(ModelOptions(scan_backend=scan_backend, device="cpu", allow_untrained=True))
