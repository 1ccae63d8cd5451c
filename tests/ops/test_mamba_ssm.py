"""The back end that calls mamba-ssm, with a plain loop in the place of its CUDA kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avsseg.ops import mamba_ssm, reference
from avsseg.ops import selective_scan as module


def plain_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn` step by step in float64.

    u, delta (B, D, L) and B, C (B, G, N, L) in one dtype; A (D, N), D and delta_bias (D,) in float32, float64 if u is.
    """
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    parameter_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    assert z is None
    assert delta_bias is not None
    assert delta_softplus
    assert delta.shape == u.shape
    assert B.shape == C.shape == (batch, groups, states, length)
    assert A.shape == (channels, states)
    assert D.shape == delta_bias.shape == (channels,)
    assert {t.dtype for t in (delta, B, C)} == {u.dtype}
    assert {t.dtype for t in (A, D, delta_bias)} == {parameter_dtype}
    x = delta.double() + delta_bias.double()[:, None]
    step = torch.logaddexp(x, torch.zeros_like(x))
    inputs = u.double()
    B, C = (t.double().repeat_interleave(channels // groups, dim=1) for t in (B, C))  # (B, D, N, L)
    hidden = inputs.new_zeros(batch, channels, states)
    outputs = []
    for time in range(length):
        drive = (step[..., time] * inputs[..., time])[..., None] * B[..., time]
        hidden = (step[..., time, None] * A.double()).exp() * hidden + drive
        outputs.append((hidden * C[..., time]).sum(-1) + D.double() * inputs[..., time])
    return torch.stack(outputs, dim=-1).to(u.dtype)


class Operators(TorchDispatchMode):
    """The names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_ssm, "_load", lambda: (plain_selective_scan, ""))


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_choose", lambda backend, tokens: backend)


@pytest.mark.parametrize("output_from", [0, 4])
@pytest.mark.parametrize("sizes", [(2, 9, 5, 3, 2, 4, 3), (1, 6, 4, 1, 3, 1, 0)], ids=str)
def test_output_and_gradients_equal_the_reference(sizes, output_from, random_problem):
    problem = random_problem(*sizes)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = [problem.tokens, projected, problem.plan, *problem.tensors()[3:]]
    results = []
    for scan in (mamba_ssm.scan, reference.scan):
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
        out = scan(*leaves, output_from=output_from)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        results.append((out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], weight)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_sorts_no_indices(random_problem):
    problem = random_problem(1, 4, 3, 2, 2).with_grad()
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    out = mamba_ssm.scan(problem.tokens, projected, problem.plan, *problem.tensors()[3:], output_from=0)
    with Operators() as operators:
        out.sum().backward()
    assert "index_add" in {name.rstrip("_") for name in operators.names}
    assert not {name for name in operators.names if "index_put" in name}  # sorts them, on CUDA


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("_on_the_cpu")
def test_sixteen_bit_tokens_reach_mamba_ssm_as_they_are(dtype, monkeypatch, random_problem, scan, assert_close):
    seen = []

    def watched(u: Tensor, *others: Tensor, **options: object) -> Tensor:
        seen.append(u.dtype)
        return plain_selective_scan(u, *others, **options)

    monkeypatch.setattr(mamba_ssm, "_load", lambda: (watched, ""))
    problem = random_problem(2, 8, 6, 4, 2).to(dtype).with_grad()
    wide = problem.to(torch.float32).with_grad()
    out, expected = scan(problem, backend="mamba-ssm"), scan(wide, backend="torch")
    assert seen == [dtype]
    assert out.dtype == dtype
    assert_close(out, expected, 4 * torch.finfo(dtype).eps)
    gradients = torch.autograd.grad(out.sum(), problem.differentiable())
    expected_gradients = torch.autograd.grad(expected.sum(), wide.differentiable())
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, other, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("sizes", [(0, 5, 4, 2, 2), (2, 0, 4, 2, 2), (2, 5, 4, 0, 2)], ids=str)
@pytest.mark.usefixtures("_on_the_cpu")
def test_empty_problems(sizes, random_problem, scan):
    problem = random_problem(*sizes, unvisited=3).to(torch.float32)
    out = scan(problem, backend="mamba-ssm")
    assert out.shape == problem.tokens.shape
    assert not out.any()


@pytest.mark.usefixtures("_on_the_cpu")
def test_a_plan_is_checked_once(monkeypatch, random_problem, scan):
    checks = []
    monkeypatch.setattr(reference, "validate_plan", lambda plan, positions: checks.append(positions))
    problem = random_problem(1, 4, 3, 1, 2).to(torch.float32)
    for _ in range(3):
        scan(problem, backend="mamba-ssm")
    assert checks == [4]


def test_what_mamba_ssm_deprecates_does_not_keep_it_from_being_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    warning = "import warnings\nwarnings.warn('deprecated', FutureWarning)\nselective_scan_fn = print\n"
    (package / "selective_scan_interface.py").write_text(warning)
    monkeypatch.undo()  # what stands for it everywhere else
    monkeypatch.syspath_prepend(str(tmp_path))
    load = mamba_ssm._load.__wrapped__  # without its cache
    try:
        assert load() == (print, "")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
