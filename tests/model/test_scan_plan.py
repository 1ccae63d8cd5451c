from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avsseg.model.backbones.vim import sequence_plan
from avsseg.model.config import TEMPORAL_DIRECTIONS
from avsseg.model.scan_plan import (
    TEMPORAL_ORDERS,
    TokenGrid,
    audio_to_visual_plan,
    flatten_scales,
    frame_plan,
    split_scales,
    temporal_plan,
    visual_to_audio_plan,
)

CPU = torch.device("cpu")
GRID = TokenGrid(3, ((2, 3), (1, 2)))  # T = 3, M = 8


def position(t: int, scale: int, row: int, column: int) -> int:
    return t * 8 + (0 if scale == 0 else 6) + row * GRID.sizes[scale][1] + column


def loops(order: str) -> list[int]:
    """Reads the grid with three plain nested loops, the order's first letter outermost."""
    out = []
    for scale, (h, w) in enumerate(GRID.sizes):
        extent = {"T": 3, "H": h, "W": w}
        for a in range(extent[order[0]]):
            for b in range(extent[order[1]]):
                for c in range(extent[order[2]]):
                    at = dict(zip(order, (a, b, c), strict=True))
                    out.append(position(at["T"], scale, at["H"], at["W"]))
    return out


def test_frame_plan_reverses_the_whole_concatenation() -> None:
    hw = [0, 1, 2, 3, 4, 5, 6, 7]
    wh = [0, 3, 1, 4, 2, 5, 6, 7]
    assert frame_plan(GRID.single_frame, CPU).tolist() == [hw, wh, hw[::-1], wh[::-1]]


@pytest.mark.parametrize("directions", TEMPORAL_DIRECTIONS)
def test_temporal_plan_pairs_each_order_with_its_reverse(directions: int) -> None:
    expected = []
    for order in TEMPORAL_ORDERS[: directions // 2]:
        expected += [loops(order), loops(order)[::-1]]
    assert temporal_plan(GRID, directions, CPU).tolist() == expected


def test_visual_to_audio_plan_keeps_audio_last() -> None:
    audio = [24, 25, 26]
    thw, twh = loops("THW"), loops("TWH")
    assert visual_to_audio_plan(GRID, CPU).tolist() == [
        thw + audio,
        twh + audio,
        thw[::-1] + audio[::-1],
        twh[::-1] + audio[::-1],
    ]


def test_audio_to_visual_plan_keeps_audio_first() -> None:
    audio = [24, 25, 26]
    thw, twh = loops("THW"), loops("TWH")
    assert audio_to_visual_plan(GRID, CPU).tolist() == [
        audio + thw,
        audio + twh,
        audio[::-1] + thw[::-1],
        audio[::-1] + twh[::-1],
    ]


class Devices(TorchDispatchMode):
    """The device types of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.types.add(result.device.type)
        return result


# "meta" stands for a GPU; the cache has no plan of it
@pytest.mark.parametrize(
    "build",
    [
        lambda device: frame_plan(GRID.single_frame, device),
        lambda device: temporal_plan(GRID, 12, device),
        lambda device: visual_to_audio_plan(GRID, device),
        lambda device: audio_to_visual_plan(GRID, device),
        lambda device: sequence_plan(5, device, reverse=True),
    ],
    ids=["frame", "temporal", "visual to audio", "audio to visual", "sequence"],
)
def test_plans_are_made_where_they_are_used(build: Callable[[torch.device], Tensor]) -> None:
    with Devices() as devices:
        build(torch.device("meta"))
    assert devices.types == {"meta"}


def test_flatten_and_split_scales_are_inverse() -> None:
    features = [torch.randn(4, 5, h, w) for h, w in ((4, 6), (2, 3), (1, 2))]
    tokens, grid = flatten_scales(features)
    assert tokens.shape == (4, 24 + 6 + 2, 5)
    assert grid.sizes == ((4, 6), (2, 3), (1, 2))
    for feature, back in zip(features, split_scales(tokens, grid), strict=True):
        assert torch.equal(feature, back)


@pytest.mark.parametrize(
    "make", [frame_plan, visual_to_audio_plan, audio_to_visual_plan, lambda g, d: temporal_plan(g, 2, d)]
)
def test_a_plan_first_made_in_inference_mode_serves_training(make) -> None:
    grid = TokenGrid(1, ((5, 7),))
    with torch.inference_mode():
        make(grid, CPU)
    assert not make(grid, CPU).is_inference()
