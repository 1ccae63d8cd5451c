"""The training loop on a small regression: it learns, it logs, it goes on where it stopped."""

from __future__ import annotations

import copy
import csv
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from avsseg.errors import AvssegError, OutputError, UsageError
from avsseg.training.checkpoints import load_checkpoint, save_checkpoint
from avsseg.training.distributed import process_group
from avsseg.training.optimizer import parameter_groups
from avsseg.training.trainer import NonFiniteError, Progress, Trainer, TrainerSettings, Validation


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.A_logs = nn.Parameter(torch.ones(4, 2))

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        error = self.linear(batch).squeeze(-1) - batch.sum(-1)
        return error.square().mean() + 0 * self.A_logs.sum(), {"odd": math.nan if batch[0, 0] > 0 else 1.0}


def batches(first: int = 0) -> Iterator[Tensor]:
    for seed in itertools.count(first):
        yield torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def make(folder: Path, **changes: float | str) -> Trainer:
    torch.manual_seed(0)
    settings = {"learning_rate": 0.05, "warmup_steps": 5, "steps": 200, "ema_decay": 0.9, **changes}
    return Trainer(Regression(), folder, TrainerSettings(**settings))  # type: ignore[arg-type]


def test_it_learns_and_logs(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.train(batches(), lambda average: {"score": -average(torch.ones(2, 4))[0].item()})
    assert trainer.average.linear.weight.detach().flatten().tolist() == pytest.approx([1] * 4, abs=0.05)
    with (tmp_path / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(20, 201, 20))
    assert float(rows[-1]["loss"]) < 0.01 * float(rows[0]["loss"])
    assert {float(row["odd"]) for row in rows} == {1.0}
    assert (tmp_path / "best.pt").exists()
    assert trainer.best_score > -0.01


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole.train(batches())
    first = make(tmp_path / "parts")
    first.train(batches(), until=0.5)
    assert first.step == 100
    second = make(tmp_path / "parts")
    assert second.restore()
    second.train(batches(100))
    for name, tensor in whole.objective.state_dict().items():
        assert torch.equal(tensor, second.objective.state_dict()[name])
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, second.average.state_dict()[name])


def first_moments(trainer: Trainer) -> Tensor:
    """Of AdamW after one step a tenth of the gradient that it was given, as one vector."""
    states = trainer.optimizer.state.values()
    return torch.cat([state["exp_avg"].flatten() for state in states])


@pytest.mark.parametrize("clip", [0.0, 1e9, 0.01])
def test_gradients_are_clipped_to_their_norm(tmp_path: Path, clip: float) -> None:
    trainer = make(tmp_path, gradient_clip=clip, steps=1)
    expected = copy.deepcopy(trainer.objective)
    expected(next(batches()))[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in expected.parameters() if p.grad is not None])
    assert gradient.norm() > 0.1
    told: list[float] = []
    trainer.listener = lambda progress: told.append(progress.values["gradient_norm"])
    trainer.train(batches())
    assert told == [pytest.approx(gradient.norm().item())]  # what it was before
    moments = first_moments(trainer)
    torch.testing.assert_close(moments.norm().item(), 0.1 * min(gradient.norm().item(), clip or math.inf))
    assert torch.cosine_similarity(moments.sort().values, gradient.sort().values, dim=0) > 0.9999


def test_the_average_follows_by_its_decay(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=30, ema_decay=0.6)
    expected = trainer.objective.linear.weight.detach().double().clone()

    def follow_in_float64(progress: Progress) -> None:
        nonlocal expected
        # short at first: the start is no model
        decay = min(0.6, progress.step / (progress.step + 9))
        expected = decay * expected + (1 - decay) * trainer.objective.linear.weight.detach().double()

    trainer.listener = follow_in_float64
    trainer.train(batches())
    torch.testing.assert_close(trainer.average.linear.weight.double(), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(trainer.average.linear.weight, trainer.objective.linear.weight, atol=1e-3)


def test_mixed_precision_computes_in_16_bits_and_keeps_32(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        computed: list[torch.dtype] = []
        trainer = make(tmp_path / precision, steps=20, precision=precision)
        trainer.objective.linear.register_forward_hook(lambda _, __, output, seen=computed: seen.append(output.dtype))
        told = losses.setdefault(precision, [])
        trainer.listener = lambda progress, told=told: told.append(progress.values["loss"])
        trainer.train(batches())
        assert set(computed) == {dtype}
        assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05, abs=0.05)


def test_decay_spares_vectors_and_scan_parameters() -> None:
    module = Regression()
    groups = parameter_groups(module, 0.1, 0.02, {"linear.": 0.5})
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(module.linear.weight)] == (0.05, 0.02)
    assert found[id(module.linear.bias)] == (0.05, 0.0)
    assert found[id(module.A_logs)] == (0.1, 0.0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(AvssegError, match="the loss is nan at step 0"):
        make(tmp_path).train(iter([torch.full((8, 4), math.nan)]))


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, list[str]]) -> tuple[Tensor, dict[str, float]]:
        return (self.weight - self.weight).sqrt(), {}


