"""Contextual Integration Pyramid, CIP (paper IV-D): from the coarsest scale to the mask feature at stride 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_block import GatedScanBlock
from avsseg.model.scan_plan import TokenGrid, audio_to_visual_plan, temporal_plan

LEVELS = 4


class PyramidLevel(nn.Module):
    """Adapter, Temporal Mamba on this scale alone, A2V with the initial audio features (eq. 18-19)."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        C = config.dim
        self.directions = config.temporal_directions
        self.adapter = nn.Conv2d(C, C, 1, bias=False)
        self.temporal = (
            GatedScanBlock(config, directions=config.temporal_directions) if config.pyramid_temporal else None
        )
        self.audio_to_visual = GatedScanBlock(config, directions=4, audio=True) if config.pyramid_audio else None
        self.smooth = nn.Conv2d(C, C, 3, padding=1, bias=False)

    def context(self, feature: Tensor, audio: Tensor, sounds: int = 1) -> Tensor:
        """feature (B * T, C, h, w), audio (B, T, C) -> (B * T, C, h, w), before the coarser level is added.

        With `sounds` S to a clip feature is (B / S * T, C, h, w): all that does not hear is computed once for the S.
        """
        B, T, C = audio.shape
        h, w = feature.shape[-2:]
        v = self.adapter(feature)
        if self.temporal is None and self.audio_to_visual is None:
            return v if sounds == 1 else v.unflatten(0, (-1, T)).repeat_interleave(sounds, 0).flatten(0, 1)
        tokens = v.permute(0, 2, 3, 1).reshape(B // sounds, T * h * w, C)
        grid = TokenGrid(T, ((h, w),))
        if self.temporal is not None:
            tokens = self.temporal(tokens, grid, temporal_plan(grid, self.directions, tokens.device))
        if sounds > 1:
            tokens = tokens.repeat_interleave(sounds, 0)
        if self.audio_to_visual is not None:
            tokens = self.audio_to_visual(tokens, grid, audio_to_visual_plan(grid, tokens.device), audio)
        return tokens.reshape(B * T, h, w, C).permute(0, 3, 1, 2)


class ContextualIntegrationPyramid(nn.Module):
    """CIP: inputs F_v^1, F_v'^2..4 and F_a, output the mask feature F."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.upsample = config.upsample
        self.levels = nn.ModuleList(PyramidLevel(config) for _ in range(LEVELS))
        self.mask_feature = nn.Conv2d(config.dim, config.dim, 3, padding=1)

    def forward(self, features: Sequence[Tensor], audio: Tensor, sounds: int = 1) -> Tensor:
        """features (B * T, C, h_i, w_i), finest first; audio (B, T, C) -> (B * T, C, h_1, w_1).

        With `sounds` S to a clip, one behind the other in audio, features are (B / S * T, C, h_i, w_i).
        """
        contexts = [level.context(v, audio, sounds) for level, v in zip(self._levels(), features, strict=True)]
        return self._merged(contexts)

    def plain(self, features: Sequence[Tensor]) -> Tensor:
        """What `forward` gives of a pyramid without its temporal and audio parts: each picture alone, without sound.

        features (N, C, h_i, w_i), finest first -> (N, C, h_1, w_1).
        """
        return self._merged([level.adapter(v) for level, v in zip(self._levels(), features, strict=True)])

    def _levels(self) -> Iterator[PyramidLevel]:
        for level in self.levels:
            assert isinstance(level, PyramidLevel)
            yield level

    def _merged(self, contexts: Sequence[Tensor]) -> Tensor:
        previous: Tensor | None = None
        for level, v in zip(reversed(list(self._levels())), reversed(contexts), strict=True):
            if previous is not None:
                aligned = {"align_corners": False} if self.upsample == "bilinear" else {}
                v = v + F.interpolate(previous, size=v.shape[-2:], mode=self.upsample, **aligned)
            previous = F.relu(level.smooth(v))
        assert previous is not None
        return self.mask_feature(previous)
