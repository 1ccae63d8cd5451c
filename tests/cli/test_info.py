from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

import avsseg
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.ops import cpu
from avsseg.ops.selective_scan import available_backends


def test_info_says_what_runs_and_why(avsseg_main: Callable[..., CompletedProcess[str]]) -> None:
    outcome = avsseg_main("info", "--json")
    assert outcome.returncode == 0
    facts = json.loads(outcome.stdout)
    assert facts["avsseg"] == avsseg.__version__
    assert str(find_ffmpeg().path) in facts["ffmpeg"]
    assert find_ffmpeg().source in facts["ffmpeg"]
    assert "torch" in facts["packages"]
    usable = [name for name, reason in available_backends().items() if not reason]
    assert facts["scan back end"].startswith(f"{usable[0]} on the CPU")
    assert any(name.startswith("weights") for name in facts)


def test_info_says_why_the_compiled_scan_is_not_used(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "UNAVAILABLE_REASON", "not compiled: no compiler")
    scan = json.loads(avsseg_main("info", "--json").stdout)["scan back end"]
    assert scan == "torch on the CPU (usable: torch); cpp cannot be used: not compiled: no compiler"


@pytest.mark.skipif(bool(cpu.UNAVAILABLE_REASON), reason="the C++ scan is not compiled")
def test_info_names_the_instruction_set_and_a_wrong_one(
    avsseg_main: Callable[..., CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "portable")
    assert "cpp on the CPU with portable instructions" in avsseg_main("info").stdout
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
