"""What a pixel shows against what is heard, class by class, as a term of the mask's logits. Not in the paper.

A network that learns only from masks has to find out by itself that a bark and a dog belong together. Where the classes
of a dataset are known, its features can be told apart by them in both modalities, and this term says where they meet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# a thing of no listed class must not be ruled out: the logarithm of this, times the weight, is the most it can lose
FLOOR = 0.01


class ClassAgreement(nn.Module):
    """weight * log(A + FLOOR) + offset, with A = sum_k p(pixel is of class k) p(class k sounds) over K classes.

    A pixel is of one class or of none, whose logit is 0; classes sound independently of each other.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.seen_head = nn.Conv2d(dim, classes, 1)
        # small, so that what a model knows otherwise counts from the first step
        self.weight = nn.Parameter(torch.tensor(0.25))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, mask_feature: Tensor, heard: Tensor) -> Tensor:
        """mask_feature (N, C, h, w), heard (N, K) logits -> what it adds to the mask's logits, (N, 1, h, w) float32."""
        of_class = self._seen(mask_feature).softmax(-1)[..., 1:].flatten(1, 2)
        # autocast would round the product to 16 bits, and the logarithm of what is next to 0 needs more
        with torch.autocast(mask_feature.device.type, enabled=False):
            agreed = of_class @ heard.float().sigmoid()[..., None]
        added = self.weight * (agreed + FLOOR).log() + self.offset
        return added.view(-1, 1, *mask_feature.shape[-2:])

    def seen_logits(self, mask_feature: Tensor) -> Tensor:
        """mask_feature (N, C, h, w) -> (N, K + 1, h, w) float32: none of the classes, which is 0, and the classes."""
        return self._seen(mask_feature).movedim(-1, 1)

    def _seen(self, mask_feature: Tensor) -> Tensor:
        """(N, h, w, K + 1): classes last, as a softmax is fastest over."""
        kernel = self.seen_head.weight.flatten(1)
        return F.pad(F.linear(mask_feature.movedim(1, -1), kernel, self.seen_head.bias).float(), (1, 0))
