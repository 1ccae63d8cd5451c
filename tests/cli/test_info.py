from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import avsseg
from avsseg.cli.cuda import driver_cuda_version, gpu_capability, missing_for_cuda
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.ops import cpu
from avsseg.ops.selective_scan import automatic_backend, available_backends
from avsseg.pipeline.device import resolve_device


def test_info_says_what_runs_and_why(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    outcome = avsseg_main("info", "--json")
    assert outcome.returncode == 0
    facts = json.loads(outcome.stdout)
    assert facts["avsseg"] == avsseg.__version__
    assert str(find_ffmpeg().path) in facts["ffmpeg"]
    assert find_ffmpeg().source in facts["ffmpeg"]
    assert "torch" in facts["packages"]
    assert "mamba-ssm" in facts["optional"]
    assert facts["scan back end"].startswith(f"{automatic_backend(resolve_device('auto'))} on ")
    usable = [name for name, reason in available_backends().items() if not reason]
    assert f"(usable: {', '.join(usable)})" in facts["scan back end"]
    for name, reason in available_backends().items():
        assert not reason or f"{name} cannot be used: {reason}" in facts["scan back end"]
    assert any(name.startswith("weights") for name in facts)
    assert "## Data" in Path(facts["model card"]).read_text(encoding="utf-8")


def test_info_says_why_the_compiled_scan_is_not_used(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "UNAVAILABLE_REASON", "not compiled: no compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scan = json.loads(avsseg_main("info", "--json").stdout)["scan back end"]
    assert scan.startswith("torch on the CPU, because cpp cannot be used (usable: torch")
    assert "cpp cannot be used: not compiled: no compiler" in scan


@pytest.mark.skipif(bool(cpu.UNAVAILABLE_REASON), reason="the C++ scan is not compiled")
def test_info_names_the_instruction_set_and_a_wrong_one(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "portable")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cpp on the CPU with portable instructions, the fastest on the CPU" in avsseg_main("info").stdout
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "mmx")
    assert "cpp cannot be used: AVSSEG_CPU_CAPABILITY=mmx" in avsseg_main("info").stdout


def test_info_is_readable_lines(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    lines = avsseg_main("info").stdout.splitlines()
    assert lines[0].split() == ["avsseg", avsseg.__version__]
    assert all(line.strip() for line in lines)


def test_info_names_a_missing_ffmpeg_instead_of_failing(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSEG_FFMPEG", "/no/such/ffmpeg")
    outcome = avsseg_main("info")
    assert outcome.returncode == 0
    assert "missing: AVSSEG_FFMPEG=/no/such/ffmpeg" in outcome.stdout


def test_info_shows_the_weights_cache_and_its_size(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AVSSEG_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "weights"
    cache = json.loads(avsseg_main("info", "--json").stdout)["weights cache"]
    assert cache.startswith(f"{folder}, empty")
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(bytes(2**20))
    (folder / "b.pth.partial").write_bytes(bytes(2**19))
    cache = json.loads(avsseg_main("info", "--json").stdout)["weights cache"]
    assert cache.startswith(f"{folder}, 2 file(s), 1.5 MiB")


def test_info_names_a_cache_that_cannot_be(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    homes = {str(tmp_path / "file"): "is a file"}
    if os.name != "nt":  # which takes any user's folder to lie beside one's own
        homes["~nosuch/x"] = "its home directory is unknown"
    for home, reason in homes.items():
        monkeypatch.setenv("AVSSEG_HOME", home)
        outcome = avsseg_main("info", "--json")
        assert outcome.returncode == 0
        cache = json.loads(outcome.stdout)["weights cache"]
        assert cache.startswith("unusable: ")
        assert f"{reason}. Set AVSSEG_HOME to a folder" in cache


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is usable")
def test_info_says_how_to_get_cuda(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    cuda = json.loads(avsseg_main("info", "--json").stdout)["cuda"]
    assert cuda.startswith("not usable: ")
    driver, capability = driver_cuda_version(), gpu_capability()
    steps = missing_for_cuda(str(torch.__version__), torch.version.cuda, driver, capability=capability)
    assert steps
    assert all(step in cuda for step in steps)
