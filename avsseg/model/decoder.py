"""Modality Aggregation Decoder, MAD (paper IV-C): the audio feature is the query that reads the picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_block import GatedScanBlock
from avsseg.model.scan_plan import TokenGrid, visual_to_audio_plan

SCALES = 3  # F_v'^2..4, visited in this order


class ScaleFusion(nn.Module):
    """Frame-level, then temporal-level V2A at one scale (eq. 11-17)."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.frame = GatedScanBlock(config, directions=4, target="audio", audio=True) if config.decoder_frame else None
        self.temporal = (
            GatedScanBlock(config, directions=4, target="audio", audio=True) if config.decoder_temporal else None
        )

    def forward(self, query: Tensor, visual: Tensor, size: tuple[int, int]) -> Tensor:
        """query (B, T, C), visual (B, T, h * w, C) -> query (B, T, C)."""
        B, T, M, C = visual.shape
        if self.frame is not None:
            grid = TokenGrid(1, (size,))
            plan = visual_to_audio_plan(grid, visual.device)
            query = self.frame(visual.reshape(B * T, M, C), grid, plan, query.reshape(B * T, 1, C)).reshape(B, T, C)
        if self.temporal is not None:
            grid = TokenGrid(T, (size,))
            plan = visual_to_audio_plan(grid, visual.device)
            query = self.temporal(visual.reshape(B, T * M, C), grid, plan, query)
        return query


class ModalityAggregationDecoder(nn.Module):
    """MAD: every layer visits the scales 2, 3, 4; no block is shared."""

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(ScaleFusion(config) for _ in range(SCALES)) for _ in range(config.decoder_layers)
        )

    def forward(self, audio: Tensor, scales: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """audio (B, T, C), scales of (B, T, h_i * w_i, C) -> one query (B, T, C) a layer; F_a itself without layers."""
        queries, query = [], audio
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            for fusion, visual, size in zip(layer, scales, sizes, strict=True):
                query = fusion(query, visual, size)
            queries.append(query)
        return queries or [audio]
