"""Other textures on the same shapes: a random convolution (RandConv, Xu et al. 2021, arXiv 2007.13003).

Outlines stay where they are, while stripes, dots and colours become others, so that what is learned is the shape.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

KERNELS = (1, 3, 5, 7)
# of what the convolution gives, in parts of the whole range
DEVIATION = 0.25


def retexture(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) after one draw for all of them, mixed with what they were."""
    side = int(rng.choice(KERNELS))
    kernel = torch.from_numpy(rng.standard_normal((3, 3, side, side), np.float32))
    kept = float(rng.uniform())
    before = torch.from_numpy(frames).movedim(-1, 1) / 255 - 0.5
    after = F.conv2d(F.pad(before, [side // 2] * 4, mode="replicate"), kernel)
    deviation, mean = torch.std_mean(after, dim=(0, 2, 3), keepdim=True)
    after = (after - mean) * (DEVIATION / deviation.clamp(min=1e-3))
    mixed = (kept * before + (1 - kept) * after + 0.5).clamp(0, 1)
    return (mixed * 255).round().to(torch.uint8).movedim(1, -1).contiguous().numpy()
