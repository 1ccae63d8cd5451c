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
from avsseg.training.checkpoints import save_checkpoint
from avsseg.training.objectives import AudioObjective, JointObjective, VisualObjective
from avsseg.weights import load_model
from avsseg.weights.registry import shipped_weights


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    return importlib.import_module("train_composed")


def test_shifts_are_compared_as_they_would_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "weights"))
    check = importlib.import_module("check_composed")
    logits = torch.linspace(-9, 9, 50)
    outcome = check.Outcome(None, None, None, None, logits.sigmoid().numpy(), None)
    found = torch.from_numpy(check.shifted(outcome, 0.75).probability)
    torch.testing.assert_close(found, (logits + 0.75).sigmoid(), atol=1e-5, rtol=1e-4)


def test_a_blend_is_the_mean(recipe: ModuleType) -> None:
    path = shipped_weights()["avs-mamba-tiny"].path
    finished = load_model(str(path)).model.state_dict()
    torch.manual_seed(0)
    model = AvsMamba(recipe.config(3))  # told classes of its own, of which there is no mean
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe.blend(model, str(path))
    for name, tensor in model.state_dict().items():
        theirs = finished.get(name)
        shared = theirs is not None and theirs.shape == tensor.shape and tensor.is_floating_point()
        mean = (own[name] + finished[name]) / 2 if shared else own[name]
        torch.testing.assert_close(tensor, mean)


def objective(recipe: ModuleType, audio_encoder: str = "compact") -> JointObjective:
    return JointObjective(AvsMamba(recipe.config(3, audio_encoder)), foreground_weight=1.0)


def options(folder: Path, **changes: object) -> Namespace:
    return Namespace(**{"whole": False, "mute": False, "folder": folder, "start_from": None, **changes})


def keep_encoder(folder: Path, stage: str, trained: VisualObjective | AudioObjective) -> None:
    (folder / stage).mkdir()
    average = {f"objective.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_checkpoint(folder / stage / "last.pt", {"average": average})


def test_what_no_stage_learned_comes_from_the_weights_that_are_named(recipe: ModuleType, tmp_path: Path) -> None:
    path = str(shipped_weights()["avs-mamba-tiny"].path)
    given = load_model(path).model.state_dict()
    torch.manual_seed(0)
    whole = objective(recipe, "yamnet")
    recipe.start(whole, "joint", options(tmp_path, whole=True, start_from=path))
    learned = AvsMamba(recipe.config(3, "yamnet"))
    keep_encoder(tmp_path, "visual", VisualObjective(learned.visual_backbone, learned.channels, 3, 1.0))
    seeing = objective(recipe, "yamnet")
    recipe.start(seeing, "joint", options(tmp_path, start_from=path))
    with pytest.raises(AvssegError, match="has another audio encoder, and stage audio was not run"):
        recipe.start(objective(recipe), "joint", options(tmp_path, start_from=path))
    classes = ("heard_head.", "agreement.")  # of others than these two
    for name, tensor in whole.model.state_dict().items():
        if not name.startswith(classes):
            assert torch.equal(tensor, given[name])
            own = name.startswith("visual_backbone.")
            expected = learned.state_dict()[name] if own else given[name]
            assert torch.equal(seeing.model.state_dict()[name], expected)


def test_encoders_that_no_stage_learned_are_asked_for(recipe: ModuleType, tmp_path: Path) -> None:
    learned = AvsMamba(recipe.config(3))
    audio = AudioObjective(learned.audio_encoder, 2)
    keep_encoder(tmp_path, "audio", audio)
    with pytest.raises(AvssegError, match="visual"):
        recipe.start(objective(recipe), "joint", options(tmp_path))
    keep_encoder(tmp_path, "visual", VisualObjective(learned.visual_backbone, learned.channels, 3, 1.0))
    joint = objective(recipe)
    recipe.start(joint, "joint", options(tmp_path))
    assert joint.model.heard_head is not None
    assert torch.equal(joint.model.heard_head.weight, audio.head.weight)
    for part in ("visual_backbone", "audio_encoder"):
        ours, theirs = (model.get_submodule(part).state_dict() for model in (joint.model, learned))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_whole_model_goes_on_from_the_plain_one(recipe: ModuleType, tmp_path: Path) -> None:
    plain = objective(recipe)
    plain.model.rest_blocks()
    (tmp_path / "plain").mkdir()
    average = {f"objective.{name}": tensor for name, tensor in plain.state_dict().items()}
    save_checkpoint(tmp_path / "plain" / "last.pt", {"average": average})
    joint = objective(recipe)
    recipe.start(joint, "joint", options(tmp_path))
    assert not joint.model.blocks_rest
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in joint.state_dict().items())
    # what was trained without sound goes on from what was
    with pytest.raises(AvssegError, match="visual"):
        recipe.start(objective(recipe), "joint", options(tmp_path, mute=True))
