"""The recipe of the default weights: what it does to finished weights."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from avsseg.errors import AvssegError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import preset
from avsseg.training.checkpoints import save_checkpoint
from avsseg.training.objectives import JointObjective
from avsseg.weights import load_model
from avsseg.weights.registry import shipped_weights


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    return importlib.import_module("train_composed")


def test_a_shift_reaches_every_logit_alike(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    model = AvsMamba(preset("avs-mamba-tiny", input_size=32)).eval()
    channel = 3
    with torch.no_grad():
        model.head.refine.weight[channel] = 0
        model.head.refine.bias[channel] = -1  # never on
        inputs = (torch.randn(1, 2, 3, 32, 32), torch.randn(1, 2, 1, 96, 64))
        model.head.refine.bias[:channel] += 100  # on wherever one looks
        before = model(*inputs)
        clips = [(torch.randint(0, 256, (2, 32, 32, 3)), torch.randn(2, 1, 96, 64), torch.zeros(2, 32, 32))]
        assert recipe.idle_channel(model, clips) == channel
        recipe.shift_logits(model, 0.75, channel)
        torch.testing.assert_close(model(*inputs), before + 0.75)


def test_a_channel_that_is_on_away_from_the_edges_is_not_idle(recipe: ModuleType) -> None:
    model = AvsMamba(preset("avs-mamba-tiny", input_size=32)).eval()
    inside = torch.zeros(2, 24, 8, 8)
    inside[:, :, 3:5, 3:5] = 1
    model.head.reduce.register_forward_hook(lambda *_: inside)
    with torch.no_grad():
        model.head.refine.weight.zero_()
        model.head.refine.bias.fill_(100)  # on wherever one looks, but for two
        model.head.refine.bias[4] = 0
        model.head.refine.weight[4] = 1  # on in the middle alone
        model.head.refine.bias[6] = 1e-3
        model.head.classify.weight.fill_(1)
    clips = [(torch.randint(0, 256, (2, 32, 32, 3)), torch.randn(2, 1, 96, 64), torch.zeros(2, 32, 32))]
    assert recipe.idle_channel(model, clips) == 6


def test_shifts_are_compared_as_they_would_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    check = importlib.import_module("check_composed")
    logits = torch.linspace(-9, 9, 50)
    outcome = check.Outcome(None, None, None, None, logits.sigmoid().numpy(), None)
    found = torch.from_numpy(check.shifted(outcome, 0.75).probability)
    torch.testing.assert_close(found, (logits + 0.75).sigmoid(), atol=1e-5, rtol=1e-4)


def test_a_head_without_an_idle_channel_is_not_shifted(recipe: ModuleType) -> None:
    model = AvsMamba(preset("avs-mamba-tiny", input_size=32)).eval()
    with torch.no_grad():
        assert model.head.refine.bias is not None
        model.head.refine.bias += 100
    clips = [(torch.randint(0, 256, (2, 32, 32, 3)), torch.randn(2, 1, 96, 64), torch.zeros(2, 32, 32))]
    with pytest.raises(SystemExit, match="no channel of the head is idle"):
        recipe.idle_channel(model, clips)


def test_a_blend_is_the_mean(recipe: ModuleType) -> None:
    path = shipped_weights()["avs-mamba-tiny"].path
    finished = load_model(str(path)).model.state_dict()
    torch.manual_seed(0)
    model = AvsMamba(preset("avs-mamba-tiny"))
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe.blend(model, str(path))
    for name, tensor in model.state_dict().items():
        mean = (own[name] + finished[name]) / 2 if tensor.is_floating_point() else own[name]
        torch.testing.assert_close(tensor, mean)


def test_the_whole_of_finished_weights_or_their_fusion_alone(recipe: ModuleType) -> None:
    path = shipped_weights()["avs-mamba-tiny"].path
    finished = load_model(str(path)).model.state_dict()
    torch.manual_seed(0)
    joint = JointObjective(AvsMamba(preset("avs-mamba-tiny")), seen=2, heard=2, foreground_weight=1.0)
    random = {name: tensor.clone() for name, tensor in joint.model.state_dict().items()}
    recipe.take_fusion(joint.model, str(path))
    for name, tensor in joint.model.state_dict().items():
        encoder = name.startswith(("visual_backbone.", "audio_encoder."))
        assert torch.equal(tensor, random[name] if encoder else finished[name])
    recipe.start(joint, "joint", Namespace(whole=True, start_from=str(path)))
    assert all(torch.equal(tensor, finished[name]) for name, tensor in joint.model.state_dict().items())


def test_the_whole_model_goes_on_from_the_plain_one(recipe: ModuleType, tmp_path: Path) -> None:
    def objective() -> JointObjective:
        return JointObjective(AvsMamba(preset("avs-mamba-tiny")), seen=2, heard=2, foreground_weight=1.0)

    plain = objective()
    plain.model.rest_blocks()
    (tmp_path / "plain").mkdir()
    average = {f"objective.{name}": tensor for name, tensor in plain.state_dict().items()}
    save_checkpoint(tmp_path / "plain" / "last.pt", {"average": average})
    joint = objective()
    recipe.start(joint, "joint", Namespace(whole=False, mute=False, folder=tmp_path, start_from=None))
    assert not joint.model.blocks_rest
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in joint.state_dict().items())
    # what was trained without sound goes on from what was, and another start that is named counts
    for options in (
        Namespace(whole=False, mute=True, folder=tmp_path, start_from=None),
        Namespace(whole=False, mute=False, folder=tmp_path, start_from="avs-mamba-tiny"),
    ):
        with pytest.raises(AvssegError, match="visual"):
            recipe.start(objective(), "joint", options)
