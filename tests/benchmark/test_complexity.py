"""Counts of operations against sums that are written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.benchmark.complexity import complexity, counted_scans, scan_flops
from avsseg.benchmark.models import random_clips
from avsseg.benchmark.options import BenchOptions, model_config
from avsseg.errors import UsageError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.ops.selective_scan import available_backends, selective_scan, set_default_backend

T, SIDE = 2, 64


@pytest.fixture(scope="module")
def encoder_only() -> AvsMamba:
    """One encoder layer and nothing else that scans: C 32, D 64, N 4, R 2."""
    return AvsMamba(
        AvsMambaConfig(
            backbone="resnet18_slim",
            audio_encoder="compact",
            dim=32,
            state_size=4,
            encoder_layers=1,
            decoder_layers=0,
            pyramid_temporal=False,
            pyramid_audio=False,
            head_hidden=8,
            head_channels=(8, 4),
        )
    ).eval()


def test_the_scans_of_a_model_are_those_of_its_plans(encoder_only: AvsMamba) -> None:
    counts = complexity(encoder_only, *random_clips(1, SIDE, T, torch.device("cpu")))
    tokens = 8 * 8 + 4 * 4 + 2 * 2
    frame = T * 4 * tokens * 64 * (9 * 4 + 1 + 2 * 2)  # VSS block: each frame in 4 directions
    clip = 8 * T * tokens * 64 * (9 * 4 + 1 + 2 * 2)  # Temporal Mamba: the clip in 8
    assert counts.scan_flops == frame + clip
    smaller, larger = (
        complexity(encoder_only, *random_clips(1, side, T, torch.device("cpu"))) for side in (SIDE // 2, 2 * SIDE)
    )
    assert larger.scan_flops == 4 * counts.scan_flops
    # what grows grows with the area: the sound stays as it is
    assert larger.flops - counts.flops == pytest.approx(4 * (counts.flops - smaller.flops))
    assert counts.parameters == sum(p.numel() for p in encoder_only.parameters())
    assert 0 < counts.backbone_parameters < counts.parameters


def test_the_count_does_not_depend_on_the_back_end(encoder_only: AvsMamba) -> None:
    clip = random_clips(1, SIDE, T, torch.device("cpu"))
    counts = []
    try:
        for name in [name for name in ("cpp", "torch") if not available_backends()[name]]:
            set_default_backend(name)
            counts.append(complexity(encoder_only, *clip))
    finally:
        set_default_backend("auto")
    assert len(set(counts)) == 1


def test_half_precision_counts_the_convolutions_that_float32_reads_from_a_table(encoder_only: AvsMamba) -> None:
    clip = random_clips(1, SIDE, T, torch.device("cpu"))
    exact, half = complexity(encoder_only, *clip), complexity(encoder_only, *clip, "bf16")
    # 1 -> 8 -> 8 -> 32 channels instead of only the last, on each pixel at a quarter of the side
    cells = T * (SIDE // 4) ** 2
    assert half.flops - exact.flops == 2 * cells * (8 + 8 * 8)
    assert half.scan_flops == exact.scan_flops


class Attention(nn.Module):
    """One attention of 6 queries and keys of width 4, and one product of (6, 4) by (4, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_backbone = nn.Linear(4, 3, bias=False)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Tensor:
        tokens = torch.ones(1, 1, 6, 4)
        return self.visual_backbone(F.scaled_dot_product_attention(tokens, tokens, tokens))


def test_attention_is_counted() -> None:
    counts = complexity(Attention(), *random_clips(1, 32, 1, torch.device("cpu")))  # type: ignore[arg-type]
    assert counts.flops == 2 * (6 * 6 * 4) * 2 + 2 * 6 * 4 * 3
    assert (counts.parameters, counts.scan_flops) == (12, 0)


def test_scans_work_again_after_counting() -> None:
    problem = [
        *(torch.ones(1, 3, 2), torch.arange(3)[None], torch.ones(1, 1 + 2 * 2, 2), torch.ones(1, 2, 1)),
        *(torch.zeros(1, 2), torch.zeros(2, 2), torch.ones(2)),
    ]
    before = selective_scan(*problem)
    with counted_scans() as counts:
        assert not selective_scan(*problem, output_from=1).any()
    assert counts == [scan_flops(1, 1, 3, 2, 2, 1)]
    assert torch.equal(selective_scan(*problem), before)
    assert before.any()


def test_a_backbone_goes_into_the_papers_model() -> None:
    assert model_config("avs-mamba-tiny").dim == 64
    assert model_config("vmamba-t") == AvsMambaConfig(backbone="vmamba-tiny-s1l8")
    with pytest.raises(UsageError, match=r"'vgg' is neither a model \(avs-mamba-.*nor a visual backbone \(pvt_v2_b0"):
        BenchOptions(models=("avs-mamba-tiny", "vgg"))
