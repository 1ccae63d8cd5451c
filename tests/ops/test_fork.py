"""Processes forked from one that has computed: OpenMP's threads are not there any more."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing
import sys
import warnings

import torch

import avsseg

warnings.simplefilter("ignore")  # from Python 3.12 on of every fork of a process with threads
weights, video = sys.argv[1:]
model = avsseg.load_model(weights, allow_untrained=True)
torch.ones(1 << 20).exp()
assert torch.get_num_threads() > 1


def masks(path):
    with avsseg.segment(path, model=model, options=avsseg.SegmentOptions(size=64)) as track:
        return sum(1 for _ in track)


print(multiprocessing.get_context("fork").Pool(1).map(masks, [video]), torch.get_num_threads())
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are never forked here")
def test_a_forked_process_segments(untrained_file: Path, clip: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(untrained_file), str(clip)]
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}, start_new_session=True
    ) as process:
        try:
            stdout, _ = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):  # of the group none is left
                os.killpg(process.pid, signal.SIGKILL)
    assert stdout == "[3] 2\n"
