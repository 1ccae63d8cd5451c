"""`avsseg train` as a user runs it: flags, files, Ctrl-C, resuming, errors of one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avsseg.cli import app
from avsseg.data.synthetic_dataset import SynthSettings, write_dataset
from avsseg.model.config import ABLATIONS, BACKBONE_ALIASES, PRESETS, VISUAL_BACKBONES
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.settings import read_toml
from avsseg.weights import load_model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert list(write_dataset(folder, SynthSettings(train=4, val=1, test=2, size=48, height=48, frame_rate=4)))
    return folder


def arguments(scenes: Path, out: Path, *more: str) -> list[str]:
    return [
        *("train", "--data", str(scenes), "--out", str(out), "--size", "32", "--threads", "1", "--workers", "0"),
        *more,
    ]


def avsseg(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "avsseg", *command], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "dice-weight=2"], ""),
        (["--set", "colour=2"], "--set colour=2: must be NAME=VALUE"),
        (["--set", "batch=two"], "the value must be a int"),
        (["--set", "workers=1"], "--set workers=1: its own option says 0. Leave one out"),
        (["--preset", "huge"], "preset is 'huge'. Choose one of: tiny, paper"),
        (["--ablate", "no-eyes"], "ablate is 'no-eyes'"),
        (["--backbone", "vmamba-x"], "unknown backbone 'vmamba-x'"),
        (["--from", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--model", "avs-mamba-resnet50"], "--init-audio vggish"),
        (["--preset", "paper", "--init-visual", "pvt_v2_b5"], "--init-audio vggish"),
        (["--precision", "fp16", "--device", "cpu"], "Use --precision bf16 or fp32"),
    ],
)
def test_errors_are_one_line(scenes: Path, tmp_path: Path, more: list[str], message: str) -> None:
    if not message:  # a right one, to see that --set reaches the run
        done = avsseg(*arguments(scenes, tmp_path / "run", "--epochs", "1", *more))
        assert done.returncode == 0, done.stderr
        assert read_toml(tmp_path / "run" / "settings.toml")["dice_weight"] == 2.0
        assert done.stdout.splitlines() == [str(tmp_path / "run" / "best.safetensors")]
        return
    done = avsseg(*arguments(scenes, tmp_path / "run", *more))
    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_lists_backbones_and_ablations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "1000")
    shown = CliRunner().invoke(app, ["train", "--help"]).stdout
    for name in (*ABLATIONS, *VISUAL_BACKBONES, *BACKBONE_ALIASES, *PRESETS):
        assert name in shown


def test_the_papers_recipe_without_its_backbone_is_said(scenes: Path, tmp_path: Path) -> None:
    done = avsseg(*arguments(scenes, tmp_path / "run", "--preset", "paper", "--init-audio", "nowhere.pth"))
    warning, error = done.stderr.splitlines()
    assert "avsseg: warning:" in warning
    assert "--init-visual" in warning
    assert "nowhere.pth: neither a file nor published weights" in error


def test_an_out_that_is_a_file_is_one_line(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    done = avsseg(*arguments(scenes, tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run: is a file, and a run needs a folder. Choose another --out")
    assert len(done.stderr.splitlines()) == 1


def test_no_data_is_said_at_once() -> None:
    done = avsseg("train", "--out", "nowhere")
    assert done.returncode == 2
    assert "give --data DIR" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("number", "code", "workers", "to_all"),
    [
        (signal.SIGINT, 130, 0, False),
        (signal.SIGTERM, 143, 0, False),
        (signal.SIGTERM, 143, 1, True),  # as `timeout` and Slurm send it
    ],
)
def test_a_stop_keeps_the_state_and_resume_goes_on(
    scenes: Path, tmp_path: Path, number: signal.Signals, code: int, workers: int, to_all: bool
) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        # a test run in a shell's background inherits an ignored SIGINT, which avsseg leaves as it is
        "import signal, avsseg.cli; signal.signal(signal.SIGINT, signal.default_int_handler); avsseg.cli.main()",
        *arguments(scenes, run, "--epochs", "500", "--set", "validate-minutes=99", "--workers", str(workers)),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 200
        # the log's first line comes after the first epoch
        while not (run / "train.csv").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        if to_all:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    # before the first validation there is no best one
    assert f"the model so far is {run / 'last.safetensors'}; go on with: avsseg train --resume --out {run}" in stderr
    assert "Traceback" not in stderr
    step = load_checkpoint(run / "last.pt")["step"]
    assert step >= 2
    again = avsseg("train", "--data", str(scenes), "--out", str(run))
    assert again.returncode == 2
    assert "Go on with --resume" in again.stderr
    done = avsseg("train", "--resume", "--out", str(run), "--epochs", str(step // 2 + 1))
    assert done.returncode == 0, done.stderr
    assert "on val at the end: M_J 0." in done.stderr
    assert load_checkpoint(run / "last.pt")["step"] > step


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_two_processes_of_torchrun_stop_together_and_go_on(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avsseg"]
    fine_tune = ("--from", "avs-mamba-tiny", "--epochs", "500", "--set", "validate-minutes=99")
    command = [*torchrun, *arguments(scenes, run, *fine_tune)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    inherited = signal.getsignal(signal.SIGINT)
    if inherited is signal.SIG_IGN:  # as in a shell's background, which the processes would hand down
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, inherited)
    with process:
        deadline = time.monotonic() + 300
        while not (run / "train.csv").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    hint = f"go on with: torchrun --nproc-per-node 2 -m avsseg train --resume --out {run}"
    assert stderr.count(hint) == stderr.count("stopping after this step") == 1, stderr
    assert stderr.count("avs-mamba-tiny works at ") == 1, stderr
    step = load_checkpoint(run / "last.pt")["step"]
    command = [*torchrun, "train", "--resume", "--out", str(run), "--epochs", str(step + 1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run / "best.safetensors")]
    assert load_checkpoint(run / "last.pt")["step"] == step + 1


def test_four_runs_make_one_model_and_go_on_where_they_stopped(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    names = ["1-encoders", "2-plain", "3-larger", "4-masks"]
    done = avsseg(*arguments(scenes, out, "--preset", "scenes", "--minutes", "0.05"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "best.safetensors")]
    assert sorted(path.name for path in out.iterdir()) == [*names, "best.safetensors", "stages.toml"]
    made = [out / name / "best.safetensors" for name in names]
    assert all(path.exists() for path in made)
    assert (out / "best.safetensors").read_bytes() == made[-1].read_bytes()
    assert [read_toml(out / name / "settings.toml")["start_from"] for name in names] == ["", *map(str, made[:3])]

    # as if it had been stopped in the third
    shutil.rmtree(out / "4-masks")
    (out / "best.safetensors").unlink()
    steps = [load_checkpoint(out / name / "last.pt")["step"] for name in names[:3]]
    for more, message in (
        (["--data", str(scenes), "--preset", "scenes"], "Go on with --resume"),
        (["--data", str(scenes)], "Go on with --resume"),
        (["--resume", "--epochs", "3"], "--preset scenes has its own epochs"),
    ):
        refused = avsseg("train", "--out", str(out), *more)
        assert refused.returncode == 2
        assert message in refused.stderr
    again = avsseg("train", "--resume", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "run 3 of 4" in again.stderr
    assert "run 2 of 4" not in again.stderr
    assert [load_checkpoint(out / name / "last.pt")["step"] for name in names[:3]] == steps
    assert load_model(out / "best.safetensors").trained


def test_four_runs_that_cannot_begin_leave_nothing(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "unlisted", ignore=shutil.ignore_patterns("clips.json"))
    out = tmp_path / "run"
    reasons = {"none": "ms3_meta_data.csv: missing", "unlisted": "--preset scenes begins"}
    for name, message in reasons.items():
        refused = avsseg(*arguments(tmp_path / name, out, "--preset", "scenes"))
        assert refused.returncode in (1, 2)
        assert message in refused.stderr.splitlines()[-1]
        assert not (out / "stages.toml").exists()
