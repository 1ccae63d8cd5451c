from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.convert import convert_authors_name, convert_authors_state_dict

GOLDEN = Path(__file__).parents[1] / "data" / "avs_mamba_golden.safetensors"


def authors_state_dict() -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("param/")]  # noqa: SIM118
        return {name.removeprefix("param/"): file.get_tensor(name) for name in names}


def test_a_whole_checkpoint_fills_the_model_exactly() -> None:
    config = AvsMambaConfig(backbone="pvt_v2_b0", dim=32, state_size=4, head_hidden=64)
    with torch.device("meta"):
        model = AvsMamba(config)
    theirs = authors_state_dict()
    # the golden file leaves the encoders out and has narrow stand-ins for the backbone's channels
    theirs |= {f"input_proj.{i}.0.weight": torch.zeros(32, c, 1, 1) for i, c in enumerate((32, 64, 160, 256))}
    for ours, prefix in (("visual_backbone", "vision_backbone"), ("audio_encoder", "audio_backbone")):
        theirs |= {f"{prefix}.{k}": torch.zeros(v.shape) for k, v in getattr(model, ours).state_dict().items()}
    theirs |= {"vision_backbone.head.weight": torch.zeros(3), "query_embed.weight": torch.zeros(5)}
    theirs |= {"mamba_decoder_block.0.0.norm_v.weight": torch.zeros(32)}
    converted = convert_authors_state_dict(theirs)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_finest_level_gets_the_stride_8_temporal_mamba() -> None:
    theirs = authors_state_dict()
    ours = convert_authors_state_dict(theirs)
    used = theirs["cmfpn.self_attns.2.mamba_block.A_logs"]
    assert torch.equal(ours["pyramid.levels.0.temporal.scan.A_logs"], used)
    assert torch.equal(ours["pyramid.levels.1.temporal.scan.A_logs"], used)
    assert not torch.equal(theirs["cmfpn.self_attns.3.mamba_block.A_logs"], used)


def test_unknown_names_are_refused_by_name() -> None:
    with pytest.raises(KeyError, match=r"mamba_encoder\.0\.surprise"):
        convert_authors_name("mamba_encoder.0.surprise.weight")
