"""The training loop on a small regression: it learns, it logs, it goes on where it stopped."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from avsseg.errors import AvssegError
from avsseg.training.checkpoints import load_checkpoint, save_checkpoint
from avsseg.training.distributed import process_group
from avsseg.training.trainer import Trainer, TrainerSettings, parameter_groups


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


def make(folder: Path, **changes: float) -> Trainer:
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
