"""Whole runs on rendered clips: what they leave, resuming bit for bit, and what stops them."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from avsseg.errors import AvssegError, DataError, EnvironmentFault, OutputError, UsageError
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.run import ENCODERS, TrainingRun
from avsseg.training.settings import TrainingSettings
from avsseg.training.start import build_model
from avsseg.training.trainer import Interrupted, NonFiniteError, Progress
from avsseg.weights.store import load_model


def states_equal(first: Path, second: Path) -> bool:
    a, b = (load_checkpoint(path) for path in (first, second))
    return all(
        torch.equal(tensor, b[part][name]) for part in ("objective", "average") for name, tensor in a[part].items()
    )


def test_a_run_leaves_models_logs_and_curves(tmp_path: Path, quick: TrainingSettings) -> None:
    steps: list[Progress] = []
    best = TrainingRun(tmp_path / "run", quick, listener=steps.append).train()
    assert [progress.step for progress in steps] == [1, 2, 3, 4]
    assert steps[-1].done == 1.0
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "settings.toml", "train.csv", "val.csv", "last.pt", "best.pt", "best.safetensors", "last.safetensors",
        "curves.png", "tensorboard",
    }  # fmt: skip
    loaded = load_model(best)
    assert loaded.trained
    assert loaded.input_size == 32
    with (tmp_path / "run" / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"loss", "M_J", "gradient_norm", "wait_share"} <= set(rows[0])


def validated(run: Path) -> list[dict[str, str]]:
    with (run / "val.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "minutes"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("stopped", [1, 2], ids=["within an epoch", "where a validation is due"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, quick: TrainingSettings, stopped: int) -> None:
    TrainingRun(tmp_path / "whole", quick).train()

    def stop(progress: Progress) -> None:
        if progress.step == stopped:
            run.trainer.request_stop()

    run = TrainingRun(tmp_path / "parts", quick, listener=stop)
    with pytest.raises(Interrupted):
        run.train()
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == stopped
    assert (tmp_path / "parts" / "last.safetensors").exists()
    assert not (tmp_path / "parts" / "val.csv").exists()
    again = TrainingRun(tmp_path / "parts", replace(quick, workers=1), resume=True)
    again.train()
    for name in ("last.pt", "best.pt"):
        assert states_equal(tmp_path / "whole" / name, tmp_path / "parts" / name)
    assert [row["step"] for row in validated(tmp_path / "whole")] == ["2", "4"]
    assert validated(tmp_path / "whole") == validated(tmp_path / "parts")


def test_pairs_go_on_where_they_stopped_and_a_muted_run_has_none(tmp_path: Path, quick: TrainingSettings) -> None:
    paired = replace(quick, pair=0.5, resize=1.5, class_weight=0.5)

    def stop(progress: Progress) -> None:
        if progress.step == 1:
            run.trainer.request_stop()

    whole = TrainingRun(tmp_path / "whole", paired)
    whole.train()
    run = TrainingRun(tmp_path / "parts", paired, listener=stop)
    assert run.clips.augmentation is not None
    assert run.clips.augmentation.resize == (1 / 1.5, 1.5)
    with pytest.raises(Interrupted):
        run.train()
    TrainingRun(tmp_path / "parts", paired, resume=True).train()
    assert states_equal(tmp_path / "whole" / "last.pt", tmp_path / "parts" / "last.pt")
    for name, settings in (("muted", replace(paired, mute=True)), ("plain", replace(paired, mute=True, pair=0.0))):
        TrainingRun(tmp_path / name, settings).train()
    assert states_equal(tmp_path / "muted" / "last.pt", tmp_path / "plain" / "last.pt")
    assert not states_equal(tmp_path / "muted" / "last.pt", tmp_path / "whole" / "last.pt")


def test_classes_that_nothing_lists_cannot_be_told(tmp_path: Path, quick: TrainingSettings) -> None:
    data = shutil.copytree(quick.data, tmp_path / "data")
    (data / "Multi-sources" / "clips.json").unlink()
    unlisted = replace(quick, data=str(data), class_weight=0.5)
    with pytest.raises(UsageError, match=r"data: class_weight needs to know what sounds in which clip"):
        TrainingRun(tmp_path / "run", unlisted)
    assert not (tmp_path / "run").exists()
    TrainingRun(tmp_path / "run", replace(unlisted, mute=True))


def test_a_run_goes_on_with_the_classes_that_it_began_with(tmp_path: Path, quick: TrainingSettings) -> None:
    told = replace(quick, class_weight=0.5, epochs=1)
    TrainingRun(tmp_path / "run", told).train()
    data = shutil.copytree(quick.data, tmp_path / "data")
    listing = data / "Multi-sources" / "clips.json"
    other = replace(told, data=str(data))
    first = TrainingRun(tmp_path / "run", other, resume=True).clips.sound_classes[0]
    whole = listing.read_text()
    listing.write_text(whole.replace(first, f"other {first}"))
    said = r"data: lists other classes of sound than the clips that .*run began with\. Go on with those"
    with pytest.raises(UsageError, match=said):
        TrainingRun(tmp_path / "run", other, resume=True)
    # earlier versions kept how many there were alone
    model = tmp_path / "run" / "model.json"
    kept = json.loads(model.read_text())
    assert len(kept.pop("heard")) == kept["heard_classes"]
    model.write_text(json.dumps(kept))
    entries = json.loads(whole)
    entries["clips"] = [{**clip, "sounding": [[*s, "one more"] for s in clip["sounding"]]} for clip in entries["clips"]]
    listing.write_text(json.dumps(entries))
    with pytest.raises(UsageError, match=said):
        TrainingRun(tmp_path / "run", other, resume=True)
    listing.write_text(whole)
    TrainingRun(tmp_path / "run", other, resume=True)


def test_a_model_that_is_not_the_run_s_is_said(tmp_path: Path, quick: TrainingSettings) -> None:
    TrainingRun(tmp_path / "run", replace(quick, epochs=1)).train()
    for text, said in (
        ("{}", r'last\.pt: is of another model \(Missing key.*"model\.'),
        ("[]", r"model\.json: cannot be read"),
    ):
        (tmp_path / "run" / "model.json").write_text(text)
        with pytest.raises(AvssegError, match=said):
            TrainingRun(tmp_path / "run", replace(quick, epochs=1), resume=True)


def test_a_run_stopped_in_its_last_step_is_whole(tmp_path: Path, quick: TrainingSettings) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 4:
            run.trainer.request_stop()

    run = TrainingRun(tmp_path / "run", quick, listener=stop)
    assert run.train() == tmp_path / "run" / "best.safetensors"
    assert [row["step"] for row in validated(tmp_path / "run")] == ["2", "4"]
    TrainingRun(tmp_path / "run", quick, resume=True).train()  # which has nothing left to do
    assert [row["step"] for row in validated(tmp_path / "run")] == ["2", "4"]
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_killed_run_forgets_what_comes_again(tmp_path: Path, quick: TrainingSettings) -> None:
    TrainingRun(tmp_path / "run", replace(quick, epochs=1)).train()
    log = tmp_path / "run" / "train.csv"
    whole = log.read_text()
    log.write_text(whole + whole.splitlines()[-1].replace("2,", "4,", 1) + "\n")
    TrainingRun(tmp_path / "run", replace(quick, epochs=1), resume=True)
    assert log.read_text().splitlines() == whole.splitlines()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_named(tmp_path: Path, scenes: Path, quick: TrainingSettings, workers: int) -> None:
    damaged = tmp_path / "scenes"
    shutil.copytree(scenes, damaged)
    for path in damaged.glob("Multi-sources/ms3_data/visual_frames/train_*/*_1.png"):
        path.write_bytes(path.read_bytes()[:40])
    run = TrainingRun(tmp_path / "run", replace(quick, data=str(damaged), workers=workers))
    with pytest.raises(DataError, match=r"\.png: not an image that can be read") as caught:
        run.train()
    assert "\n" not in str(caught.value)


def test_accumulation_equals_a_larger_batch(tmp_path: Path, quick: TrainingSettings) -> None:
    # batch statistics see single batches, so they are left alone
    settings = replace(quick, frozen_statistics="yes", drop_path=0.0, epochs=1, augment=False, gradient_clip=1e9)
    TrainingRun(tmp_path / "large", replace(settings, batch=4)).train()
    TrainingRun(tmp_path / "parts", replace(settings, batch=2, accumulate=2)).train()
    large, parts = (load_checkpoint(tmp_path / name / "last.pt")["objective"] for name in ("large", "parts"))
    for name, tensor in large.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, parts[name], atol=2e-4), name


def test_epochs_are_passes_over_the_clips_whatever_makes_a_step(tmp_path: Path, quick: TrainingSettings) -> None:
    # an epoch has four batches
    for accumulate, steps, frozen, between in ((1, 12, 4, 4), (3, 4, 2, 2), (8, 2, 1, 1), (100, 1, 1, 1)):
        changed = replace(quick, batch=1, epochs=3, freeze_epochs=1, accumulate=accumulate)
        settings = TrainingRun(tmp_path / str(accumulate), changed).trainer.settings
        assert (settings.steps, settings.frozen_steps, settings.validate_steps) == (steps, frozen, between)


def test_frozen_encoders_keep_their_statistics_and_gather_them_later(tmp_path: Path, quick: TrainingSettings) -> None:
    # the first epoch ends within the second of three steps
    settings = replace(quick, batch=1, accumulate=3, epochs=2, freeze_epochs=1, frozen_statistics="no")
    statistics: list[dict[str, torch.Tensor]] = []

    def note(progress: Progress) -> None:
        state = run.trainer.objective.state_dict()
        encoders = {name: tensor for name, tensor in state.items() if name.startswith(ENCODERS) and "running" in name}
        statistics.append({name: tensor.clone() for name, tensor in encoders.items()})

    def stop(progress: Progress) -> None:
        if progress.step == 1:
            run.trainer.request_stop()

    run = TrainingRun(tmp_path / "whole", settings, listener=note)
    note(Progress(0, 0, 0, {}, {}))
    run.train()
    assert all(torch.equal(statistics[2][name], tensor) for name, tensor in statistics[0].items())
    assert not any(torch.equal(statistics[3][name], tensor) for name, tensor in statistics[0].items())
    run = TrainingRun(tmp_path / "parts", settings, listener=stop)
    with pytest.raises(Interrupted):
        run.train()
    TrainingRun(tmp_path / "parts", settings, resume=True).train()
    assert states_equal(*(tmp_path / name / "last.pt" for name in ("whole", "parts")))


def test_frozen_encoders_stay_for_their_epochs(tmp_path: Path, quick: TrainingSettings) -> None:
    settings = replace(quick, epochs=1, freeze_epochs=1, frozen_statistics="yes")
    run = TrainingRun(tmp_path / "run", settings)
    before = {name: p.detach().clone() for name, p in run.trainer.objective.named_parameters()}
    run.train()
    changed = {name for name, p in run.trainer.objective.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not [name for name in changed if "visual_backbone" in name or "audio_encoder" in name]


def test_plain_masks_leave_the_blocks_asleep_and_a_later_run_wakes_them(
    tmp_path: Path, quick: TrainingSettings
) -> None:
    # crops are smaller than pictures, a step is several batches, and the stop is within the second group of them
    plain = replace(quick, stage="plain", size=64, epochs=5, accumulate=2, pair=0.5, class_weight=0.5)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            run.trainer.request_stop()

    best = TrainingRun(tmp_path / "whole", plain).train()
    run = TrainingRun(tmp_path / "parts", plain, listener=stop)
    with pytest.raises(Interrupted):
        run.train()
    TrainingRun(tmp_path / "parts", plain, resume=True).train()
    assert states_equal(*(tmp_path / name / "last.pt" for name in ("whole", "parts")))

    loaded = load_model(best)
    assert loaded.trained
    outputs = [p for name, p in loaded.model.encoder.named_parameters() if ".out_proj." in name or ".fc2." in name]
    assert outputs
    assert not any(p.any() for p in outputs)
    awake = TrainingRun(tmp_path / "masks", replace(quick, start_from=str(best)))
    before = awake.trainer.objective.state_dict()["model.decoder.layers.1.2.temporal.out_proj.weight"].clone()
    awake.train()
    after = awake.trainer.objective.state_dict()["model.decoder.layers.1.2.temporal.out_proj.weight"]
    assert not before.any()
    assert after.any()


def test_a_frozen_audio_encoder_stays(tmp_path: Path, quick: TrainingSettings) -> None:
    start = TrainingRun(tmp_path / "encoders", replace(quick, epochs=1, stage="encoders")).train()
    frozen = replace(quick, start_from=str(start), epochs=1, frozen_audio=True, frozen_statistics="no", stage="plain")
    run = TrainingRun(tmp_path / "run", frozen)
    before = {name: tensor.clone() for name, tensor in run.trainer.objective.state_dict().items()}
    run.train()
    after = run.trainer.objective.state_dict()
    changed = {name.split(".")[1] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"visual_backbone", "audio_projection", "visual_projections", "pyramid", "head"}


def test_all_that_learns_is_on_the_device(
    tmp_path: Path, quick: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avsseg.training.run.own_device", lambda _: torch.device("meta"))
    for stage in ("encoders", "masks"):
        run = TrainingRun(tmp_path / stage, replace(quick, stage=stage, class_weight=0.5))
        assert {p.device.type for p in run.trainer.objective.parameters()} == {"meta"}


def test_a_loss_that_is_no_number_names_the_clips(tmp_path: Path, quick: TrainingSettings) -> None:
    run = TrainingRun(tmp_path / "run", quick)
    for parameter in run.trainer.objective.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(AvssegError, match=r"the loss is nan at step 0 \(clips train_\d+, train_\d+\)"):
        run.train()


def test_out_of_memory_says_what_to_do_and_keeps_the_best(
    tmp_path: Path, quick: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingRun(tmp_path / "run", quick)
    forward, steps = run.trainer.objective.forward, itertools.count()

    def exhausted(batch: object) -> object:
        if next(steps) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(batch)

    monkeypatch.setattr(run.trainer.objective, "forward", exhausted)
    with pytest.raises(
        EnvironmentFault, match=r"memory ran out\. Give a smaller --batch.*; the state of the last check"
    ):
        run.train()
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_out_of_memory_before_the_first_step_keeps_nothing(
    tmp_path: Path, quick: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr("avsseg.training.run.sounding_frames", exhausted)
    run = TrainingRun(tmp_path / "run", replace(quick, stage="encoders"))
    with pytest.raises(EnvironmentFault, match=r"memory ran out\. Give a smaller --batch, .* smaller --size$"):
        run.train()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_loader_says_what_to_do_and_keeps_the_best(tmp_path: Path, quick: TrainingSettings) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == 3:
            for child in torch.multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                child.join()

    run = TrainingRun(tmp_path / "run", replace(quick, workers=1, epochs=50), listener=kill)
    with pytest.raises(EnvironmentFault, match="--workers 0"):
        run.train()
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_the_best_model_outlives_a_loss_that_is_no_number(tmp_path: Path, quick: TrainingSettings) -> None:
    def spoil(progress: Progress) -> None:
        if progress.step == 3:
            next(run.trainer.objective.parameters()).data.fill_(float("nan"))

    run = TrainingRun(tmp_path / "run", quick, listener=spoil)
    best = tmp_path / "run" / "best.safetensors"
    with pytest.raises(NonFiniteError) as caught:
        run.train()
    advice = f"lower the learning rate in another --out: --from {best} --learning-rate 0.00025"
    assert str(caught.value).endswith(advice)
    assert load_model(best).trained
    TrainingRun(tmp_path / "again", replace(quick, start_from=str(best), learning_rate=0.00025, epochs=1)).train()


@pytest.mark.parametrize(
    "name",
    ["best.pt", "best.safetensors", "last.safetensors", "curves.png", "train.csv", "val.csv", "settings.toml"],
)
def test_what_another_wrote_is_left_alone(tmp_path: Path, quick: TrainingSettings, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"holds {name}, but no run to go on with.* Choose another --out"):
        TrainingRun(tmp_path, quick)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path, quick: TrainingSettings) -> None:
    TrainingRun(tmp_path, quick)
    (tmp_path / "train.csv").write_text("step,minutes,loss\n20,1,1\n")
    TrainingRun(tmp_path, quick)
    assert not (tmp_path / "train.csv").exists()
    (tmp_path / "best.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holds best\.safetensors"):
        TrainingRun(tmp_path, quick)


def test_an_out_that_is_a_file(tmp_path: Path, quick: TrainingSettings) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match=r"run: is a file, and a run needs a folder\. Choose another --out"):
        TrainingRun(tmp_path / "run", quick)
    with pytest.raises(OutputError, match="below: cannot be written: Not a directory"):
        TrainingRun(tmp_path / "run" / "below", quick)
    assert (tmp_path / "run").read_text() == "mine"


def test_half_precision_without_a_gpu_is_refused(tmp_path: Path, quick: TrainingSettings) -> None:
    with pytest.raises(UsageError, match=r"fp16 trains on CUDA alone, and the device is cpu\. Use --precision bf16"):
        TrainingRun(tmp_path / "run", replace(quick, precision="fp16", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_starts_from_nothing_gathers_its_statistics(tmp_path: Path, quick: TrainingSettings) -> None:
    backbone = build_model(quick).visual_backbone.state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    run = TrainingRun(tmp_path / "run", replace(quick, init_visual=str(tmp_path / "backbone.pth"), epochs=1))
    run.train()
    state = run.trainer.objective.state_dict()
    means = {name: tensor for name, tensor in state.items() if name.endswith("running_mean")}
    assert {tensor.any().item() for name, tensor in means.items() if "audio_encoder" in name} == {True}
    assert {tensor.any().item() for name, tensor in means.items() if "visual_backbone" in name} == {False}


@pytest.mark.parametrize(
    ("changes", "minutes", "steps"),
    [
        ({}, math.inf, 2),
        ({"validate_minutes": 3.0}, 3.0, 10_000_000),
        ({"epochs": 0, "minutes": 60.0}, 6.0, 10_000_000),
        ({"epochs": 0, "minutes": 60.0, "validate_minutes": 3.0}, 3.0, 10_000_000),
    ],
)
def test_a_run_by_epochs_is_validated_after_each(
    tmp_path: Path, quick: TrainingSettings, changes: dict[str, float], minutes: float, steps: int
) -> None:
    settings = TrainingRun(tmp_path, replace(quick, **changes)).trainer.settings  # type: ignore[arg-type]
    assert (settings.validate_minutes, settings.validate_steps) == (minutes, steps)


def test_folders_that_hold_runs_or_none(tmp_path: Path, quick: TrainingSettings) -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        TrainingRun(tmp_path / "none", quick, resume=True)
    TrainingRun(tmp_path / "run", replace(quick, epochs=1)).train()
    with pytest.raises(UsageError, match="holds a run already"):
        TrainingRun(tmp_path / "run", quick)
    (tmp_path / "run" / "last.pt").write_bytes(b"torn")
    with pytest.raises(AvssegError, match=r"last\.pt: not a checkpoint"):
        TrainingRun(tmp_path / "run", quick, resume=True)


def test_missing_data_is_named_before_training(tmp_path: Path, quick: TrainingSettings) -> None:
    with pytest.raises(DataError, match=r"ms3_meta_data\.csv: missing"):
        TrainingRun(tmp_path / "run", replace(quick, data=str(tmp_path)))


def test_seeds_differ(tmp_path: Path, quick: TrainingSettings) -> None:
    weights = [
        next(iter(TrainingRun(tmp_path / str(seed), replace(quick, seed=seed)).trainer.objective.parameters()))
        for seed in (0, 1)
    ]
    assert not np.array_equal(*(w.detach().numpy() for w in weights))
