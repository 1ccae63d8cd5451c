from __future__ import annotations

import numpy as np
import pytest
import torch

from avsseg.writers.labels import label_map


def upsampled(probability: np.ndarray, width: int, height: int) -> torch.Tensor:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(probability)[None].double(), (height, width), mode="bilinear"
    )
    return resized[0]


@pytest.mark.parametrize(("width", "height"), [(160, 90), (91, 33), (16, 16), (1920, 1080)])
def test_one_class_is_thresholded_after_bilinear_upsampling(width: int, height: int) -> None:
    probability = np.random.default_rng(0).random((1, 16, 16), dtype=np.float32)
    labels = label_map(probability, width, height, 0.6)
    expected = upsampled(probability, width, height)[0]
    clear = (expected - 0.6).abs() > 1e-5  # on the threshold itself, rounding decides
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels[clear], (expected > 0.6)[clear].numpy())


def test_several_classes_are_compared_after_bilinear_upsampling() -> None:
    probability = np.random.default_rng(1).dirichlet(np.ones(5), (12, 16)).transpose(2, 0, 1).astype(np.float32)
    labels = label_map(probability, 131, 77, 0.5)
    best, second = upsampled(probability, 131, 77).topk(2, dim=0).values
    clear = (best - second) > 1e-5
    assert np.array_equal(labels[clear], upsampled(probability, 131, 77).argmax(dim=0)[clear].numpy())
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}


def test_a_display_smaller_than_the_mask_keeps_what_fills_it() -> None:
    probability = np.zeros((1, 64, 64), np.float32)
    probability[:, :, 32:] = 1.0
    labels = label_map(probability, 4, 2, 0.5)
    assert labels.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
