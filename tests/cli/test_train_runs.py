"""The runs of `avsseg train`, which are stood in for: when the next one begins, and what is said of going on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from avsseg.cli.train_progress import shown
from avsseg.cli.train_runs import _go_on, _run_stages
from avsseg.training.settings import training_preset


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stop_too_late_for_one_of_four_runs_keeps_the_next_from_beginning(
    number: int,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun: list[str] = []

    def run_one(folder: Path, *_: object, **named: object) -> tuple[Path, list[int]]:
        begun.append(folder.name)
        return folder / "best.safetensors", [number] if folder.name == "2-plain" else []

    monkeypatch.setattr("avsseg.cli.train_runs._run_one", run_one)
    with shown() as display, pytest.raises(error) as raised:
        _run_stages(tmp_path, training_preset("scenes", "ms3"), display, resume=False)
    assert number == signal.SIGINT or raised.value.code == 143  # type: ignore[attr-defined]
    assert begun == ["1-encoders", "2-plain"]
    stopped = capsys.readouterr().err.splitlines()[-1]
    assert stopped == f"stopped after run 2; go on with: avsseg train --resume --out {tmp_path}"


def test_another_launcher_s_processes_are_not_torchruns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")

    def run_one(folder: Path, *_: object, **named: object) -> tuple[Path, list[int]]:
        folder.mkdir(parents=True)
        (folder / "best.safetensors").touch()
        return folder / "best.safetensors", []

    monkeypatch.setattr("avsseg.cli.train_runs._run_one", run_one)
    with shown() as display:
        best = _run_stages(tmp_path, training_preset("scenes", "ms3"), display, resume=False)
    assert best.exists()
    assert capsys.readouterr().err.startswith("run 1 of 4")


def test_what_goes_on_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert _go_on(Path("my run")) == "go on with: avsseg train --resume --out 'my run'"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert _go_on(Path("run")) == "go on with: torchrun --nproc-per-node 2 -m avsseg train --resume --out run"
