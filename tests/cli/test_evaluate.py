"""`avsseg evaluate` as a user meets it: models trained without sound, and places that cannot be written to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import OutputError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.store import load_model, save_model

Main = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert list(write_dataset(folder, SynthSettings(train=0, val=0, test=1, size=48, height=48, frame_rate=4)))
    return folder


def checkpoint(path: Path, **settings: object) -> Path:
    """A narrow model as `avsseg train` leaves it, with those of its settings."""
    config = AvsMambaConfig(
        backbone="resnet18_slim", audio_encoder="compact", dim=32, state_size=2, head_hidden=8, head_channels=(8, 4)
    )
    save_model(path, AvsMamba(config), training={"settings": settings, "steps": 1})
    return path


def arguments(scenes: Path, model: Path, *more: object) -> list[object]:
    return ["evaluate", "--data", scenes, "--model", model, "--size", 32, "--workers", 0, *more]


def test_a_model_trained_without_sound_is_scored_without_it(avsseg_main: Main, scenes: Path, tmp_path: Path) -> None:
    muted = checkpoint(tmp_path / "muted.safetensors", mute=True)
    assert load_model(muted).training["settings"] == {"mute": True}
    note = "avsseg: note: muted was trained with --mute, so it is played silence. --no-mute plays it sound\n"
    outcome = avsseg_main(*arguments(scenes, muted, "--json"))
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == note
    assert json.loads(outcome.stdout)["mute"] is True
    assert "silence" in avsseg_main(*arguments(scenes, muted)).stdout
    loud = avsseg_main(*arguments(scenes, muted, "--no-mute", "--json"))
    assert loud.stderr == ""
    assert "silence" not in avsseg_main(*arguments(scenes, muted, "--no-mute")).stdout
    assert json.loads(loud.stdout)["mute"] is False
    hearing = checkpoint(tmp_path / "hearing.safetensors", mute=False)
    for more, expected in (((), False), (("--mute",), True)):
        outcome = avsseg_main(*arguments(scenes, hearing, "--json", *more))
        assert outcome.stderr == ""
        assert json.loads(outcome.stdout)["mute"] is expected


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_place_that_cannot_be_written_to_is_found_first(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("mine")

    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("avsseg.weights.store.load_model", refused)
    outcome = avsseg_main(*arguments(scenes, model, option, tmp_path / "file" / "result"))
    assert outcome.returncode == 1
    assert "file/result" in outcome.stderr
    assert "cannot be written" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_places_that_do_not_exist_yet_are_made_and_left_alone_until_then(
    avsseg_main: Main, scenes: Path, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    targets = ("--out", tmp_path / "new" / "result.json", "--report", tmp_path / "pages" / "first")
    outcome = avsseg_main(*arguments(scenes, model, *targets, "--split", "val"))
    assert outcome.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    outcome = avsseg_main(*arguments(scenes, model, *targets))
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((tmp_path / "new" / "result.json").read_text())["clips"] == 1
    assert [path.name for path in (tmp_path / "pages" / "first").iterdir()] == ["index.html"]


def test_the_table_is_printed_before_it_is_written(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")

    def full(target: Path) -> Any:
        raise OutputError(f"{target}: cannot be written: No space left on device. Free space there")

    monkeypatch.setattr("avsseg.writers.base.written_whole", full)
    outcome = avsseg_main(*arguments(scenes, model, "--out", tmp_path / "result.json"))
    assert outcome.returncode == 1
    assert "No space left" in outcome.stderr
    assert "M_J" in outcome.stdout


def test_out_of_memory_names_the_folder_and_a_remedy(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AvsMamba, "forward", exhausted)
    outcome = avsseg_main(*arguments(scenes, model))
    assert outcome.returncode == 3
    assert outcome.stderr == (
        f"avsseg: error: {scenes}: memory ran out. Close other programs, or give a smaller --size\n"
    )