def test_a_gradient_that_is_not_finite_names_every_clip_of_the_step(tmp_path: Path) -> None:
    trainer = Trainer(WithoutGradient(), tmp_path, TrainerSettings(accumulate=2))
    with pytest.raises(NonFiniteError, match=r"the gradient is nan at step 0 \(clips a, b, c, d\)"):
        trainer.train(iter([{"name": ["a", "b"]}, {"name": ["c", "d"]}]))


def test_a_gradient_that_stays_no_number_ends_a_run_with_a_scaler(tmp_path: Path) -> None:
    trainer = Trainer(WithoutGradient(), tmp_path, TrainerSettings(steps=300))
    trainer.scaler = torch.amp.GradScaler("cpu")  # as of fp16, which halves its scale of 65536 each time
    with pytest.raises(NonFiniteError, match=r"the gradient is nan at step 17 \(clips a\)"):
        trainer.train({"name": ["a"]} for _ in range(300))


class FrozenWithoutGradient(WithoutGradient):
    def __init__(self) -> None:
        super().__init__()
        self.learned = nn.Parameter(torch.ones(()))

    def forward(self, batch: object) -> tuple[Tensor, dict[str, float]]:
        return (self.weight - self.weight).sqrt() + self.learned, {}


def test_a_scaler_heeds_no_gradient_of_frozen_weights(tmp_path: Path) -> None:
    settings = TrainerSettings(steps=5, frozen=("weight",), frozen_steps=5, warmup_steps=0, learning_rate=0.1)
    trainer = Trainer(FrozenWithoutGradient(), tmp_path, settings)
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.train({} for _ in range(5))
    assert trainer.objective.learned < 0.9  # type: ignore[operator]
    assert trainer.objective.weight == 1


def scores(*values: float) -> Validation:
    """A validation that gives these scores, one after the other."""
    remaining = iter(values)
    return lambda average: {"score": next(remaining)}


