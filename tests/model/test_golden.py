"""Every stage behind the encoders against golden numbers made by an independent float64 recurrence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from avsseg.model.avs_mamba import AvsMamba, Stages
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.convert import convert_authors_state_dict

GOLDEN = Path(__file__).parents[1] / "data" / "avs_mamba_golden.safetensors"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
BACKBONE_CHANNELS = (8, 12, 16, 20)


class FusionOnly(AvsMamba):
    """The golden file leaves the encoders out."""

    def __init__(self, config: AvsMambaConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self._build_fusion(config, BACKBONE_CHANNELS)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def case(request: pytest.FixtureRequest, golden: dict[str, Tensor]) -> tuple[FusionOnly, Stages, dict[str, Tensor]]:
    values = {name: tensor.to(request.param) for name, tensor in golden.items()}
    model = FusionOnly(AvsMambaConfig(dim=32, state_size=4, upsample="nearest", head_hidden=64))
    parameters = {name.removeprefix("param/"): t for name, t in values.items() if name.startswith("param/")}
    model.load_state_dict(convert_authors_state_dict(parameters))
    model.to(request.param).eval()
    with torch.no_grad():
        stages = model.fuse([values[f"input/backbone.{i}"] for i in range(4)], values["input/audio"])
    return model, stages, values


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE[expected.dtype]


@pytest.mark.parametrize(("index", "stride"), [(0, 8), (1, 16), (2, 32)])
def test_encoder(case, index: int, stride: int) -> None:
    _, stages, values = case
    assert_close(stages.encoded[index], values[f"output/mte.stride{stride}"])


@pytest.mark.parametrize("layer", [0, 1])
def test_decoder(case, layer: int) -> None:
    _, stages, values = case
    assert_close(stages.queries[layer], values[f"output/mad.layer{layer}"])


def test_pyramid(case) -> None:
    _, stages, values = case
    assert_close(stages.mask_feature, values["output/mask_feature"])


@pytest.mark.parametrize(("layer", "name"), [(0, "logits.layer0"), (1, "logits")])
@pytest.mark.parametrize("with_gradients", [True, False], ids=["convolutions", "segment table"])
def test_head(case, layer: int, name: str, with_gradients: bool) -> None:
    model, stages, values = case
    with torch.set_grad_enabled(with_gradients):
        logits = model.head(stages.queries[layer], stages.mask_feature.flatten(0, 1))
    assert_close(logits.detach(), values[f"output/{name}"])
