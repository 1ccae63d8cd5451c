"""Mask head: the query against the mask feature, lifted back to C channels, then two convolutions to full size."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig

PIXELS_AT_ONCE = 4096
STRIDE = 4  # of the mask feature


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


def cell_weights() -> Tensor:
    """How the 3x3 kernel of full-size pixels becomes one of cells, STRIDE x STRIDE of which lie in each: bilinear
    upsampling and convolution are both linear. (9, STRIDE^2 * 9): from kernel taps to the taps of each pixel's kernel.
    """
    # pixel in the cell, tap, neighbouring cell - 1; a model that is built on meta has no other place to get them from
    along = torch.zeros(STRIDE, 3, 3, device="cpu")
    for pixel in range(STRIDE):
        for tap in range(3):
            position = (pixel + tap - 0.5) / STRIDE + 0.5  # 0 is the centre of the neighbour before, 1 the cell's own
            along[pixel, tap] = (1 - (position - torch.arange(3.0, device="cpu")).abs()).clamp(min=0)
    return torch.einsum("pkd,qle->klpqde", along, along).reshape(9, -1)


class MaskHead(nn.Module):
    """I_m = <F_a', F>, lifted to C channels, plus F, then Conv3x3, bilinear x4, Conv3x3, ReLU, Conv1x1."""

    cell_weights: Tensor

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        wide, narrow = config.head_channels
        self.lift = SimilarityLift(config.head_hidden, config.dim)
        self.reduce = nn.Conv2d(config.dim, wide, 3, padding=1)
        self.refine = nn.Conv2d(wide, narrow, 3, padding=1)
        self.classify = nn.Conv2d(narrow, config.num_classes, 1, bias=False)
        self.register_buffer("cell_weights", cell_weights(), persistent=False)

    def forward(self, query: Tensor, mask_feature: Tensor) -> Tensor:
        """query (B, T, C), mask_feature (B * T, C, h_1, w_1) -> logits (B, T, N_class, STRIDE h_1, STRIDE w_1)."""
        B, T, _ = query.shape
        similarity = torch.einsum("nc,nchw->nhw", query.flatten(0, 1), mask_feature).unsqueeze(1)
        x = self.reduce(self.lift(similarity) + mask_feature)
        return self.full_size(x).unflatten(0, (B, T))

    def full_size(self, x: Tensor) -> Tensor:
        """The last three layers: (N, c, h, w) -> (N, N_class, STRIDE h, STRIDE w).

        With gradients, without the upsampled x: every pixel of a cell has a 3x3 kernel over cells of its own. Only the
        outermost pixels see the zeros around the picture, which cells do not have: they are taken from what is
        upsampled there. Without gradients a CPU takes the layers as they are written, picture by picture: one
        upsampled picture stays in the processor's cache, where it is the faster form (benchmarks/mask_head.py).
        """
        N, _, h, w = x.shape
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return torch.cat([self._of_pixels(picture, (STRIDE * h, STRIDE * w)) for picture in x.split(1)])
        refine = self.refine
        O, I = refine.weight.shape[:2]  # noqa: E741
        assert refine.bias is not None
        with torch.autocast(x.device.type, enabled=False):  # no rounding but the convolution's own
            kernels = refine.weight.flatten(2) @ self.cell_weights
        kernels = kernels.view(O, I, STRIDE**2, 9).transpose(1, 2).reshape(-1, I, 3, 3)
        around = F.pad(x, (1, 1, 1, 1), mode="replicate")
        pixels = F.relu(F.conv2d(around, kernels, refine.bias.repeat_interleave(STRIDE**2)))
        logits = self.classify(pixels.reshape(N, O, STRIDE**2 * h, w)).reshape(N, -1, h, w)
        logits = F.pixel_shuffle(logits, STRIDE)
        # the two outermost rows and columns that are upsampled lie beyond the last centre: each is one row of x, twice
        rows = [self._of_pixels(x[..., at, None, :], (2, STRIDE * w)) for at in (0, -1)]
        columns = [self._of_pixels(x[..., at, None], (STRIDE * h, 2)) for at in (0, -1)]
        logits = torch.cat([rows[0][..., :1, :], logits[..., 1:-1, :], rows[1][..., 1:, :]], dim=-2)
        return torch.cat([columns[0][..., :1], logits[..., 1:-1], columns[1][..., 1:]], dim=-1)

    def _of_pixels(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The last three layers as they are written, of x upsampled to `size`."""
        logits: Tensor = self.classify(F.relu(self.refine(F.interpolate(x, size=size, mode="bilinear"))))
        return logits
