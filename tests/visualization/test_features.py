"""Features as the model has them, and their PCA against a plain one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from avsseg.media.probe import probe
from avsseg.media.windows import clip_windows
from avsseg.model.avs_mamba import normalise
from avsseg.pipeline.options import SegmentOptions
from avsseg.visualization.features import RANGE_DEVIATIONS, FeatureMoments, FeatureTrack
from avsseg.weights import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded(untrained_file: Path) -> LoadedModel:
    return load_model(untrained_file, allow_untrained=True)


@torch.inference_mode()
def test_features_are_what_enters_and_leaves_the_pyramid(clip: Path, loaded: LoadedModel) -> None:
    options = SegmentOptions(size=40, window=3, overlap=0)
    with closing(FeatureTrack(probe(clip), loaded, options)) as track:
        features = list(track)
    assert [f.index for f in features] == [0, 1, 2]
    assert [f.timestamp_s for f in features] == [0.5, 1.5, 2.5]
    with clip_windows(probe(clip), size=40, window=3) as windows:
        window = next(windows)
    pictures = torch.nn.functional.pad(normalise(torch.from_numpy(window.frames)), (0, 24, 0, 24))
    model = loaded.model
    scales = model.visual_backbone(pictures)
    before = model.visual_projections[0](scales[0])
    stages = model.fuse([scale[None] for scale in scales], model.audio_encoder(window.log_mel)[None])
    for t, found in enumerate(features):
        assert found.before.shape == found.after.shape == (32, 10, 10)  # 64 px padded / 4 = 16, of which 10 are picture
        np.testing.assert_allclose(found.before, before[t, :, :10, :10], atol=1e-4)
        np.testing.assert_allclose(found.after, stages.mask_feature[0, t, :, :10, :10], atol=1e-4)
    assert not model.pyramid._forward_hooks


def test_frames_that_windows_share_come_once(clip: Path, loaded: LoadedModel) -> None:
    with closing(FeatureTrack(probe(clip), loaded, SegmentOptions(size=32, window=2, overlap=1))) as track:
        assert [f.index for f in track] == [0, 1, 2]


def test_a_frame_that_is_kept_does_not_keep_its_window(clip: Path, loaded: LoadedModel) -> None:
    with closing(FeatureTrack(probe(clip), loaded, SegmentOptions(size=32, window=2, overlap=0))) as track:
        features = next(track)
    assert features.before.base is None
    assert features.after.base is None


def test_colours_are_the_principal_components_of_all_maps_together() -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(6, 6)) * np.array([5.0, 3.0, 2.0, 0.3, 0.2, 0.1])
    maps = [(mixing @ random.normal(size=(6, 40)) + 7).reshape(6, 5, 8).astype(np.float32) for _ in range(3)]
    moments = FeatureMoments()
    for feature in maps:
        moments.add(feature)
    colours = moments.colours()
    pixels = np.concatenate([feature.reshape(6, -1) for feature in maps], axis=1).astype(np.float64)
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    vectors, singular, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(colours.components @ vectors[:, :3]), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(colours.deviations, singular[:3] / np.sqrt(pixels.shape[1]), rtol=1e-6)
    strongest = np.abs(colours.components).argmax(axis=1)
    assert (colours.components[np.arange(3), strongest] > 0).all()


def test_a_colour_means_the_same_in_every_map_and_spans_the_range() -> None:
    random = np.random.default_rng(1)
    moments = FeatureMoments()
    for _ in range(2):
        moments.add(random.normal(size=(4, 20, 20)).astype(np.float32))
    colours = moments.colours()
    here = np.zeros((4, 1, 3), np.float32)
    reach = RANGE_DEVIATIONS * colours.deviations[0] * colours.components[0]
    here[:, 0] = np.stack([colours.mean - reach, colours.mean, colours.mean + 9 * reach], axis=1)
    painted = colours.paint(here)
    assert painted.shape == (1, 3, 3)
    assert painted[0, [0, 2], 0].tolist() == [0, 255]  # the first component is red
    assert np.abs(painted[0, 1].astype(int) - 128).max() <= 1
    elsewhere = np.concatenate([here, here + 1], axis=2)
    assert (colours.paint(elsewhere)[:, :3] == painted).all()


def test_maps_without_any_difference_are_grey() -> None:
    moments = FeatureMoments()
    moments.add(np.full((4, 2, 2), 3, np.float32))
    assert (np.abs(moments.colours().paint(np.full((4, 2, 2), 3, np.float32)).astype(int) - 128) <= 1).all()
