"""Rows of `avsseg bench`: what does not fit into memory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avsseg.benchmark import models
from avsseg.benchmark.options import BenchOptions
from avsseg.errors import WeightsError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import PRESETS, preset
from avsseg.weights.registry import DEFAULT_MODEL
from avsseg.weights.store import load_model, save_model

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


def test_the_default_model_is_measured_as_it_is_shipped() -> None:
    model = models.build_models([DEFAULT_MODEL], torch.device("cpu"))[DEFAULT_MODEL]
    assert model.config == load_model(DEFAULT_MODEL).config
    assert model.config != PRESETS[DEFAULT_MODEL]


def test_a_checkpoint_is_measured_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("avs-mamba-tiny", dim=96)
    save_model(tmp_path / "mine.safetensors", AvsMamba(config), trained=False)
    monkeypatch.chdir(tmp_path)
    (row,) = models.measure_models(replace(SMALL, models=("mine.safetensors",)))
    assert (row.model, row.backbone, row.error) == ("mine.safetensors", config.backbone, "")
    assert row.complexity is not None
    assert row.complexity.parameters == sum(parameter.numel() for parameter in AvsMamba(config).parameters())
    if sys.platform == "linux":
        assert row.peak_bytes is not None


def test_a_file_that_is_no_checkpoint_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"bad")
    options = replace(SMALL, models=("avs-mamba-tiny", str(tmp_path / "bad.safetensors")))
    heard: list[str] = []
    with pytest.raises(WeightsError, match=r"bad\.safetensors: cannot be read as safetensors"):
        models.measure_models(options, heard.append)
    assert heard == []


def test_kernels_lie_as_in_a_run() -> None:
    model = models.build_models(["avs-mamba-tiny"], torch.device("cpu"))["avs-mamba-tiny"]
    kernels = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
