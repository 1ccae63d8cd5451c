"""Threads that share a model take turns, and the one whose turn it is does the work of those who wait, where it can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Request:
    item: Any
    alone: bool = False
    result: Any = None
    done: bool = False


class SharedTurn:
    """One thread at a time: two passes at once would share the processor and hold twice the memory.

    `most` is how many windows are known to fit into memory together, once too many did not; all threads keep to it.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: list[_Request] = []

    def __enter__(self) -> None:
        self._turn.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._turn.release()

    def combined(
        self,
        item: Item,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        fits: Callable[[Sequence[Item], Item], bool],
    ) -> Result:
        """What `work` makes of the item: it is given this one and those of waiting threads, and returns one each.

        `fits(chosen, other)` says whether another item may join those chosen so far. What `work` raises of several
        items it is given again one by one, so that an error reaches the thread whose item it is.
        """
        request = _Request(item)
        with self._guard:
            self._waiting.append(request)
        try:
            with self:
                if not request.done:
                    self._do(request, work, fits)
        finally:
            with self._guard:  # an interrupt may come while it waits
                if request in self._waiting:
                    self._waiting.remove(request)
        result: Result = request.result
        return result

    def _do(
        self,
        own: _Request,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        fits: Callable[[Sequence[Any], Any], bool],
    ) -> None:
        chosen = self._taken(own, fits)
        results: Sequence[Any] | None = None
        try:
            results = work([request.item for request in chosen])
        except Exception:
            if len(chosen) == 1:
                raise
        finally:
            if results is None:
                with self._guard:
                    for other in chosen[1:]:
                        other.alone = True
                        self._waiting.append(other)
        if results is None:  # behind the block above, which holds all memory of the pass that failed
            chosen = [own]
            results = work([own.item])
        for request, result in zip(chosen, results, strict=True):
            request.result, request.done = result, True

    def _taken(self, own: _Request, fits: Callable[[Sequence[Any], Any], bool]) -> list[_Request]:
        """The request and those that may join it, none of which waits any more."""
        chosen = [own]
        with self._guard:
            self._waiting.remove(own)
            for other in list(self._waiting):
                alone = own.alone or other.alone
                if not alone and fits([request.item for request in chosen], other.item):
                    self._waiting.remove(other)
                    chosen.append(other)
        return chosen
