"""Mask head: the query against the mask feature, lifted back to C channels, then two convolutions to full size."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig

PIXELS_AT_ONCE = 4096


class Segments(NamedTuple):
    """A piecewise linear function of one scalar: segment m is anchors[m] + slopes[m] * (s - knots[max(m - 1, 0)]).

    knots (H,) ascending, anchors and slopes (H + 1, O).
    """

    knots: Tensor
    anchors: Tensor
    slopes: Tensor


class SimilarityLift(nn.Module):
    """f(s) = W3 ReLU(W2 ReLU(w1 s + b1) + b2) + b3 for one scalar s a pixel: three 1x1 convolutions 1 -> H -> H -> C.

    The first two layers are piecewise linear in s with one knot a hidden unit. Without gradients they are therefore
    read from a table of H + 1 segments (value at a knot, slope), made in float64 from the same weights: exact up to
    rounding, and H multiplications a pixel instead of H^2.
    """

    def __init__(self, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(1, hidden, 1), nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, out_channels, 1)]
        )
        self._segments: Segments | None = None
        self._segments_of: tuple[object, ...] = ()

    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """The three layers."""
        first, second, third = self.layers
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        assert isinstance(third, nn.Conv2d)
        return first, second, third

    def forward(self, similarity: Tensor) -> Tensor:
        """similarity (N, 1, h, w) -> (N, C, h, w)."""
        first, second, third = self.convolutions()
        autocast = torch.is_autocast_enabled(similarity.device.type)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or autocast:
            return third(F.relu(second(F.relu(first(similarity)))))
        N, _, h, w = similarity.shape
        segments = self.segments()
        pixels = similarity.flatten()
        # NaN sorts behind every knot and stays NaN through s - knot
        index = torch.searchsorted(segments.knots, pixels)
        distance = pixels - segments.knots[(index - 1).clamp(min=0)]
        out = pixels.new_empty(pixels.shape[0], third.out_channels)
        for start in range(0, pixels.shape[0], PIXELS_AT_ONCE):
            here = slice(start, start + PIXELS_AT_ONCE)
            rows = index[here]
            hidden = torch.addcmul(segments.anchors[rows], segments.slopes[rows], distance[here, None]).relu_()
            out[here] = F.linear(hidden, third.weight.flatten(1), third.bias)
        return out.view(N, h, w, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def segments(self) -> Segments:
        """The table of the present weights; made again only when they have changed."""
        first, second, _ = self.convolutions()
        sources = [p for p in (first.weight, first.bias, second.weight, second.bias) if p is not None]
        key = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in sources)
        if self._segments is None or self._segments_of != key:
            exact = piecewise_segments(*(p.detach().to("cpu", torch.float64) for p in sources))
            self._segments = Segments(*(table.to(first.weight.device, first.weight.dtype) for table in exact))
            self._segments_of = key
        return self._segments


def piecewise_segments(weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Segments:
    """The segments of s -> weight_2 ReLU(weight_1 s + bias_1) + bias_2.

    weight_1 (H, 1, 1, 1), bias_1 (H,), weight_2 (O, H, 1, 1), bias_2 (O,), as the 1x1 convolutions have them; float64.
    """
    w, b, weight_2 = weight_1.flatten(), bias_1, weight_2.flatten(1)
    live = w != 0
    constant = bias_2 + weight_2[:, ~live] @ b[~live].relu()
    if not live.any():
        flat = torch.zeros(2, weight_2.shape[0], dtype=w.dtype)
        return Segments(torch.zeros(1, dtype=w.dtype), constant.expand(2, -1).clone(), flat)
    knots, order = (-b[live] / w[live]).sort()
    w, b, outgoing = w[live][order], b[live][order], weight_2[:, live][:, order].t()
    # left of all knots the units with a negative weight are on; each knot switches one unit on or off
    leftmost = (outgoing * w.clamp(max=0)[:, None]).sum(0)
    slopes = torch.cat([leftmost[None], leftmost + (outgoing * w.abs()[:, None]).cumsum(0)])
    first = constant + (w * knots[0] + b).relu() @ outgoing
    at_knots = torch.cat([first[None], first + (slopes[1:-1] * knots.diff()[:, None]).cumsum(0)])
    # the segment left of the first knot hangs on that knot too
    return Segments(knots, torch.cat([at_knots[:1], at_knots]), slopes)


class MaskHead(nn.Module):
    """I_m = <F_a', F>, lifted to C channels, plus F, then Conv3x3, bilinear x4, Conv3x3, ReLU, Conv1x1."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        wide, narrow = config.head_channels
        self.lift = SimilarityLift(config.head_hidden, config.dim)
        self.reduce = nn.Conv2d(config.dim, wide, 3, padding=1)
        self.refine = nn.Conv2d(wide, narrow, 3, padding=1)
        self.classify = nn.Conv2d(narrow, config.num_classes, 1, bias=False)

    def forward(self, query: Tensor, mask_feature: Tensor) -> Tensor:
        """query (B, T, C), mask_feature (B * T, C, h_1, w_1) -> logits (B, T, N_class, 4 h_1, 4 w_1)."""
        B, T, _ = query.shape
        similarity = torch.einsum("nc,nchw->nhw", query.flatten(0, 1), mask_feature).unsqueeze(1)
        x = self.reduce(self.lift(similarity) + mask_feature)
        x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        return self.classify(F.relu(self.refine(x))).unflatten(0, (B, T))