@pytest.mark.parametrize("killed", range(1, 11))
def test_a_kill_between_two_files_loses_no_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    trainer, saves = make(tmp_path, steps=20, validate_steps=5), itertools.count(1)
    save = trainer.save

    def save_or_die(name: str) -> None:
        if next(saves) == killed:
            raise KeyboardInterrupt
        save(name)

    monkeypatch.setattr(trainer, "save", save_or_die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(batches(), scores(1, 3, 2, 2))
    again = make(tmp_path, steps=20, validate_steps=5)
    if again.restore():
        assert again.step == {2: 5, 3: 5, 4: 5, 5: 10, 6: 10, 7: 10, 8: 15, 9: 15, 10: 20}[killed]
        known = load_checkpoint(tmp_path / "best.pt")["best_score"] if (tmp_path / "best.pt").exists() else -math.inf
        assert again.best_score == known
    else:
        assert not list(tmp_path.glob("*.pt"))
    # some kills come after a validation that nothing but its line in the log tells of
    done = {3: 1, 4: 1, 5: 1, 6: 2, 7: 2, 8: 2, 9: 3, 10: 3}.get(killed, 0)
    again.train(batches(again.step), scores(*(1, 3, 2, 2)[done:]))
    best = load_checkpoint(tmp_path / "best.pt")
    assert (best["step"], best["best_score"]) == (10, 3)
    with (tmp_path / "val.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "10", "15", "20"]


def test_a_run_that_is_to_stop_in_its_last_step_is_validated(tmp_path: Path) -> None:
    def stopped(validate: Validation) -> Trainer:
        trainer = make(tmp_path, steps=20)
        first = 20 if trainer.restore() else 0
        trainer.listener = lambda progress: trainer.request_stop() if progress.step == 20 else None
        trainer.train(batches(first), validate)
        return trainer

    def stop_at_once(_: nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(stop_at_once)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 20
    stopped(scores(1))
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 20
    (tmp_path / "last.pt").unlink()
    assert stopped(scores(2)).best_score == 2


def test_a_validation_without_a_score_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, steps=20, validate_steps=5).train(batches(), scores(*[math.nan] * 4))
    assert not (tmp_path / "best.pt").exists()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{tmp_path}: the validation has no score")


def test_a_run_goes_on_in_as_many_processes(tmp_path: Path) -> None:
    began, goes_on = make(tmp_path, steps=20), make(tmp_path, steps=20)
    for before, now, how in ((2, 1, "with torchrun --nproc-per-node 2"), (1, 2, "without torchrun")):
        began.world, goes_on.world = before, now
        began.save("last.pt")
        said = rf"last\.pt: the processes of the run were {before} and are {now} now.* Resume it {how}"
        with pytest.raises(UsageError, match=said):
            goes_on.restore()
    goes_on.world = 1
    assert goes_on.restore()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ([1, 2], r"not a checkpoint that can be read \(holds a list\)"),
        ({"objective": {}}, r"is of another model \(Missing key\(s\) in state_dict: \"A_logs\".*\)\. Choose another"),
        ({"objective": 3}, r"is of another model \(Expected state_dict to be dict-like.*\)\. Choose another"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, state: Any, reason: str) -> None:
    save_checkpoint(tmp_path / "last.pt", state)
    with pytest.raises(AvssegError, match=rf"last\.pt: {reason}"):
        make(tmp_path).restore()


def test_the_best_of_an_older_run_in_the_folder_is_not_gone_on_with(tmp_path: Path) -> None:
    make(tmp_path, steps=20).train(batches(), scores(1))
    (tmp_path / "last.pt").unlink()
    make(tmp_path, steps=20).train(batches(), until=0.5)
    again = make(tmp_path, steps=20)
    assert again.restore()
    assert again.step == 10


def test_checkpoints_without_what_later_versions_added_are_read(tmp_path: Path) -> None:
    make(tmp_path, steps=20).train(batches(), scores(1), until=0.5)
    added = ("run", "validated_at", "processes")
    for name in ("last.pt", "best.pt"):
        state = load_checkpoint(tmp_path / name)
        assert state["step"] == 10
        save_checkpoint(tmp_path / name, {k: v for k, v in state.items() if k not in added})
    again = make(tmp_path, steps=20)
    assert again.restore()
    again.train(batches(10), scores(2))
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 20


def test_a_checkpoint_on_a_full_disk_is_an_error_of_one_line(small_disk: Path) -> None:
    path = small_disk / "x.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(OutputError, match=r"x\.pt: cannot be written.*Free space there") as caught:
        save_checkpoint(path, {"step": 2, "tensor": torch.ones(1_000_000)})
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in small_disk.iterdir()] == ["x.pt"]


def test_what_is_no_fault_of_the_disk_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        save_checkpoint(tmp_path / "x.pt", {})


def test_a_log_or_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "train.csv").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"train\.csv: cannot be written: Is a directory"):
        make(tmp_path / "run").train(batches())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file: cannot be written: File exists"):
        make(tmp_path / "file")


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.pt"
    save_checkpoint(path, {"step": 3, "tensor": torch.ones(2)})
    assert load_checkpoint(path)["step"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["x.pt"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AvssegError, match=r"x\.pt: not a checkpoint"):
        load_checkpoint(path)


def take_part(rank: int, folder: str) -> None:
    with process_group(init_method=f"file://{folder}/store", rank=rank, world_size=2):
        trainer = make(Path(folder) / "two", steps=20)
        trainer.train(batch[4 * rank : 4 * rank + 4] for batch in batches())
    # what PyTorch does while its interpreter ends is not under test, and has aborted a finished process here
    os._exit(0)


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(take_part, (str(tmp_path),), nprocs=2)
    alone = make(tmp_path / "one", steps=20)
    alone.train(batches())
    together = load_checkpoint(tmp_path / "two" / "last.pt")
    assert together["step"] == 20
    for name, tensor in alone.objective.state_dict().items():
        assert torch.allclose(tensor, together["objective"][name], atol=1e-6)
