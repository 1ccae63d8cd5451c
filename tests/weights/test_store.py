from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from avsseg.errors import OutputError, WeightsError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights import load_model, save_model
from avsseg.weights.registry import DEFAULT_MODEL

SMALL = AvsMambaConfig(
    backbone="pvt_v2_b0",
    audio_encoder="compact",
    dim=32,
    state_size=2,
    head_hidden=8,
    head_channels=(8, 4),
    input_size=64,
)


@pytest.fixture(scope="module")
def model() -> AvsMamba:
    torch.manual_seed(0)
    return AvsMamba(SMALL).eval()


def test_round_trip_is_exact(model: AvsMamba, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    digest = save_model(path, model, categories=("dog",), training={"seed": 3})
    loaded = load_model(path)
    assert (loaded.name, loaded.sha256, loaded.categories, loaded.trained) == ("mine", digest, ("dog",), True)
    assert loaded.config == SMALL
    assert loaded.input_size == 64
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_sounds_come_with_the_model(tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    hearing = AvsMamba(replace(SMALL, heard_classes=2)).eval()
    save_model(path, hearing, heard=("dog", ""))
    loaded = load_model(path)
    assert loaded.heard == ("dog", "")
    assert loaded.model.heard_head is not None
    save_model(path, hearing, heard=("dog",))
    with pytest.raises(WeightsError, match="1 names for 2 classes of sound"):
        load_model(path)


def test_half_precision_keeps_what_needs_float32(model: AvsMamba, tmp_path: Path) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_model(full, model)
    save_model(half, model, half=True)
    assert half.stat().st_size < 0.55 * full.stat().st_size
    state = load_model(half).model.state_dict()
    name = "encoder.layers.0.vss.scan.A_logs"
    assert torch.equal(state[name], model.state_dict()[name])
    assert all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())


def test_half_precision_keeps_vim_s_scan_in_float32(tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", AvsMamba(replace(SMALL, backbone="vim-tiny")), half=True)
    state = load_file(tmp_path / "x.safetensors")
    mixer = "visual_backbone.layers.0.mixer."
    for name in ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias"):
        assert state[mixer + name].dtype == torch.float32
    for name in ("dt_proj.weight", "in_proj.weight", "conv1d.bias"):
        assert state[mixer + name].dtype == torch.float16


def test_untrained_presets_are_refused_unless_allowed() -> None:
    with pytest.raises(WeightsError, match="--allow-untrained"):
        load_model("avs-mamba-resnet50")


def test_untrained_weights_are_the_same_every_time_and_leave_the_random_state_alone(monkeypatch) -> None:
    monkeypatch.setattr("avsseg.weights.store.shipped_weights", dict)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_model("avs-mamba-tiny", allow_untrained=True)
    assert torch.equal(torch.rand(1), before)
    assert (loaded.sha256, loaded.trained) == ("", False)
    again = load_model("avs-mamba-tiny", allow_untrained=True).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as safetensors"),
        (b"not a checkpoint at all, just text", "cannot be read as safetensors"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_model(path)


def test_foreign_and_inconsistent_files(model: AvsMamba, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="no avsseg model description"):
        load_model(path)
    description = {"config": SMALL.to_dict(), "categories": ["a"], "trained": True}
    save_file({"a": torch.zeros(1)}, path, metadata={"avsseg": json.dumps(description)})
    with pytest.raises(
        WeightsError, match=r"not fit its weights \(\d+ missing \(visual_\S+, .* and \d+ more\); 1 unexpected \(a\)\)\."
    ):
        load_model(path)
    narrow = {**model.state_dict(), "head.classify.weight": torch.zeros(1, 3, 1, 1)}
    save_file(narrow, path, metadata={"avsseg": json.dumps(description)})
    with pytest.raises(
        WeightsError, match=r"of another shape \(head\.classify\.weight \(1, 3, 1, 1\) instead of \(1, 4, 1, 1\)\)"
    ):
        load_model(path)
    description["config"]["dim"] = 7
    save_file({"a": torch.zeros(1)}, path, metadata={"avsseg": json.dumps(description)})
    with pytest.raises(WeightsError, match="dim is 7"):
        load_model(path)
    save_model(path, model, trained=False)
    with pytest.raises(WeightsError, match="untrained"):
        load_model(path)
    assert not load_model(path, allow_untrained=True).trained


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"categories": "sounding"}, "no list of names for its classes"),
        ({"categories": [3]}, "no list of names for its classes"),
        ({"categories": []}, "0 names for 1 classes"),
        ({"categories": ["a", "b", "c"]}, "3 names for 1 classes"),
        ({"heard": ""}, "no list of names for its classes of sound"),
    ],
)
def test_names_must_be_those_of_the_classes(
    model: AvsMamba, tmp_path: Path, names: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    description = {"config": SMALL.to_dict(), "categories": ["a"], "trained": True, **names}
    save_file(model.state_dict(), path, metadata={"avsseg": json.dumps(description)})
    with pytest.raises(WeightsError, match=rf"does not fit its weights \({message}\)"):
        load_model(path)


def test_weights_that_are_not_finite_are_named(model: AvsMamba, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_model(path, model)
    description = {"config": SMALL.to_dict(), "categories": ["a"], "trained": True}
    for value in (math.nan, math.inf):
        state = load_file(path)
        state["head.classify.weight"][0, 0] = value
        save_file(state, tmp_path / "diverged.safetensors", metadata={"avsseg": json.dumps(description)})
        with pytest.raises(
            WeightsError, match=r"diverged\.safetensors: its tensor head\.classify\.weight holds NaN or infinite values"
        ):
            load_model(tmp_path / "diverged.safetensors")


def test_a_folder_of_a_model_s_name_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).mkdir()
    assert load_model().trained
    (tmp_path / "mine").mkdir()
    with pytest.raises(WeightsError, match=r"^mine: a folder, not .* Give the \.safetensors file inside it$"):
        load_model("mine")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\nb.safetensors", "a\nb/last.pt", "a\nb.pth", "a\nb/c.safetensors", "x" * 300]
)
def test_names_are_told_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb.pth").touch()
    for file in ("last.pt", "last.safetensors", "c.safetensors"):
        (tmp_path / "a\nb" / file).touch()
    with pytest.raises(WeightsError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_wrong_names() -> None:
    with pytest.raises(WeightsError, match="neither a model nor a file"):
        load_model("avs-mamba-huge")
    with pytest.raises(WeightsError, match="no such file"):
        load_model("missing.safetensors")


def test_a_run_and_its_states_are_no_model_but_what_it_exported_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").touch()
    with pytest.raises(WeightsError, match=r"last\.pt: not a \.safetensors checkpoint of avsseg$"):
        load_model(run / "last.pt")
    for name in ("best", "last"):
        (run / f"{name}.safetensors").touch()
    for path in (run, run / "last.pt"):
        with pytest.raises(WeightsError, match=r"Give .*run/best\.safetensors or .*run/last\.safetensors$"):
            load_model(path)


def test_unwritable_target_leaves_nothing(model: AvsMamba, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(in_the_way / "x.safetensors", model)
    assert list(tmp_path.iterdir()) == [in_the_way]
