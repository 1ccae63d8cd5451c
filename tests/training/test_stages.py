"""The four runs of `--preset scenes`: their settings, and where a stopped one goes on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from avsseg.errors import UsageError
from avsseg.training.settings import TrainingSettings, training_preset, with_changes
from avsseg.training.stages import check_scene_settings, from_what_there_is, scene_stages, stage_to_go_on_with

OUT = Path("out")


def scenes(**changes: object) -> TrainingSettings:
    return with_changes(training_preset("scenes", "ms3"), {"data": "d", **changes}, where="test")


def differing(settings: TrainingSettings) -> dict[str, object]:
    usual = asdict(TrainingSettings())
    return {name: value for name, value in asdict(settings).items() if value != usual[name]}


def test_the_runs_are_those_of_the_measured_commands() -> None:
    (_, encoders), (_, plain), (_, larger), (_, masks) = scene_stages(
        OUT, scenes(start_from="avs-mamba-tiny"), processes=2
    )
    common = {
        **{"data": "d", "epochs": 0, "rotate": 180.0, "hue": 180.0, "resize": 1.4, "audio_gain_db": 6.0},
        **{"frozen_statistics": "no", "pair": 0.6, "class_weight": 0.5, "agreement": True},
    }
    later = {**common, "recolour": 0.5, "frozen_audio": True}
    assert differing(encoders) == {
        **{**common, "start_from": "avs-mamba-tiny", "stage": "encoders", "recolour": 1.0},
        **{"size": 128, "minutes": 8.0, "validate_minutes": 4.0, "batch": 8, "learning_rate": 1.5e-3},
    }
    assert differing(plain) == {
        **{**later, "start_from": str(OUT / "1-encoders" / "best.safetensors"), "stage": "plain"},
        **{"size": 128, "minutes": 22.0, "validate_minutes": 22 / 3, "batch": 4},
        **{"learning_rate": 1e-3, "schedule": "constant"},
    }
    assert differing(larger) == {
        **{**later, "start_from": str(OUT / "2-plain" / "best.safetensors"), "stage": "plain"},
        **{"size": 192, "minutes": 22.0, "validate_minutes": 22 / 3, "batch": 4, "learning_rate": 1e-3},
    }
    assert differing(masks) == {
        **{**later, "start_from": str(OUT / "3-larger" / "best.safetensors"), "size": 192},
        **{"minutes": 8.0, "validate_minutes": 4.0, "learning_rate": 4e-4, "layer_weight": 0.3},
    }


def test_a_step_has_as_many_clips_in_any_number_of_processes() -> None:
    for processes in (1, 2, 4):
        batches = [settings.batch * processes for _, settings in scene_stages(OUT, scenes(), processes=processes)]
        assert batches == [16, 8, 8, 4]
    with pytest.raises(UsageError, match="takes 1, 2 or 4 processes, not 3"):
        scene_stages(OUT, scenes(), processes=3)


def test_what_is_given_counts_for_all_runs() -> None:
    given = scenes(size=64, minutes=30, recolour=0.0, backbone="resnet50", seed=3)
    runs = [settings for _, settings in scene_stages(OUT, given)]
    assert [settings.size for settings in runs] == [64, 64, 96, 96]
    assert sum(settings.minutes for settings in runs) == pytest.approx(30)
    assert {settings.recolour for settings in runs} == {0.0}
    assert {settings.seed for settings in runs} == {3}
    # the later ones have it from the model that they start from
    assert [settings.backbone for settings in runs] == ["resnet50", "", "", ""]


def test_encoders_see_other_colours_twice_as_often() -> None:
    for given, first in ((0.0, 0.0), (0.4, 0.8), (0.5, 1.0), (0.8, 1.0)):
        runs = [settings for _, settings in scene_stages(OUT, scenes(recolour=given))]
        assert [settings.recolour for settings in runs] == [first, given, given, given]


def test_the_smallest_pictures_stay_some() -> None:
    assert [settings.size for _, settings in scene_stages(OUT, scenes(size=10))] == [10, 10, 32, 32]


def test_without_sound_the_encoders_still_learn_from_it() -> None:
    runs = [settings for _, settings in scene_stages(OUT, scenes(mute=True, agreement=False))]
    assert [settings.mute for settings in runs] == [False, True, True, True]
    assert not any(settings.agreement for settings in runs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 2, "learning_rate": 1e-3}, "its own batch, learning_rate in each of its runs"),
        ({"subset": "avss"}, "leave out --subset avss"),
        ({"minutes": 0.0}, "give --minutes 60"),
    ],
)
def test_what_each_run_has_its_own_of_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_scene_settings(given)
    check_scene_settings({"size": 64, "seed": 1})


def test_where_it_goes_on(tmp_path: Path) -> None:
    runs = scene_stages(tmp_path, scenes())
    assert stage_to_go_on_with(tmp_path, runs, resume=False) == 0
    assert stage_to_go_on_with(tmp_path, runs, resume=True) == 0
    for folder, _ in runs[:2]:
        folder.mkdir()
        (folder / "last.pt").touch()
    assert stage_to_go_on_with(tmp_path, runs, resume=True) == 1
    with pytest.raises(UsageError, match=r"holds a run already\. Go on with --resume"):
        stage_to_go_on_with(tmp_path, runs, resume=False)


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "settings.toml"])
def test_a_folder_with_a_run_of_another_kind_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="already"):
        stage_to_go_on_with(tmp_path, scene_stages(tmp_path, scenes()), resume=False)


def test_without_a_best_model_the_last_one_is_gone_on_from(tmp_path: Path) -> None:
    runs = scene_stages(tmp_path, scenes(start_from="avs-mamba-tiny"))
    first, second = runs[0][1], runs[1][1]
    assert from_what_there_is(first) == first
    (tmp_path / "1-encoders").mkdir()
    (tmp_path / "1-encoders" / "last.safetensors").touch()
    assert from_what_there_is(second).start_from == str(tmp_path / "1-encoders" / "last.safetensors")
    (tmp_path / "1-encoders" / "best.safetensors").touch()
    assert from_what_there_is(second) == second
