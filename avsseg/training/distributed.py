"""Training in several processes: a process group that ends in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed


@contextlib.contextmanager
def process_group(**arguments: Any) -> Iterator[None]:
    """A gloo process group for the length of the block; `arguments` are those of `init_process_group`.

    All processes leave the block together. Without the barrier one would close its connections while another still
    validates or saves; without the destruction gloo's threads would outlive the interpreter and abort the process
    (pytorch/pytorch#179291).
    """
    # the others wait while the first validates, which may take hours
    torch.distributed.init_process_group("gloo", **{"timeout": timedelta(days=1), **arguments})
    try:
        yield
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def any_of_all(flag: bool) -> bool:
    """Whether it is set in any of the processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    found = torch.tensor(float(flag))
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def all_wait() -> None:
    """Until all processes are here, where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
