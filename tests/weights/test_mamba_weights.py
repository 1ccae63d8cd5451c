"""VMamba's and Vim's files: told from their names, loaded, converted. The values are made up, names and shapes not."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avsseg.errors import WeightsError
from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.vim import VIM
from avsseg.model.backbones.vmamba import VMAMBA
from avsseg.weights.conversion import convert_file
from avsseg.weights.official import guess_kind, module_state, read_tensors
from avsseg.weights.pretrained import load_backbone_weights

OURS_ALONE = ("outnorm", "feature_pyramid")


def constants(named: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Each tensor full of a value of its own; they take no memory, and files of them no space."""
    return {name: torch.tensor([i / 1024]).expand(shape) for i, (name, shape) in enumerate(named.items())}


def ours(kind: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build_backbone(kind)[0].state_dict().items()}


def official(kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict as the authors publish it, and our name for each of theirs that is not the classifier's."""
    shapes = {name: shape for name, shape in ours(kind).items() if not name.startswith(OURS_ALONE)}
    names = {name: name for name in shapes}
    width = shapes["norm_f.weight"][0] if kind in VIM else 8 * VMAMBA[kind].width
    if kind in VIM:
        classifier = {"head.weight": torch.Size((1000, width)), "head.bias": torch.Size((1000,))}
    elif VMAMBA[kind].vanilla:
        names = {_first_release(name): name for name in shapes}
        classifier = {"norm.weight": torch.Size((width,)), "head.weight": torch.Size((1000, width))}
    else:
        classifier = {"classifier.norm.weight": torch.Size((width,)), "classifier.head.bias": torch.Size((1000,))}
    return constants({theirs: shapes[mine] for theirs, mine in names.items()} | classifier), names


def _first_release(name: str) -> str:
    """Written out by hand from the published names, for one of ours."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return ".".join(("patch_embed", {"0": "proj", "2": "norm"}[parts[1]], *parts[2:]))
    if parts[2] == "downsample":
        return ".".join((*parts[:3], {"1": "norm", "2": "reduction"}[parts[3]], *parts[4:]))
    return ".".join((*parts[:4], {"norm": "ln_1", "op": "self_attention"}[parts[4]], *parts[5:]))


def test_the_first_releases_names_are_the_published_ones() -> None:
    published = {
        "patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.0.ln_1.weight",
        "layers.0.blocks.1.self_attention.in_proj.weight", "layers.0.blocks.1.self_attention.conv2d.bias",
        "layers.2.blocks.8.self_attention.x_proj_weight", "layers.2.blocks.8.self_attention.dt_projs_weight",
        "layers.2.blocks.8.self_attention.dt_projs_bias", "layers.3.blocks.0.self_attention.A_logs",
        "layers.3.blocks.0.self_attention.Ds", "layers.3.blocks.0.self_attention.out_norm.weight",
        "layers.3.blocks.0.self_attention.out_proj.weight", "layers.1.downsample.norm.weight",
        "layers.1.downsample.reduction.weight", "norm.weight", "head.weight",
    }  # fmt: skip
    assert published <= set(official("vmamba-tiny-v0")[0])


@pytest.mark.parametrize("kind", [*VMAMBA, *VIM])
def test_every_variant_is_told_from_its_names_and_fits(kind: str) -> None:
    theirs, names = official(kind)
    assert guess_kind(theirs, "x") == kind
    with torch.device("meta"):
        own = build_backbone(kind)[0].state_dict()
    assert guess_kind(own, "x") == kind  # so that a file of another is named when it is given for this one
    state = module_state(theirs, own, "x")
    assert {mine: state[mine][(0,) * state[mine].ndim].item() for mine in state} == {
        mine: theirs[name][(0,) * theirs[name].ndim].item() for name, mine in names.items()
    }


@pytest.mark.parametrize("kind", ["vmamba-tiny-v0", "vim-tiny"])
def test_published_and_converted_files_fill_the_backbone(tmp_path: Path, kind: str) -> None:
    theirs, names = official(kind)
    torch.save({"model": theirs, "epoch": 292}, tmp_path / "theirs.pth")
    assert convert_file(tmp_path / "theirs.pth", tmp_path / "ours.safetensors") == kind
    assert set(load_file(tmp_path / "ours.safetensors")) == set(names.values())
    for file in ("theirs.pth", "ours.safetensors"):
        backbone, _ = build_backbone(kind)
        fresh = {name: t.clone() for name, t in backbone.state_dict().items() if name.startswith(OURS_ALONE)}
        load_backbone_weights(backbone, tmp_path / file)
        state = backbone.state_dict()
        assert fresh
        assert all(torch.equal(state[name], tensor) for name, tensor in fresh.items())
        assert all(torch.equal(state[mine], theirs[name]) for name, mine in names.items())


def test_what_a_trained_backbone_has_beyond_the_published_file_is_kept(tmp_path: Path) -> None:
    trained, _ = build_backbone("vim-tiny")
    torch.save(trained.state_dict(), tmp_path / "trained.pth")
    convert_file(tmp_path / "trained.pth", tmp_path / "trained.safetensors", "vim-t")  # a short name will do
    backbone, _ = build_backbone("vim-tiny")
    load_backbone_weights(backbone, tmp_path / "trained.safetensors")
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.state_dict().items())


def test_weights_of_1x1_convolutions_become_linear_layers() -> None:
    theirs, _ = official("vmamba-tiny-s1l8")
    name = "layers.1.blocks.0.mlp.fc1.weight"
    values = torch.arange(768.0 * 192).view(768, 192)
    with torch.device("meta"):
        own = build_backbone("vmamba-tiny-s1l8")[0].state_dict()
    state = module_state(theirs | {name: values[:, :, None, None]}, own, "x")
    assert torch.equal(state[name], values)


def test_another_variant_is_named(tmp_path: Path) -> None:
    torch.save({"model": official("vmamba-tiny-s1l8")[0]}, tmp_path / "s1.pth")
    with torch.device("meta"):
        wider, _ = build_backbone("vmamba-tiny-s2l5")
    with pytest.raises(WeightsError, match="holds vmamba-tiny-s1l8, not vmamba-tiny-s2l5"):
        load_backbone_weights(wider, tmp_path / "s1.pth")


def test_a_vim_of_overlapping_patches_does_not_fit() -> None:
    theirs, _ = official("vim-tiny")
    with torch.device("meta"):
        own = build_backbone("vim-tiny")[0].state_dict()
    with pytest.raises(WeightsError, match=r"1 of another shape \(pos_embed \(1, 730, 192\)"):
        module_state(theirs | {"pos_embed": torch.zeros(1, 730, 192)}, own, "x")


class CfgNode(dict[str, Any]):
    """As yacs has it: a dict with a state of its own."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.__dict__["__immutable__"] = True


@pytest.mark.parametrize("new_format", [True, False])
def test_settings_beside_the_weights_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    CfgNode.__module__ = "yacs.config"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    settings = {
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), data=None),
        "config": CfgNode({"TRAIN": CfgNode({"EPOCHS": 300, "NAMES": ["a"]})}),
    }
    with monkeypatch.context() as saving:
        saving.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        saving.setitem(sys.modules, "yacs.config", module)
        torch.save(
            {**settings, "model": {"w": torch.ones(2)}}, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format
        )
    assert torch.equal(read_tensors(tmp_path / "x.pth")["w"], torch.ones(2))
