"""The weights that come with the package: their masks follow the sound, on scenes that training never saw."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from avsseg.data.synthetic import render_pictures, sounding_masks, sounding_seconds
from avsseg.data.synthetic_dataset import two_in_turn
from avsseg.pipeline.segment import segment
from avsseg.weights import load_model
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

SCENES = 20
REPOSITORY = Path(__file__).parents[2]
CHECK = REPOSITORY / "weights" / "check_rendered.py"
EXAMPLE, EXAMPLE_SEED, EXAMPLE_S = REPOSITORY / "examples" / "two-sources.mp4", 1, 8


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_rendered", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcomes(check: ModuleType) -> list[Any]:
    model = load_model(DEFAULT_MODEL).model
    return [check.outcome(model, seed) for seed in range(SCENES)]


def test_the_default_model_is_shipped_trained() -> None:
    assert DEFAULT_MODEL in shipped_weights()
    assert load_model(DEFAULT_MODEL).trained


def test_without_sound_there_is_no_mask(check: ModuleType, outcomes: list[Any]) -> None:
    assert sum(int(o.heard.sum()) for o in outcomes) > 0
    assert check.summary(outcomes)["muted_share"] < 0.05


def test_with_swapped_sounds_the_mask_moves_to_the_other_object(outcomes: list[Any]) -> None:
    assert sum(o.moves for o in outcomes) >= 0.8 * SCENES


def test_the_masks_are_on_the_sounding_objects(check: ModuleType, outcomes: list[Any]) -> None:
    assert check.summary(outcomes)["M_J"] > 0.4


def test_the_mask_follows_the_sound_on_the_example() -> None:
    model = load_model(DEFAULT_MODEL)
    with segment(EXAMPLE, model=model) as track:
        masks = np.stack([mask.probability[0] > 0.5 for mask in track])
    side = model.input_size
    description, events = two_in_turn(EXAMPLE_SEED, split="example", seconds=EXAMPLE_S, aspect=4 / 3)
    _, swapped = two_in_turn(EXAMPLE_SEED, split="example", seconds=EXAMPLE_S, aspect=4 / 3, swapped=True)
    _, owner = render_pictures(description, side, side, [t + 0.5 for t in range(EXAMPLE_S)])
    sounding = sounding_masks(owner, sounding_seconds(description, events))
    silent = sounding_masks(owner, sounding_seconds(description, swapped))
    assert len(masks) == EXAMPLE_S
    for mask, on, off in zip(masks, sounding, silent, strict=True):
        assert (mask & on).sum() > 0.3 * on.sum()
        assert (mask & off).sum() < 0.2 * off.sum()
