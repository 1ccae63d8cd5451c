"""Scan plans: in which order the tokens of a clip are read, as index vectors over one token table.

A token table holds the T frames of a clip one after the other; within a frame its scales one after the other, within a
scale rows, then columns: position = t * M + offset(scale) + row * w + column, M = sum of h_i w_i. Audio tokens, where
there are any, stand behind all T * M visual ones. A plan (K, L) lists for each of the K directions the table positions
in reading order, so that no permuted copy of the tokens is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

# Table VII of the paper: K directions are the first K / 2 of these orders, each forwards and backwards. The last letter
# runs fastest: THW reads frame after frame, HWT reads every position's T frames in a row.
TEMPORAL_ORDERS = ("THW", "TWH", "HWT", "WHT", "HTW", "WTH")


def cached_plan(build: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`build`, whose results are kept for the next call with equal arguments.

    One made first under `torch.inference_mode` must still serve a later training step, so all are built outside of it.
    While `torch.compile` or `torch.export` traces, nothing is kept: its tensors hold no values.
    """
    cached: Callable[P, Tensor] = lru_cache(maxsize=256)(torch.inference_mode(False)(build))  # type: ignore[assignment]

    @wraps(build)
    def plan(*arguments: P.args, **options: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling():
            return build(*arguments, **options)
        return cached(*arguments, **options)

    return plan


@dataclass(frozen=True)
class TokenGrid:
    """The visual part of a token table: T frames, each with one or more scales of (h, w) tokens."""

    frames: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def frame_tokens(self) -> int:
        """M, the visual tokens of one frame."""
        return sum(h * w for h, w in self.sizes)

    @property
    def tokens(self) -> int:
        """T * M, the visual tokens of the clip."""
        return self.frames * self.frame_tokens

    @property
    def single_frame(self) -> TokenGrid:
        """The same scales with T = 1, for scans that stay inside a frame."""
        return TokenGrid(1, self.sizes)


def visual_order(grid: TokenGrid, order: str, device: torch.device) -> Tensor:
    """Table positions (T * M,) of the visual tokens in one order; one scale over the whole clip, then the next.

    Made on the device: a compiled graph makes them at every call, and a copy from the CPU would wait for the GPU.
    """
    table = torch.arange(grid.tokens, dtype=torch.int32, device=device).view(grid.frames, grid.frame_tokens)
    axes = ["THW".index(letter) for letter in order]
    parts, offset = [], 0
    for h, w in grid.sizes:
        scale = table[:, offset : offset + h * w].reshape(grid.frames, h, w)
        parts.append(scale.permute(axes).flatten())
        offset += h * w
    return torch.cat(parts)


@cached_plan
def frame_plan(grid: TokenGrid, device: torch.device) -> Tensor:
    """VSS block (eq. 5-7): HW, WH, then both reversed. (4, M) for a grid of one frame."""
    hw, wh = visual_order(grid, "THW", device), visual_order(grid, "TWH", device)
    return torch.stack([hw, wh, hw.flip(0), wh.flip(0)])


@cached_plan
def temporal_plan(grid: TokenGrid, directions: int, device: torch.device) -> Tensor:
    """Temporal Mamba block (eq. 8-10, Table VII): THW+, THW-, TWH+, TWH-, HWT+, ... (K, T * M)."""
    orders = [visual_order(grid, order, device) for order in TEMPORAL_ORDERS[: directions // 2]]
    return torch.stack([direction for order in orders for direction in (order, order.flip(0))])


@cached_plan
def visual_to_audio_plan(grid: TokenGrid, device: torch.device) -> Tensor:
    """V2A (eq. 13-17): THW, TWH, then the visual and the audio part each reversed; audio at the END. (4, T * M + T).

    With a grid of one frame this is the frame level: HW, WH, HW-, WH- and the frame's single audio token.
    Reversing the whole sequence would put the audio first, where a causal scan has seen nothing of the picture.
    """
    audio = torch.arange(grid.tokens, grid.tokens + grid.frames, dtype=torch.int32, device=device)
    thw, twh = visual_order(grid, "THW", device), visual_order(grid, "TWH", device)
    return torch.stack(
        [
            torch.cat([thw, audio]),
            torch.cat([twh, audio]),
            torch.cat([thw.flip(0), audio.flip(0)]),
            torch.cat([twh.flip(0), audio.flip(0)]),
        ]
    )


@cached_plan
def audio_to_visual_plan(grid: TokenGrid, device: torch.device) -> Tensor:
    """A2V (eq. 18-19): the T audio tokens AHEAD of the visual ones, THW, TWH, THW-, TWH- (both parts reversed)."""
    audio = torch.arange(grid.tokens, grid.tokens + grid.frames, dtype=torch.int32, device=device)
    thw, twh = visual_order(grid, "THW", device), visual_order(grid, "TWH", device)
    return torch.stack(
        [
            torch.cat([audio, thw]),
            torch.cat([audio, twh]),
            torch.cat([audio.flip(0), thw.flip(0)]),
            torch.cat([audio.flip(0), twh.flip(0)]),
        ]
    )


def flatten_scales(features: Sequence[Tensor]) -> tuple[Tensor, TokenGrid]:
    """Joins the scales (N, C, h_i, w_i) of N frames to one table (N, M, C) and its one-frame grid."""
    tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
    return tokens, TokenGrid(1, tuple((feature.shape[2], feature.shape[3]) for feature in features))


def split_scales(tokens: Tensor, grid: TokenGrid) -> list[Tensor]:
    """Undoes `flatten_scales`: (N, M, C) to one (N, C, h_i, w_i) view a scale, in channels-last memory order."""
    parts = tokens.split([h * w for h, w in grid.sizes], dim=1)
    return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, grid.sizes, strict=True)]
