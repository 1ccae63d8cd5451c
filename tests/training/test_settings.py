"""Settings: presets, what overrides what, and the file that keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from avsseg.errors import UsageError
from avsseg.training.settings import TrainingSettings, read_toml, training_preset, with_changes, write_toml


@pytest.mark.parametrize(
    ("subset", "size", "batch", "epochs"), [("s4", 512, 2, 60), ("ms3", 512, 2, 120), ("avss", 224, 6, 50)]
)
def test_the_papers_recipe(subset: str, size: int, batch: int, epochs: int) -> None:
    settings = training_preset("paper", subset)
    assert (settings.size, settings.batch, settings.epochs) == (size, batch, epochs)
    assert (settings.learning_rate, settings.schedule, settings.warmup_steps) == (2e-5, "constant", 0)
    assert settings.model == "avs-mamba-pvt-v2-b5"
    assert (settings.dice_weight, settings.bce_weight) == ((0.0, 1.0) if subset == "avss" else (1.0, 0.0))
    assert (settings.gradient_clip, settings.beta_2) == (0.0, 0.999)
    assert settings.num_classes == (71 if subset == "avss" else 1)
    assert settings.freeze_epochs == (20 if subset == "ms3" else 0)


def test_a_file_keeps_every_setting(tmp_path: Path) -> None:
    settings = TrainingSettings(
        data='a "quoted" \\ path\nof two lines\x7f\x1b', subset="s4", minutes=1.5, mute=True, workers=0
    )
    write_toml(tmp_path / "settings.toml", settings)
    assert with_changes(TrainingSettings(), read_toml(tmp_path / "settings.toml"), where="file") == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown settings colour"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": "two"}, "batch is 'two', must be int"),
        ({"batch": True}, "batch is True, must be int"),
        ({"subset": "s5"}, "subset is 's5'. Choose one of: s4, ms3, avss"),
        ({"epochs": 0}, "no end"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"beta_2": 1.0}, "beta_2 is 1.0, must be at least 0 and below 1"),
        ({"drop_path": 1}, "drop_path is 1"),
        ({"audio_noise_db": 40.0}, "audio_noise_db is 40.0, must be negative"),
        ({"audio_noise_db": float("nan")}, "audio_noise_db is nan"),
        ({"learning_rate": -1.0}, "not negative"),
        ({"precision": "fp8"}, "precision"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**14}, "seed is 100000000000000, must be 1000000000000 at most"),
        ({"threads": 10**11}, "threads is 100000000000, must be 1024 at most"),
        ({"audio_mix": 2}, "audio_mix is 2.0, must be 0 to 1"),
        ({"data": "caf\udce9"}, "the name is not UTF-8"),
        ({"pair": 1.5}, "pair is 1.5, must be 0 to 1"),
        ({"resize": 0.5}, "resize is 0.5, must be 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"start_from": "a", "backbone": "resnet50"}, "brings its own model"),
        ({"agreement": True}, "agreement is of classes that are told apart"),
        ({"agreement": True, "class_weight": 1, "mute": True}, "agreement=false with --mute"),
        ({"agreement": True, "class_weight": 1, "subset": "avss"}, "or subset avss"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match="over there: ") as caught:
        with_changes(TrainingSettings(), changes, where="over there")
    assert message in str(caught.value)


def test_whole_numbers_do_for_fractions() -> None:
    assert with_changes(TrainingSettings(), {"minutes": 3}, where="x").minutes == 3.0


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(UsageError, match=r"bad\.toml: is not TOML"):
        read_toml(tmp_path / "bad.toml")


def test_a_byte_order_mark_is_no_setting(tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbfbatch = 2\n")
    assert read_toml(tmp_path / "windows.toml") == {"batch": 2}


def test_a_number_that_no_float_holds_is_named() -> None:
    with pytest.raises(UsageError, match="minutes has 401 digits"):
        with_changes(TrainingSettings(), {"minutes": 10**400}, where="x")


def test_the_guide_lists_every_setting_with_its_default() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|.*\| `(\S*)` \|$", guide, re.MULTILINE)
    assert listed == [(field.name, json.dumps(field.default)) for field in fields(TrainingSettings)]


def test_every_setting_can_be_written() -> None:
    assert all(isinstance(value, (str, int, float, bool)) for value in asdict(TrainingSettings()).values())
