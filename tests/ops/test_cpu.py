from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avsseg.errors import EnvironmentFault
from avsseg.ops import cpu
from avsseg.ops.selective_scan import selective_scan

FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-5

# batch, length, channels, directions, states, rank, unvisited tokens, output_from
SHAPES = [
    (1, 5145, 5, 1, 16, 2, 0, 0),
    (1, 5145, 3, 1, 1, 1, 3, 0),
    (2, 77, 37, 4, 3, 5, 10, 40),
    (1, 200, 17, 8, 4, 3, 0, 0),
    (1, 70, 33, 8, 16, 2, 0, 0),
    (3, 65, 96, 4, 16, 6, 0, 64),
    (2, 129, 70, 1, 8, 4, 1, 0),
    (1, 64, 130, 8, 1, 8, 0, 1),
    (17, 9, 48, 4, 5, 1, 0, 0),
    (1, 33, 300, 1, 20, 2, 0, 0),
    (2, 1, 1, 4, 2, 1, 0, 0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_equal_the_recurrence(shape, capability, random_problem, recurrence, scan, assert_close):
    *sizes, output_from = shape
    exact = random_problem(*sizes).with_grad()
    expected = recurrence(exact, output_from)
    grad_out = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, exact.differentiable(), grad_out)

    problem = exact.to(torch.float32).with_grad()
    out = scan(problem, output_from=output_from, backend="cpp")
    grads = torch.autograd.grad(out, problem.differentiable(), grad_out.float())

    assert_close(out, expected, FORWARD_TOLERANCE)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("name", ["tokens", "x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_reach_the_output(name, value, capability, random_problem, recurrence, scan):
    exact = random_problem(2, 30, 19, 2, 4)
    tensor = getattr(exact, name).clone()
    # The 18th value of a vector: a full vector of 16 lanes and its tail are both in play.
    tensor.view(-1)[17] = value
    exact = exact.replace(**{name: tensor})
    expected = recurrence(exact)
    out = scan(exact.to(torch.float32), backend="cpp")
    torch.testing.assert_close(out.isfinite(), expected.isfinite())
    if value != value:
        assert not out.isfinite().all()
    finite = expected.isfinite()
    torch.testing.assert_close(out[finite].double(), expected[finite], rtol=1e-4, atol=1e-5)


def test_a_nan_in_the_gradient_of_the_output_reaches_every_gradient(capability, random_problem, scan):
    problem = random_problem(1, 20, 19, 2, 4).to(torch.float32).with_grad()
    grad_out = torch.ones(1, 20, 19)
    grad_out[0, 0, 18] = float("nan")
    for grad in torch.autograd.grad(scan(problem, backend="cpp"), problem.differentiable(), grad_out):
        assert grad.isnan().any()


@pytest.mark.parametrize("bias", [30.0, 1e4, 1e30, -50.0, -1e4])
def test_extreme_delta_gives_no_nan(bias, capability, random_problem, recurrence, scan, assert_close):
    exact = random_problem(1, 40, 20, 2, 4)
    exact = exact.replace(dt_projs_bias=torch.full_like(exact.dt_projs_bias, bias)).with_grad()
    problem = exact.to(torch.float32).with_grad()
    expected, out = recurrence(exact), scan(problem, backend="cpp")
    assert_close(out, expected, FORWARD_TOLERANCE)
    for grad in torch.autograd.grad(out, problem.differentiable(), torch.ones_like(out)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("large", [60.0, 1e4])
@pytest.mark.usefixtures("capability")
def test_small_and_large_delta_side_by_side(large, random_problem, recurrence, scan, assert_close):
    exact = random_problem(1, 40, 20, 2, 4)
    bias = torch.full_like(exact.dt_projs_bias, -3.0)
    bias[:, 3] = bias[0, 17] = large  # one channel of a vector is enough to leave the short cut for small exponents
    exact = exact.replace(dt_projs_bias=bias)
    assert_close(scan(exact.to(torch.float32), backend="cpp"), recurrence(exact), FORWARD_TOLERANCE)


@pytest.mark.parametrize("position", [1, 4, 7, 12, 39])
@pytest.mark.usefixtures("capability")
def test_one_large_delta_among_small_ones(position, random_problem, recurrence, scan, assert_close):
    exact = random_problem(1, 40, 20, 1, 4)
    tokens = exact.tokens.clone()
    tokens[0, position] *= 300  # delta grows with its token, in one step of a tile
    exact = exact.replace(tokens=tokens, plan=torch.arange(40, dtype=torch.int32)[None])
    assert_close(scan(exact.to(torch.float32), backend="cpp"), recurrence(exact), FORWARD_TOLERANCE)


# One block of channels; several blocks of channels; several batch elements.
@pytest.mark.parametrize("sizes", [(1, 70, 64, 4, 4), (1, 150, 200, 8, 16), (5, 40, 96, 4, 8)], ids=str)
@pytest.mark.usefixtures("_restore_threads", "compiled_scan")
def test_results_do_not_depend_on_the_thread_count(sizes, random_problem, scan):
    problem = random_problem(*sizes, rank=4).to(torch.float32).with_grad()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        out = scan(problem, backend="cpp")
        grads = torch.autograd.grad(out, problem.differentiable(), torch.ones_like(out))
        results.append([out.detach(), *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("compiled_scan")
def test_non_contiguous_inputs(random_problem, scan):
    problem = random_problem(2, 50, 32, 4, 4).to(torch.float32)

    def strided(tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, torch.full_like(tensor, -1)], dim=-1)[..., 0]

    expected = scan(problem, backend="cpp")
    views = type(problem)(*map(strided, problem.tensors()))
    assert not views.tokens.is_contiguous()
    assert torch.equal(scan(views, backend="cpp"), expected)
    transposed = problem.replace(tokens=problem.tokens.transpose(1, 2).contiguous().transpose(1, 2)).with_grad()
    out = scan(transposed, backend="cpp")
    assert torch.equal(out, expected)
    grad = torch.autograd.grad(out, transposed.tokens, torch.ones(()).expand(out.shape))[0]
    leaf = problem.with_grad()
    assert torch.equal(grad, torch.autograd.grad(scan(leaf, backend="cpp").sum(), leaf.tokens)[0])


@pytest.mark.parametrize("sizes", [(0, 12, 16, 4, 4), (2, 0, 16, 4, 4), (2, 5, 16, 0, 4)], ids=str)
@pytest.mark.usefixtures("compiled_scan")
def test_empty_problems(sizes, random_problem, scan):
    problem = random_problem(*sizes, unvisited=3).to(torch.float32).with_grad()
    out = scan(problem, backend="cpp")
    assert out.shape == problem.tokens.shape
    assert not out.any()
    for tensor, grad in zip(
        problem.differentiable(), torch.autograd.grad(out.sum(), problem.differentiable()), strict=True
    ):
        assert grad.shape == tensor.shape
        assert not grad.any()


@pytest.mark.usefixtures("compiled_scan")
def test_states_are_kept_only_for_a_gradient(random_problem):
    problem = random_problem(1, 70, 16, 2, 4).to(torch.float32)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = (problem.tokens, projected, problem.plan, *problem.tensors()[3:])
    assert torch.ops.avsseg.selective_scan(*inputs, 0, False)[1].numel() == 0
    assert torch.ops.avsseg.selective_scan(*inputs, 0, True)[1].shape == (1, 2, 2, 4, 16)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, capability, random_problem):
    problem = random_problem(2, 70, 20, 2, 4).to(torch.float32)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = [problem.tokens, projected, problem.plan, *problem.tensors()[3:]]
    inputs = [t.detach().requires_grad_(requires_grad) if t.is_floating_point() else t for t in inputs]
    torch.library.opcheck(torch.ops.avsseg.selective_scan.default, (*inputs, 10, requires_grad))


# of one direction, A_logs needs no copy to take its shape, and could keep the strides of the kernel's array
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.usefixtures("compiled_scan")
def test_opcheck_of_the_backward(directions, random_problem):
    problem = random_problem(2, 70, 20, directions, 4).to(torch.float32)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = (problem.tokens, projected, problem.plan, *problem.tensors()[3:], 10)
    out, checkpoints = torch.ops.avsseg.selective_scan(*inputs, True)
    backward = torch.ops.avsseg.selective_scan_backward
    assert all(gradient.is_contiguous() for gradient in backward(*inputs, checkpoints, out))
    torch.library.opcheck(backward.default, (*inputs, checkpoints, out), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.usefixtures("compiled_scan")
def test_gradients_do_not_depend_on_the_default_dtype(random_problem, scan):
    problem = random_problem(2, 70, 20, 2, 4).to(torch.float32).with_grad()
    expected = torch.autograd.grad(scan(problem, backend="cpp").sum(), problem.differentiable())
    torch.set_default_dtype(torch.float64)
    try:
        gradients = torch.autograd.grad(scan(problem, backend="cpp").sum(), problem.differentiable())
    finally:
        torch.set_default_dtype(torch.float32)
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, other)


@pytest.mark.usefixtures("compiled_scan")
def test_compile_traces_forward_and_backward_without_a_graph_break(random_problem, scan):
    problem = random_problem(2, 70, 20, 2, 4).to(torch.float32).with_grad()
    expected = scan(problem, output_from=3)
    expected_grads = torch.autograd.grad(expected.square().sum(), problem.differentiable())
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    out = compiled(*problem.tensors(), output_from=3)
    grads = torch.autograd.grad(out.square().sum(), problem.differentiable())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.usefixtures("compiled_scan")
def test_export_keeps_the_operator(random_problem):
    problem = random_problem(2, 70, 20, 2, 4).to(torch.float32)

    class Scan(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return selective_scan(*tensors)

    with torch.no_grad():
        exported = torch.export.export(Scan(), tuple(problem.tensors()))
    assert any("avsseg.selective_scan" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*problem.tensors()), selective_scan(*problem.tensors()))


@pytest.mark.usefixtures("compiled_scan")
def test_capability_variable(monkeypatch):
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "portable")
    assert cpu.capability() == "portable"
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "mmx")
    with pytest.raises(EnvironmentFault, match="AVSSEG_CPU_CAPABILITY=mmx"):
        cpu.capability()
    monkeypatch.delenv(cpu.CAPABILITY_VARIABLE)
    best = cpu.capability()
    monkeypatch.setenv(cpu.CAPABILITY_VARIABLE, "")
    assert cpu.capability() == best


def test_a_missing_library_is_explained(tmp_path: Path):
    library, reason = cpu.load_library(tmp_path / "libavsseg_scan.so")
    assert library is None
    assert "not compiled" in reason
    assert "C++17 compiler" in reason
    assert "reinstall" in reason


def test_a_checkout_without_kernels_says_that_it_hides_an_installed_package(tmp_path: Path):
    (tmp_path / "pyproject.toml").touch()
    library, reason = cpu.load_library(tmp_path / "avsseg" / "ops" / "libavsseg_scan.so")
    assert library is None
    assert reason.startswith(f"not compiled: Python reads avsseg from {tmp_path}, where ")


def test_a_library_that_does_not_load_is_explained(tmp_path: Path):
    path = tmp_path / "libavsseg_scan.so"
    path.write_bytes(b"not a library")
    library, reason = cpu.load_library(path)
    assert library is None
    assert reason.startswith("cannot be loaded")
