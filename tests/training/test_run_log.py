"""The CSV logs of a run: one header, no line twice, and none that a full disk cut short."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from avsseg.errors import OutputError
from avsseg.training.curves import draw_curves, read_log
from avsseg.training.run_log import RunLog


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_lines_have_step_minutes_and_values(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.add("train", 20, 90.0, {"loss": 0.5, "M_J": float("nan")})
    log.add("train", 40, 180.0, {"loss": 0.25, "M_J": 0.1})
    assert read(tmp_path / "train.csv") == [
        ["step", "minutes", "loss", "M_J"],
        ["20", "1.50", "0.50000", "nan"],
        ["40", "3.00", "0.25000", "0.10000"],
    ]
    assert not (tmp_path / "val.csv").exists()


def test_a_log_that_a_full_disk_left_empty_gets_its_header(tmp_path: Path) -> None:
    (tmp_path / "val.csv").touch()
    log = RunLog(tmp_path)
    log.forget_after(0, 0)
    log.add("val", 20, 0.0, {"score": 1.0})
    assert read(tmp_path / "val.csv")[0] == ["step", "minutes", "score"]


def test_a_log_that_another_version_began_keeps_its_columns(tmp_path: Path) -> None:
    RunLog(tmp_path).add("train", 20, 0.0, {"loss": 0.5, "gone": 1.0})
    log = RunLog(tmp_path)
    log.forget_after(20, 0)
    log.add("train", 40, 60.0, {"loss": 0.25, "M_J": 0.1})
    log.forget_after(40, 0)
    assert read(tmp_path / "train.csv") == [
        ["step", "minutes", "loss", "gone"],
        ["20", "0.00", "0.50000", "1.00000"],
        ["40", "1.00", "0.25000", "nan"],
    ]


def test_lines_beyond_a_step_and_those_cut_short_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (20, 40, 60):
        log.add("train", step, 0.0, {"loss": 1.0})
        log.add("val", step, 0.0, {"score": 1.0})
    with (tmp_path / "train.csv").open("a") as file:
        file.write("4,0.0")
    log.forget_after(60, 40)
    assert [row[0] for row in read(tmp_path / "train.csv")] == ["step", "20", "40", "60"]
    assert [row[0] for row in read(tmp_path / "val.csv")] == ["step", "20", "40"]


def test_a_log_whose_header_was_cut_short_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("step,minutes,M_J,M_F,d")
    log = RunLog(tmp_path)
    log.forget_after(20, 20)
    log.add("val", 40, 0.0, {"M_J": 0.5, "score": 0.25})
    assert read(tmp_path / "val.csv") == [["step", "minutes", "M_J", "score"], ["40", "0.00", "0.50000", "0.25000"]]


def test_lines_without_a_step_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.add("train", 20, 0.0, {"loss": 1.0})
    with (tmp_path / "train.csv").open("a") as file:
        file.write("twenty,0.0,1.0\n\n1.5,0.0,1.0\n-20,0.0,1.0\n")
    log.forget_after(60, 60)
    assert [row[0] for row in read(tmp_path / "train.csv")] == ["step", "20"]


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    RunLog(tmp_path, tensorboard=True).add("train", 20, 0.0, {"loss": 0.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(20, 0.5)]


def test_tensorboard_does_not_show_the_steps_that_come_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = RunLog(tmp_path, tensorboard=True)
    for step in (20, 40, 60):
        killed.add("train", step, 0.0, {"loss": 1.0})
    killed.add("val", 20, 0.0, {"score": 1.0})
    resumed = RunLog(tmp_path, tensorboard=True)
    resumed.forget_after(40, 20)
    resumed.add("train", 60, 0.0, {"loss": 2.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(20, 1.0), (40, 1.0), (60, 2.0)]
    assert [event.step for event in events.Scalars("val/score")] == [20]


def test_tensorboard_forgets_a_run_that_begins_anew(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for loss in (1.0, 2.0):
        RunLog(tmp_path, tensorboard=True).add("train", 20, 0.0, {"loss": loss})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(20, 2.0)]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").mkdir()
    with pytest.raises(OutputError, match=r"train\.csv: cannot be written: Is a directory"):
        RunLog(tmp_path).add("train", 1, 0.0, {"loss": 1.0})


def test_lines_that_a_full_disk_cut_short_are_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,minutes,loss\n20,1.00,0.5\n40,2.00\n60,3.00,\n80,4.00,0.25\n100,5.")
    assert read_log(tmp_path / "train.csv") == {"step": [20, 80], "minutes": [1, 4], "loss": [0.5, 0.25]}
    (tmp_path / "val.csv").touch()
    assert read_log(tmp_path / "val.csv") == {}
    assert draw_curves(tmp_path).is_file()
