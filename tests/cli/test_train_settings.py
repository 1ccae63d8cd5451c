"""What `avsseg train` is told by flags, a file and a preset."""

from __future__ import annotations

from pathlib import Path

import pytest

from avsseg.cli.train_settings import gather
from avsseg.errors import UsageError
from avsseg.training.settings import training_preset, write_toml


def test_flags_go_before_the_file_and_the_file_before_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('subset = "s4"\nepochs = 7\nbatch = 3\n')
    settings = gather(tmp_path / "run", "paper", {"batch": 5}, config, resume=False)
    assert (settings.subset, settings.size, settings.epochs, settings.batch) == ("s4", 512, 7, 5)


def test_a_resumed_run_brings_its_settings(tmp_path: Path) -> None:
    write_toml(tmp_path / "settings.toml", training_preset("paper", "s4"))
    settings = gather(tmp_path, None, {"threads": 2, "epochs": 70, "size": 512}, None, resume=True)
    assert (settings.size, settings.threads, settings.epochs) == (512, 2, 70)
    with pytest.raises(UsageError, match=r"batch \(2\), --learning-rate \(2e-05\) cannot change"):
        gather(tmp_path, None, {"batch": 4, "learning_rate": 1e-4}, None, resume=True)
    with pytest.raises(UsageError, match="--preset cannot change"):
        gather(tmp_path, "paper", {}, None, resume=True)
    with pytest.raises(UsageError, match=r"batch \(2\), --config cannot change"):
        gather(tmp_path, None, {"batch": 4}, tmp_path / "settings.toml", resume=True)
    with pytest.raises(UsageError, match="no run to resume"):
        gather(tmp_path / "none", None, {}, None, resume=True)


def test_minutes_replace_epochs_that_nobody_gave(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("minutes = 30\n")
    for flags, file, lengths in (
        ({}, None, (60, 0.0)),
        ({"minutes": 5.0}, None, (0, 5.0)),
        ({}, config, (0, 30.0)),
        ({"minutes": 5.0}, config, (0, 5.0)),
        ({"minutes": 0.0}, config, (60, 0.0)),
        ({"minutes": 5.0, "epochs": 3}, config, (3, 5.0)),
    ):
        settings = gather(tmp_path / "run", None, flags, file, resume=False)
        assert (settings.epochs, settings.minutes) == lengths


def test_what_is_wrong_is_said_of_its_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^command line: minutes is -1\.0"):
        gather(tmp_path / "run", None, {"minutes": -1.0}, None, resume=False)
    config = tmp_path / "mine.toml"
    config.write_text("minutes = -1\n")
    with pytest.raises(UsageError, match=r"mine\.toml: minutes is -1"):
        gather(tmp_path / "run", None, {}, config, resume=False)
    config.write_text('backbone = "pvt-v2-b0"\n')
    with pytest.raises(UsageError, match=r"^command line with .*mine\.toml: --from brings its own model"):
        gather(tmp_path / "run", None, {"start_from": "x"}, config, resume=False)


def test_a_start_brings_its_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from brings its own model: leave out --model"):
        gather(tmp_path / "run", None, {"start_from": "x", "model": "avs-mamba-resnet50"}, None, resume=False)
    # a run's own file names both
    write_toml(tmp_path / "settings.toml", gather(tmp_path, None, {"start_from": "x"}, None, resume=False))
    assert gather(tmp_path, None, {}, tmp_path / "settings.toml", resume=False).start_from == "x"


def test_the_file_of_four_runs_repeats_them(tmp_path: Path) -> None:
    first = gather(tmp_path, "scenes", {"data": "d", "size": 96, "minutes": 30.0}, None, resume=False)
    write_toml(tmp_path / "stages.toml", first)
    assert gather(tmp_path / "new", "scenes", {}, tmp_path / "stages.toml", resume=False) == first
    with pytest.raises(UsageError, match="its own batch in each"):
        gather(tmp_path / "new", "scenes", {"batch": 2}, tmp_path / "stages.toml", resume=False)
    for preset in (None, "tiny"):
        with pytest.raises(UsageError, match=r"stages\.toml: is of all runs of --preset scenes\. Give that, too"):
            gather(tmp_path / "new", preset, {}, tmp_path / "stages.toml", resume=False)


def test_four_runs_without_sound_have_no_agreement(tmp_path: Path) -> None:
    muted = gather(tmp_path, "scenes", {"data": "d", "mute": True}, None, resume=False)
    assert muted.mute
    assert not muted.agreement
    (tmp_path / "muted.toml").write_text('data = "d"\nmute = true\n')
    assert gather(tmp_path, "scenes", {}, tmp_path / "muted.toml", resume=False) == muted
    # repeated from a file of all settings
    write_toml(tmp_path / "stages.toml", gather(tmp_path, "scenes", {"data": "d"}, None, resume=False))
    assert gather(tmp_path, "scenes", {"mute": True}, tmp_path / "stages.toml", resume=False) == muted
    with pytest.raises(UsageError, match="give agreement=false with --mute"):
        gather(tmp_path, "scenes", {"data": "d", "mute": True, "agreement": True}, None, resume=False)
