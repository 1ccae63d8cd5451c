from __future__ import annotations

import pytest
import torch

from avsseg.ops import cpu
from avsseg.ops import selective_scan as module
from avsseg.ops.selective_scan import available_backends, selective_scan, set_default_backend

BACKENDS = [
    pytest.param("cpp", marks=pytest.mark.skipif(bool(cpu.UNAVAILABLE_REASON), reason=cpu.UNAVAILABLE_REASON)),
    "torch",
]


@pytest.fixture
def _restore_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_default_backend", "auto")


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_from_drops_rows_and_nothing_else(backend, random_problem, scan):
    problem = random_problem(2, 40, 16, 4, 4).to(torch.float32).with_grad()
    whole = scan(problem, backend=backend)[:, 25:]
    part = scan(problem, backend=backend, output_from=25)
    torch.testing.assert_close(part, whole)
    gradients = [torch.autograd.grad(out.square().sum(), problem.differentiable()) for out in (part, whole)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_no_direction_visits_are_zero(backend, random_problem, scan):
    problem = random_problem(2, 10, 16, 2, 4, unvisited=30).to(torch.float32)
    visited = torch.zeros(40, dtype=torch.bool).index_fill(0, problem.plan.flatten(), True)
    out = scan(problem, backend=backend)
    assert not out[:, ~visited].any()
    assert out[:, visited].abs().amin(dim=2).min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plan_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("row", "message"),
    [([0, 1, 5], "table of 5 tokens"), ([0, -1, 2], "table of 5 tokens"), ([0, 3, 3], "visits a token twice")],
)
def test_wrong_plans_are_refused(backend, plan_dtype, row, message, random_problem, scan):
    problem = random_problem(1, 3, 8, 2, 2, unvisited=2).to(torch.float32)
    plan = torch.tensor([[4, 0, 2], row], dtype=plan_dtype)
    with pytest.raises(ValueError, match=message):
        scan(problem.replace(plan=plan), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_beyond_32_bits_is_not_wrapped_around(backend, random_problem, scan):
    problem = random_problem(1, 3, 8, 1, 2).to(torch.float32)
    with pytest.raises(ValueError, match="table of 3 tokens"):
        scan(problem.replace(plan=torch.tensor([[0, 1, 2**32 + 2]])), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_tokens_are_computed_in_float32(backend, dtype, random_problem, scan):
    problem = random_problem(2, 30, 16, 2, 4).to(dtype)
    out = scan(problem, backend=backend)
    assert out.dtype == dtype
    assert torch.equal(out, scan(problem.to(torch.float32), backend=backend).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend, random_problem, scan):
    problem = random_problem(2, 30, 16, 2, 4).to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scan(problem, backend=backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, scan(problem, backend=backend))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tokens", (6, 8)),
        ("x_proj_weight", (2, 6, 8)),
        ("dt_projs_weight", (2, 9, 3)),
        ("dt_projs_bias", (16,)),
        ("A_logs", (8, 2)),
        ("Ds", (2, 8)),
    ],
)
def test_wrong_shapes_are_named(name, shape, random_problem, scan):
    problem = random_problem(1, 6, 8, 2, 2).replace(**{name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=name):
        scan(problem)


def test_wrong_output_from(random_problem, scan):
    with pytest.raises(ValueError, match="output_from 7"):
        scan(random_problem(1, 6, 8, 2, 2), output_from=7)


@pytest.mark.usefixtures("compiled_scan", "_restore_default_backend")
def test_auto_runs_the_compiled_scan_unless_another_default_is_set(random_problem, scan):
    problem = random_problem(1, 40, 20, 2, 4).to(torch.float32)
    results = {name: scan(problem, backend=name) for name in ("cpp", "torch")}
    assert not torch.equal(results["cpp"], results["torch"])
    assert torch.equal(scan(problem), results["cpp"])
    set_default_backend("torch")
    assert torch.equal(scan(problem), results["torch"])
    assert torch.equal(scan(problem, backend="cpp"), results["cpp"])


def test_auto_falls_back_to_pytorch_without_the_library(monkeypatch, random_problem, scan):
    monkeypatch.setattr(cpu, "UNAVAILABLE_REASON", "not compiled: reason")
    problem = random_problem(1, 10, 8, 2, 2).to(torch.float32)
    assert list(available_backends()) == ["cpp", "triton", "torch", "mamba-ssm"]
    assert available_backends()["cpp"] == "not compiled: reason"
    assert available_backends()["torch"] == ""
    assert torch.equal(scan(problem), scan(problem, backend="torch"))
    with pytest.raises(ValueError, match="'cpp': not compiled: reason"):
        scan(problem, backend="cpp")
    with pytest.raises(ValueError, match="not compiled: reason"):
        set_default_backend("cpp")


@pytest.mark.usefixtures("compiled_scan")
def test_float64_is_never_rounded(random_problem, scan):
    problem = random_problem(1, 10, 8, 2, 2)
    assert torch.equal(scan(problem), scan(problem, backend="torch"))
    with pytest.raises(ValueError, match="float64"):
        scan(problem, backend="cpp")


def test_unknown_backends_are_refused(random_problem):
    with pytest.raises(ValueError, match="unknown scan back end 'cuda'"):
        selective_scan(*random_problem(1, 4, 8, 1, 2).tensors(), backend="cuda")
    with pytest.raises(ValueError, match="unknown scan back end 'cuda'"):
        set_default_backend("cuda")
