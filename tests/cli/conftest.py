from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest
import torch

import avsseg.cli

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def avsseg_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., CompletedProcess[str]]]:
    """`avsseg ARGUMENTS...` in this process, through `main`."""
    monkeypatch.setenv("COLUMNS", "200")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads = torch.get_num_threads()

    def run(*arguments: object) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["avsseg", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            avsseg.cli.main()
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return CompletedProcess(sys.argv, stop.value.code, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def start_avsseg() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m avsseg ARGUMENTS...` as a process of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        # a test run under nohup, or in a shell's background, would hand down signals that it ignores
        ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "avsseg", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        finally:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
