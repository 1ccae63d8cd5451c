from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from avsseg.errors import OutputError, WeightsError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights import load_model, save_model

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
    with pytest.raises(WeightsError, match="does not fit its weights"):
        load_model(path)
    description["config"]["dim"] = 7
    save_file({"a": torch.zeros(1)}, path, metadata={"avsseg": json.dumps(description)})
    with pytest.raises(WeightsError, match="dim is 7"):
        load_model(path)
    save_model(path, model, trained=False)
    with pytest.raises(WeightsError, match="untrained"):
        load_model(path)
    assert not load_model(path, allow_untrained=True).trained


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
