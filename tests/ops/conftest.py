"""Random scan problems, and the recurrence they are compared with: a plain loop that shares no code with avsseg."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from avsseg.ops import cpu
from avsseg.ops.selective_scan import selective_scan


@dataclass(frozen=True)
class Problem:
    """The tensor arguments of `selective_scan`, in its order."""

    tokens: Tensor
    plan: Tensor
    x_proj_weight: Tensor
    dt_projs_weight: Tensor
    dt_projs_bias: Tensor
    A_logs: Tensor
    Ds: Tensor

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def to(self, dtype: torch.dtype) -> Problem:
        return Problem(*(t.to(dtype) if t.is_floating_point() else t for t in self.tensors()))

    def with_grad(self) -> Problem:
        return Problem(*(t.detach().requires_grad_() if t.is_floating_point() else t for t in self.tensors()))

    def replace(self, **tensors: Tensor) -> Problem:
        return replace(self, **tensors)

    def differentiable(self) -> list[Tensor]:
        return [t for t in self.tensors() if t.is_floating_point()]


Scan: TypeAlias = Callable[..., Tensor]


def _random_problem(
    batch: int,
    length: int,
    channels: int,
    directions: int,
    states: int,
    rank: int = 3,
    unvisited: int = 0,
    seed: int = 0,
) -> Problem:
    """Float64 values that float32 represents exactly; each direction visits `length` of length + unvisited tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    positions = length + unvisited
    decay = torch.arange(1, states + 1).float().log().double()
    return Problem(
        normal(batch, positions, channels),
        torch.stack([torch.randperm(positions, generator=generator)[:length] for _ in range(directions)])
        if directions
        else torch.zeros(0, length, dtype=torch.int64),
        (normal(directions, rank + 2 * states, channels) * channels**-0.5).float().double(),
        (normal(directions, channels, rank) * rank**-0.5).float().double(),
        (normal(directions, channels) - 3).float().double(),
        decay + (0.1 * normal(directions * channels, states)).float().double(),
        normal(directions * channels),
    )


def _recurrence(problem: Problem, output_from: int = 0) -> Tensor:
    rows = problem.tokens.unbind(1)
    outputs = [torch.zeros_like(row) for row in rows]
    directions, channels, rank = problem.dt_projs_weight.shape
    states = problem.A_logs.shape[1]
    A_all = -problem.A_logs.exp().reshape(directions, channels, states)
    for k in range(directions):
        skip = problem.Ds.reshape(directions, channels)[k]
        hidden = problem.tokens.new_zeros(problem.tokens.shape[0], channels, states)
        for position in problem.plan[k].tolist():
            u = rows[position]
            dt, B, C = (u @ problem.x_proj_weight[k].T).split([rank, states, states], dim=1)
            x = dt @ problem.dt_projs_weight[k].T + problem.dt_projs_bias[k]
            delta = torch.logaddexp(x, torch.zeros_like(x))
            hidden = (delta[:, :, None] * A_all[k]).exp() * hidden + (delta * u)[:, :, None] * B[:, None, :]
            outputs[position] = outputs[position] + (hidden * C[:, None, :]).sum(2) + skip * u
    return torch.stack(outputs, dim=1)[:, output_from:]


@pytest.fixture
def random_problem() -> Callable[..., Problem]:
    return _random_problem


@pytest.fixture
def recurrence() -> Scan:
    return _recurrence


@pytest.fixture
def scan() -> Scan:
    def run(problem: Problem, **options: object) -> Tensor:
        return selective_scan(*problem.tensors(), **options)

    return run


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    largest_error = (actual.detach().double() - expected.detach().double()).abs().max()
    assert largest_error <= tolerance * expected.detach().abs().max()


@pytest.fixture
def assert_close() -> Callable[[Tensor, Tensor, float], None]:
    """max |a - b| <= tolerance * max |b|."""
    return _assert_close


@pytest.fixture
def compiled_scan() -> None:
    """Tests of the C++ scan are skipped where it was not compiled; the rest of the suite runs on the PyTorch one."""
    if cpu.UNAVAILABLE_REASON:
        pytest.skip(cpu.UNAVAILABLE_REASON)


@pytest.fixture(params=cpu.CAPABILITIES)
def capability(request: pytest.FixtureRequest, compiled_scan: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this processor in turn."""
    monkeypatch.delenv(cpu.CAPABILITY_VARIABLE, raising=False)
    if cpu.CAPABILITIES.index(request.param) > cpu.CAPABILITIES.index(cpu.capability()):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, request.param)
    return str(request.param)


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
