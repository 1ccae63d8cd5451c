"""`avsseg evaluate` as a user meets it: models trained without sound, and places that cannot be written to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from typer.testing import CliRunner

from avsseg.cli import app
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.errors import OutputError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights.store import load_model, save_model

Main = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert list(write_dataset(folder, SynthSettings(train=0, val=0, test=1, size=48, height=48, frame_rate=4)))
    return folder


def checkpoint(path: Path, **settings: object) -> Path:
    """A narrow model as `avsseg train` leaves it, with those of its settings."""
    config = AvsMambaConfig(
        backbone="resnet18_slim", audio_encoder="compact", dim=32, state_size=2, head_hidden=8, head_channels=(8, 4)
    )
    save_model(path, AvsMamba(config), training={"settings": settings, "steps": 1})
    return path


def arguments(scenes: Path, model: Path, *more: object) -> list[object]:
    return ["evaluate", "--data", scenes, "--model", model, "--size", 32, "--workers", 0, *more]


def test_a_model_trained_without_sound_is_scored_without_it(avsseg_main: Main, scenes: Path, tmp_path: Path) -> None:
    muted = checkpoint(tmp_path / "muted.safetensors", mute=True)
    assert load_model(muted).training["settings"] == {"mute": True}
    note = f"avsseg: note: {muted} was trained with --mute, so it is played silence. --no-mute plays it sound\n"
    outcome = avsseg_main(*arguments(scenes, muted, "--json"))
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == note
    assert json.loads(outcome.stdout)["mute"] is True
    assert "silence" in avsseg_main(*arguments(scenes, muted)).stdout
    loud = avsseg_main(*arguments(scenes, muted, "--no-mute", "--json"))
    assert loud.stderr == ""
    assert "silence" not in avsseg_main(*arguments(scenes, muted, "--no-mute")).stdout
    assert json.loads(loud.stdout)["mute"] is False
    hearing = checkpoint(tmp_path / "hearing.safetensors", mute=False)
    for more, expected in (((), False), (("--mute",), True)):
        outcome = avsseg_main(*arguments(scenes, hearing, "--json", *more))
        assert outcome.stderr == ""
        assert json.loads(outcome.stdout)["mute"] is expected


def test_a_result_says_which_run_s_model_it_is_of(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "[first]").mkdir(parents=True)
    best = checkpoint(tmp_path / "runs" / "[first]" / "best.safetensors")
    monkeypatch.chdir(tmp_path)
    given = Path("runs", "[first]", "best.safetensors")
    outcome = avsseg_main(*arguments(scenes, given, "--out", "result.json", "--report", "page"))
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(Path("result.json").read_text())["model"] == str(given)
    assert f"<title>{given} on ms3 test</title>" in Path("page", "index.html").read_text()
    head, conditions, *_ = outcome.stdout.splitlines()
    assert head == f"{given} on ms3 test"
    assert conditions.startswith("1 clips, protocol strict, input 32 px, truth at its own size, weights ")
    monkeypatch.chdir(best.parent)
    outcome = avsseg_main(*arguments(scenes, Path("best.safetensors"), "--json"))
    assert json.loads(outcome.stdout)["model"] == "[first]/best.safetensors"


def test_a_folder_without_the_subset_says_which_it_has(avsseg_main: Main, scenes: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    outcome = avsseg_main(*arguments(scenes, model, "--subset", "s4"))
    assert outcome.returncode == 1
    assert outcome.stderr == f"avsseg: error: {scenes}: holds no s4, but ms3. Add --subset ms3\n"
    both = shutil.copytree(scenes, tmp_path / "both")
    (both / "metadata.csv").write_text("vid,uid,s_min,s_sec,a_obj,split,label\n")
    outcome = avsseg_main(*arguments(both, model, "--subset", "s4"))
    assert outcome.stderr.endswith("holds no s4, but ms3 and avss. Add --subset ms3 or --subset avss\n")
    outcome = avsseg_main(*arguments(tmp_path, model))
    assert outcome.returncode == 1
    assert "holds no AVSBench subset" in outcome.stderr


@pytest.mark.parametrize("given", ["run", "run/last.pt"])
def test_a_run_in_place_of_its_model_names_the_model(
    avsseg_main: Main, scenes: Path, tmp_path: Path, given: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes(b"state")
    best = checkpoint(run / "best.safetensors")
    outcome = avsseg_main(*arguments(scenes, tmp_path / given))
    assert outcome.returncode == 3
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.endswith(f"Give {best}\n")


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_place_that_cannot_be_written_to_is_found_first(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("mine")

    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("avsseg.weights.store.load_model", refused)
    outcome = avsseg_main(*arguments(scenes, model, option, tmp_path / "file" / "result"))
    assert outcome.returncode == 1
    assert "file/result" in outcome.stderr
    assert "cannot be written" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_the_model_itself_and_a_pipe_are_no_place_for_a_result(avsseg_main: Main, scenes: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    before = model.read_bytes()
    outcome = avsseg_main(*arguments(scenes, model, "--out", model))
    assert outcome.returncode == 2
    assert outcome.stderr == f"avsseg: error: --out {model}: is the model itself. Choose another name\n"
    assert model.read_bytes() == before
    if hasattr(os, "mkfifo"):
        pipe = tmp_path / "pipe.json"
        os.mkfifo(pipe)
        outcome = avsseg_main(*arguments(scenes, model, "--out", pipe))
        assert outcome.returncode == 1
        assert "is a device or a pipe" in outcome.stderr
        assert pipe.is_fifo()


def test_more_threads_than_there_can_be_are_refused(avsseg_main: Main, scenes: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    outcome = avsseg_main(*arguments(scenes, model, "--threads", 99999))
    assert outcome.returncode == 2
    assert "1024" in outcome.stderr


def test_places_that_do_not_exist_yet_are_made_and_left_alone_until_then(
    avsseg_main: Main, scenes: Path, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    targets = ("--out", tmp_path / "new" / "result.json", "--report", tmp_path / "pages" / "first")
    outcome = avsseg_main(*arguments(scenes, model, *targets, "--split", "val"))
    assert outcome.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    outcome = avsseg_main(*arguments(scenes, model, *targets))
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((tmp_path / "new" / "result.json").read_text())["clips"] == 1
    assert [path.name for path in (tmp_path / "pages" / "first").iterdir()] == ["index.html"]


def test_the_table_is_printed_before_it_is_written(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")

    def full(target: Path) -> Any:
        raise OutputError(f"{target}: cannot be written: No space left on device. Free space there")

    monkeypatch.setattr("avsseg.writers.base.written_whole", full)
    outcome = avsseg_main(*arguments(scenes, model, "--out", tmp_path / "result.json"))
    assert outcome.returncode == 1
    assert "No space left" in outcome.stderr
    assert "M_J" in outcome.stdout


def test_out_of_memory_names_the_folder_and_a_remedy(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model.safetensors")

    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AvsMamba, "forward", exhausted)
    outcome = avsseg_main(*arguments(scenes, model))
    assert outcome.returncode == 3
    assert outcome.stderr == (
        f"avsseg: error: {scenes}: memory ran out. Close other programs, or give a smaller --size\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="closes a POSIX pipe")
def test_files_are_written_also_where_nobody_reads_the_tables(scenes: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model.safetensors")
    out, report = tmp_path / "result.json", tmp_path / "report"
    command = map(str, [sys.executable, "-m", "avsseg", *arguments(scenes, model, "--out", out, "--report", report)])
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(list(command), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    finally:
        os.close(writing)
    assert "Traceback" not in done.stderr
    assert json.loads(out.read_text())["clips"] == 1
    assert (report / "index.html").exists()


def test_the_tables_are_printed_also_where_a_file_is_refused(
    avsseg_main: Main, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OutputError("index.html: no space left on the device")

    monkeypatch.setattr("avsseg.evaluation.report.write_report", refused)
    model = checkpoint(tmp_path / "model.safetensors")
    outcome = avsseg_main(*arguments(scenes, model, "--report", tmp_path / "report"))
    assert outcome.returncode == OutputError.exit_code
    assert "M_J" in outcome.stdout
    assert outcome.stderr.endswith("avsseg: error: index.html: no space left on the device\n")


def test_evaluate_prints_a_table_and_writes_everything(scenes: Path, tmp_path: Path, untrained_file: Path) -> None:
    common = ["evaluate", "--data", str(scenes), "--model", str(untrained_file), "--allow-untrained", "--workers", "0"]
    out, report = tmp_path / "result.json", tmp_path / "report"
    result = CliRunner().invoke(app, [*common, "--size", "32", "--out", str(out), "--report", str(report)])
    assert result.exit_code == 0, result.output
    assert "M_J" in result.stdout
    assert (report / "index.html").exists()
    written = json.loads(out.read_text())
    assert (written["clips"], written["input_size"], written["protocol"]) == (1, 32, "strict")
    assert written["sha256"]
    result = CliRunner().invoke(app, [*common, "--size", "32", "--json", "--protocol", "avsbench"])
    assert json.loads(result.stdout)["batch"] == 1


def test_evaluate_refuses_what_is_not_there(scenes: Path, tmp_path: Path, avsseg_main: Main) -> None:
    for more, message in (
        (["--data", str(tmp_path)], "holds no AVSBench subset"),
        (["--data", str(scenes), "--subset", "s5"], "--subset s5"),
        (["--data", str(scenes), "--split", "all"], "--split all"),
        (["--data", str(scenes), "--negative", "echo"], "echo"),
        (["--data", str(scenes), "--model", "none.safetensors"], "none.safetensors"),
    ):
        done = avsseg_main("evaluate", *more)
        assert done.returncode in (1, 2, 3)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
