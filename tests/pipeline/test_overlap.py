from __future__ import annotations

import sys
import threading
import time

import pytest

from avsseg.media.ffmpeg import FfmpegProcess
from avsseg.pipeline.overlap import Stopped, overlapped


def test_as_many_as_asked_are_in_work_at_once() -> None:
    together = threading.Barrier(3, timeout=20)  # passed only by three at once

    def work(item: int) -> int:
        together.wait()
        return item * item

    assert sorted(overlapped(work, range(6), 3, threading.Event())) == [0, 1, 4, 9, 16, 25]


def test_a_slow_item_holds_no_other_back() -> None:
    release = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert release.wait(20)
        return item

    results = overlapped(work, range(4), 2, threading.Event())
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    release.set()
    assert list(results) == [0]


def test_no_item_is_taken_before_there_is_a_worker_for_it() -> None:
    taken = []

    def items() -> object:
        for item in range(10):
            taken.append(item)
            yield item

    results = overlapped(lambda item: item, items(), 2, threading.Event())  # type: ignore[arg-type, var-annotated]
    next(results)
    assert len(taken) == 2
    results.close()  # type: ignore[attr-defined]


def test_an_exception_comes_after_results_that_are_finished_and_stops_the_rest() -> None:
    stopping, done = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert done.wait(20)
            raise ValueError("broken")
        if item == 1:
            done.set()
            return item
        if not stopping.wait(20):
            raise AssertionError("was not told to stop")
        raise Stopped

    results = overlapped(work, range(3), 3, stopping)
    assert next(results) == 1
    with pytest.raises(ValueError, match="broken"):
        next(results)
    assert stopping.is_set()


def test_closing_ends_the_programs_that_workers_wait_for() -> None:
    started = threading.Event()
    codes = []

    def work(item: int) -> int:
        if item == 0:
            assert started.wait(20)
            return item
        with FfmpegProcess([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
            started.set()
            codes.append(process.wait())
        raise Stopped

    results = overlapped(work, range(2), 2, threading.Event())
    assert next(results) == 0
    before = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - before < 60
    assert codes
    assert codes[0] != 0
