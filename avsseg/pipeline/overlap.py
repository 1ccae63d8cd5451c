"""Several inputs of a batch in work at once, so that the decoding and writing of some fill the pauses of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from avsseg.media.ffmpeg import kill_running

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_AGAIN_S = 0.05


class Stopped(BaseException):
    """Work was given up because its batch ends early; like KeyboardInterrupt, but in another thread than the first."""


def overlapped(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, stopping: threading.Event
) -> Iterator[Result]:
    """What `work` makes of each item, as they are finished, `workers` of them at once in threads of their own.

    When the iteration ends early, by an exception of `work`, an interrupt or `close`, `stopping` is set, every ffmpeg
    of this process is ended, and the rest is waited for: `work` must look at `stopping` often, and then raise
    `Stopped`.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix="avsseg-job")
    running: set[Future[Result]] = set()
    try:
        for item in items:
            running.add(executor.submit(work, item))
            if len(running) == workers:
                yield from _finished(running)
        while running:
            yield from _finished(running)
    finally:
        stopping.set()
        while wait(running, timeout=0).not_done:
            kill_running()  # again and again: one may just have been started
            wait(running, timeout=_LOOK_AGAIN_S)
        executor.shutdown()


def _finished(running: set[Future[Result]]) -> Iterator[Result]:
    """Waits for one at least; what is finished leaves `running`, an exception comes after the results."""
    done = wait(running, return_when=FIRST_COMPLETED).done
    running -= done
    for future in sorted(done, key=lambda future: future.exception() is not None):
        yield future.result()
