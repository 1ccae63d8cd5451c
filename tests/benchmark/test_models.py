"""Rows of `avsseg bench`: what does not fit into memory."""

from __future__ import annotations

import pytest
import torch

from avsseg.benchmark import models
from avsseg.benchmark.options import BenchOptions

SMALL = BenchOptions(models=("avs-mamba-tiny",), sizes=(32,), frames=1, repeats=1, device="cpu")


def no_memory(*_: object) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_a_model_whose_operations_cannot_be_counted_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "complexity", no_memory)
    (row,) = models.measure_models(SMALL)
    assert row.complexity is None
    assert row.error == ""
    assert len(row.times_s) == 1


def test_a_model_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "forward_pass", no_memory)
    (row,) = models.measure_models(SMALL)
    assert row.error == models.OUT_OF_MEMORY
    assert row.times_s == ()


def test_kernels_lie_as_in_a_run() -> None:
    model = models.build_models(["avs-mamba-tiny"], torch.device("cpu"))["avs-mamba-tiny"]
    kernels = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
