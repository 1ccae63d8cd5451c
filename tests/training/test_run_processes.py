"""Runs of several processes: as one with the doubled batch, and ended together."""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from avsseg.data.avsbench import AvsBenchClips, ClipExample
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import AvssegError, DataError, OutputError
from avsseg.training import run
from avsseg.training.checkpoints import load_checkpoint, save_checkpoint
from avsseg.training.clips import ClipBatch, ClipObjective, batch_tensor, validation
from avsseg.training.distributed import process_group
from avsseg.training.encoders import EncoderObjective, encoder_validation
from avsseg.training.run import TrainingRun
from avsseg.training.run_log import RunLog
from avsseg.training.settings import TrainingSettings
from avsseg.training.trainer import Trainer
from avsseg.weights.store import load_model


def _one_of_two(rank: int, folder: Path, settings: TrainingSettings) -> None:
    torch.set_num_threads(1)
    with process_group(init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2):
        TrainingRun(folder / "two", settings).train()
    # a child that skips interpreter teardown cannot be aborted by gloo's threads there
    os._exit(0)


def test_two_processes_have_the_loss_of_one_with_the_doubled_batch(tmp_path: Path, quick: TrainingSettings) -> None:
    # dropped paths are drawn anew for every batch
    settings = replace(quick, frozen_statistics="yes", drop_path=0.0, batch=2)
    TrainingRun(tmp_path / "one", replace(settings, batch=4)).train()
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, settings), nprocs=2)
    curves = []
    for name in ("one", "two"):
        with (tmp_path / name / "train.csv").open() as file:
            curves.append([row for row in csv.DictReader(file)])
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]] == ["1", "2"]
    for alone, shared in zip(*curves, strict=True):
        assert float(shared["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-4)
    one, two = (load_checkpoint(tmp_path / name / "last.pt")["objective"] for name in ("one", "two"))
    for name, tensor in one.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, two[name], atol=2e-4), name


@pytest.fixture(scope="module")
def scenes_with_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MS3 layout: 4 training and 3 validation clips of 48 px. Read only."""
    folder = tmp_path_factory.mktemp("scenes")
    list(write_dataset(folder, SynthSettings(train=4, val=3, test=0, size=48, height=48, frame_rate=4)))
    return folder


def _resumed_alone(run: Path, settings: TrainingSettings) -> TrainingRun:
    """A run of two processes, which would be refused if it said so."""
    state = load_checkpoint(run / "last.pt")
    assert state.pop("processes") == 2
    save_checkpoint(run / "last.pt", state)
    return TrainingRun(run, settings, resume=True)


def test_two_processes_share_the_validation_of_the_first_one_s_model(
    tmp_path: Path, quick: TrainingSettings, scenes_with_val: Path
) -> None:
    # statistics of batch normalisation are each process's own
    settings = replace(quick, data=str(scenes_with_val), batch=1, epochs=1, frozen_statistics="no")
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, settings), nprocs=2)
    with (tmp_path / "two" / "val.csv").open() as file:
        shared = [row for row in csv.DictReader(file)][-1]
    whole = _resumed_alone(tmp_path / "two", settings)
    assert whole.val is not None
    alone = validation(whole.val)(whole.trainer.average)
    assert alone["score"] > 0
    assert {name: float(shared[name]) for name in alone} == pytest.approx(alone, abs=1e-5)  # rounded in the log


def _ladders_seen(_: EncoderObjective, batch: ClipBatch) -> torch.Tensor:
    return batch_tensor(batch, "classes") == 4


def _some_heard(_: EncoderObjective, batch: ClipBatch) -> torch.Tensor:
    return batch_tensor(batch, "heard").flatten(0, 1)[:, 0] > 0


def _encoders_of_two(rank: int, folder: Path, settings: TrainingSettings) -> None:
    EncoderObjective.right_seen, EncoderObjective.right_heard = _ladders_seen, _some_heard  # type: ignore[assignment]
    fetch = AvsBenchClips.__getitem__

    def counted(self: AvsBenchClips, index: int) -> ClipExample:
        if self.augmentation is None:
            with (folder / f"{rank}.txt").open("a") as file:
                file.write(f"{index} ")
        return fetch(self, index)

    AvsBenchClips.__getitem__ = counted  # type: ignore[method-assign]
    _one_of_two(rank, folder, settings)


def test_two_processes_share_the_validation_of_encoders(
    tmp_path: Path, quick: TrainingSettings, scenes_with_val: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(quick, data=str(scenes_with_val), batch=1, epochs=1, stage="encoders")
    torch.multiprocessing.spawn(_encoders_of_two, (tmp_path, settings), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["0 2 ", "1 "]
    with (tmp_path / "two" / "val.csv").open() as file:
        shared = [row for row in csv.DictReader(file)][-1]
    monkeypatch.setattr(EncoderObjective, "right_seen", _ladders_seen)
    monkeypatch.setattr(EncoderObjective, "right_heard", _some_heard)
    whole = _resumed_alone(tmp_path / "two", settings)
    assert whole.val is not None
    alone = encoder_validation(whole.val)(whole.trainer.average)
    assert 0 < alone["seen"] < 1
    assert 0 < alone["heard"] < 1
    assert {name: float(shared[name]) for name in alone} == pytest.approx(alone, abs=1e-5)


def _one_of_two_that_fail(rank: int, folder: Path, settings: TrainingSettings, failing: int, what: str) -> None:
    torch.set_num_threads(1)
    forward, fetch = ClipObjective.forward, AvsBenchClips.__getitem__
    losses, clips, writes = itertools.count(), itertools.count(), itertools.count()

    def spoilt(self: ClipObjective, batch: ClipBatch) -> tuple[torch.Tensor, dict[str, float]]:
        loss, logged = forward(self, batch)
        return (loss * math.nan if next(losses) == settings.accumulate else loss), logged

    def damaged(self: AvsBenchClips, index: int) -> ClipExample:
        if next(clips) == 2:  # the first of the second step
            raise DataError("5.png: is damaged")
        return fetch(self, index)

    def damaged_val(self: AvsBenchClips, index: int) -> ClipExample:
        if self.augmentation is None and next(clips) == 1:  # in the second validation
            raise DataError("5.png: is damaged")
        return fetch(self, index)

    def full(*_: object) -> None:
        if what == "model" or next(writes) == {"log": 2, "save": 3}[what]:  # in the second step
            raise OutputError("No space left on device")

    if rank == failing:
        writers = {"log": (RunLog, "add"), "save": (Trainer, "save"), "model": (run, "export")}
        of_clips = {"file": damaged, "val": damaged_val}
        if what == "loss":
            ClipObjective.forward = spoilt  # type: ignore[method-assign]
        elif what in writers:
            owner, name = writers[what]
            write = getattr(owner, name)
            setattr(owner, name, lambda *given: (full(), write(*given)))
        else:
            AvsBenchClips.__getitem__ = of_clips[what]  # type: ignore[method-assign]
    try:
        with process_group(init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2):
            TrainingRun(folder / "two", settings).train()
    except AvssegError as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)


@pytest.mark.parametrize(
    ("what", "failing", "accumulate", "told"),
    [
        ("loss", 0, 1, "NonFiniteError: .*two: the loss is nan at step 1"),
        ("loss", 1, 2, "NonFiniteError: .*two: the loss is nan at step 1"),
        ("file", 1, 1, "DataError: 5.png: is damaged"),
        ("val", 1, 1, "DataError: 5.png: is damaged"),
        ("log", 0, 1, "OutputError: No space left on device"),
        ("save", 0, 1, "OutputError: No space left on device"),
        ("model", 0, 1, "OutputError: No space left on device"),
    ],
)
def test_what_ends_one_process_ends_both_and_leaves_the_best(
    what: str,
    failing: int,
    accumulate: int,
    told: str,
    tmp_path: Path,
    quick: TrainingSettings,
    scenes: Path,
    scenes_with_val: Path,
) -> None:
    data = scenes_with_val if what == "val" else scenes
    settings = replace(quick, data=str(data), batch=2 // accumulate, accumulate=accumulate)
    torch.multiprocessing.spawn(_one_of_two_that_fail, (tmp_path, settings, failing, what), nprocs=2)
    assert re.match(told, (tmp_path / f"{failing}.txt").read_text())
    other = (tmp_path / f"{1 - failing}.txt").read_text()
    where = data if what == "val" else tmp_path / "two"
    assert other == f"OtherProcessError: {where}: another process of the run failed and tells why"
    assert what == "model" or load_model(tmp_path / "two" / "best.safetensors")


@pytest.mark.parametrize("stage", ["encoders", "plain"])
def test_two_processes_run_the_stages_before_the_masks(tmp_path: Path, quick: TrainingSettings, stage: str) -> None:
    settings = replace(quick, stage=stage, batch=1)
    torch.multiprocessing.spawn(_one_of_two, (tmp_path, settings), nprocs=2)
    with (tmp_path / "two" / "val.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    assert load_model(tmp_path / "two" / "best.safetensors", allow_untrained=True)
