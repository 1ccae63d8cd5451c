"""Training in several processes: a process group that ends in order, work that fails in all of them or in none, and
what they make together of gradients, figures and clocks. Outside a process group there is one process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

from avsseg.errors import AvssegError
from avsseg.pipeline.scoring import memory_faults

MEMORY_REMEDY = "Give a smaller --batch, with --accumulate, or a smaller --size"
Done = TypeVar("Done")


class OtherProcessError(AvssegError):
    """Another process of the run failed, which tells why."""


@contextlib.contextmanager
def process_group(**arguments: Any) -> Iterator[None]:
    """A gloo process group for the length of the block; `arguments` are those of `init_process_group`.

    All processes leave the block together. Without the barrier one would close its connections while another still
    validates or saves; without the destruction gloo's threads would outlive the interpreter and abort the process
    (pytorch/pytorch#179291).
    """
    # the others wait while the first saves and draws, and while the slowest validates, which may take hours
    torch.distributed.init_process_group("gloo", **{"timeout": timedelta(days=1), **arguments})
    try:
        yield
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 outside a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def any_of_all(flag: bool) -> bool:
    """Whether it is set in any of the processes."""
    if rank_and_world()[1] == 1:
        return flag
    found = torch.tensor(float(flag))
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def all_wait() -> None:
    """Until all processes are here, where there are several."""
    if rank_and_world()[1] > 1:
        torch.distributed.barrier()


def together(work: Callable[[], Done], where: str) -> Done:
    """What `work` returns; if it raises AvssegError in one process, all raise: the others OtherProcessError."""
    error: AvssegError | None = None
    try:
        done = work()
    except AvssegError as caught:
        error = caught
    failed = any_of_all(error is not None)
    if error is not None:
        raise error
    if failed:
        raise OtherProcessError(f"{where}: another process of the run failed and tells why")
    return done


def from_all(work: Callable[[], Done], where: str) -> list[Done]:
    """What `work` returns in every process, by rank; it must be picklable.

    Fails as `together` does, also where memory runs out in one process: the exchange of the others would break off.
    """

    def guarded() -> Done:
        with memory_faults(where, MEMORY_REMEDY):
            return work()

    done = together(guarded, where)
    world = rank_and_world()[1]
    if world == 1:
        return [done]
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, done)
    return parts


def mean(values: Iterable[float]) -> float:
    """The mean of what is a number: a batch without silent frames, say, has no area on silent frames."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def means_of_all(values: Mapping[str, float]) -> dict[str, float]:
    """As `mean` over all processes, which have values of the same names."""
    if rank_and_world()[1] == 1:
        return dict(values)
    present = torch.tensor([not math.isnan(value) for value in values.values()], dtype=torch.float64)
    total = torch.tensor([0.0 if math.isnan(value) else value for value in values.values()], dtype=torch.float64)
    both = torch.stack([total, present])
    torch.distributed.all_reduce(both)
    return dict(zip(values, (both[0] / both[1]).tolist(), strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives the parameters, the same in all processes, the mean of their gradients."""
    world = rank_and_world()[1]
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def first_buffers(module: nn.Module) -> None:
    """Gives the module in every process the buffers of that of the first."""
    if rank_and_world()[1] > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def agreed(seconds: float, stop: bool) -> tuple[float, bool]:
    """The first process's clock, and whether any was asked to stop, so that all end at the same step."""
    if rank_and_world()[1] == 1:
        return seconds, stop
    clock = torch.tensor(seconds, dtype=torch.float64)
    torch.distributed.broadcast(clock, 0)
    return float(clock), any_of_all(stop)
