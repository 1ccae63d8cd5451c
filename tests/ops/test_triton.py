"""The Triton scan: on a GPU with `pytest -m gpu`, and everywhere in Triton's interpreter, in a process of its own.

TRITON_INTERPRET must be set before Triton is imported, and each step of each program then takes about 10 ms: problems
are tiny, and chunks are made shorter so that there are several.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from avsseg.ops import mamba_ssm, reference, triton_scan
from avsseg.ops.selective_scan import automatic_backend, available_backends, selective_scan

FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-5
# Sums over thousands of steps, with the GPU's approximate 2^x.
LONG_TOLERANCE = 1e-4
CHUNK = 4
KERNELS = [
    *(("forward", kernel) for kernel in ("chunk_ends", "carry_states", "outputs")),
    *(("backward", kernel) for kernel in ("chunk_grads", "carry_grads", "gradients")),
]

needs_triton = pytest.mark.skipif(not triton_scan.INSTALLED, reason="triton is not installed")
outside_interpreter = pytest.mark.skipif(triton_scan.INTERPRETED, reason="this is the interpreter")


# Inside the interpreter the same tests run on the CPU that run on a GPU outside of it.
@pytest.fixture(params=["cpu"] if triton_scan.INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and triton_scan.unavailable_reason():
        pytest.skip(f"{triton_scan.unavailable_reason()}; test_in_the_interpreter runs it on the CPU")
    return str(request.param)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "CHECKPOINT_INTERVAL", CHUNK)


@pytest.fixture
def cuda_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[torch.device]:
    """The second CUDA device, on which the Triton scan could run: it and all that Triton needs are made up."""
    for name in ("bin/gcc", "include/Python.h"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(triton_scan, "INSTALLED", True)
    monkeypatch.setattr(triton_scan, "INTERPRETED", False)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: {1: (7, 0)}[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: {1: "GPU One"}[index])
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path / "include"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    triton_scan._launch_fault.cache_clear()
    yield torch.device("cuda", 1)
    triton_scan._launch_fault.cache_clear()


def move(problem, device):
    return type(problem)(*(t.to(device) for t in problem.tensors()))


@needs_triton
@outside_interpreter
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "-m", "not gpu", "-q", "-k", "cpu", "-p", "no:cacheprovider"]
    outcome = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    last_line = outcome.stdout.splitlines()[-1]
    assert " passed" in last_line
    assert "skipped" not in last_line


# Side by side, several chunks for each backward program; the same in one go; two blocks of channels, two videos, one
# state. Sizes are batch, length, channels, directions, states, rank, unvisited tokens.
@pytest.mark.parametrize(
    ("sizes", "output_from", "enough_programs", "backward_programs"),
    [
        ((1, 10, 5, 2, 3, 2, 2), 4, 2048, 4),
        ((1, 10, 5, 2, 3, 2, 2), 0, 0, 0),
        ((2, 3, 37, 1, 1, 1, 0), 0, 2048, 2048),
    ],
    ids=["side by side", "sequential", "two blocks"],
)
@pytest.mark.usefixtures("short_chunks")
def test_output_and_gradients_equal_the_recurrence(
    sizes,
    output_from,
    enough_programs,
    backward_programs,
    device,
    monkeypatch,
    random_problem,
    recurrence,
    scan,
    assert_close,
):
    monkeypatch.setattr(triton_scan, "ENOUGH_PROGRAMS", enough_programs)
    monkeypatch.setattr(triton_scan, "BACKWARD_PROGRAMS", backward_programs)
    exact = random_problem(*sizes).with_grad()
    expected = recurrence(exact, output_from)
    grad_out = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, exact.differentiable(), grad_out)

    problem = move(exact.to(torch.float32), device).with_grad()
    out = scan(problem, output_from=output_from, backend="triton")
    grads = torch.autograd.grad(out, problem.differentiable(), grad_out.float().to(device))

    assert_close(out.cpu(), expected, FORWARD_TOLERANCE)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad.cpu(), expected_grad, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_tokens_are_computed_in_float32(dtype, device, random_problem, scan, assert_close):
    problem = move(random_problem(1, 3, 8, 1, 2).to(dtype), device).with_grad()
    out = scan(problem, backend="triton")
    assert out.dtype == dtype
    wide = problem.to(torch.float32).with_grad()
    expected = scan(wide, backend="torch")
    assert_close(out.cpu(), expected.to(dtype).cpu(), torch.finfo(dtype).eps)
    grads = torch.autograd.grad(out.sum(), problem.differentiable())
    for grad, tensor, other in zip(
        grads, problem.differentiable(), torch.autograd.grad(expected.sum(), wide.differentiable()), strict=True
    ):
        assert grad.dtype == tensor.dtype
        assert_close(grad.cpu(), other.cpu(), 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("bias", [1e4, -50.0])
def test_extreme_delta_gives_no_nan(bias, device, random_problem, recurrence, scan, assert_close):
    exact = random_problem(1, 3, 5, 1, 2)
    exact = exact.replace(dt_projs_bias=torch.full_like(exact.dt_projs_bias, bias))
    problem = move(exact.to(torch.float32), device).with_grad()
    out = scan(problem, backend="triton")
    assert_close(out.cpu(), recurrence(exact), FORWARD_TOLERANCE)
    for grad in torch.autograd.grad(out.sum(), problem.differentiable()):
        assert grad.isfinite().all()


def test_nan_stays_visible(device, random_problem, scan):
    problem = random_problem(1, 3, 5, 1, 2).to(torch.float32)
    tokens = problem.tokens.clone()
    tokens[0, int(problem.plan[0, 1]), 2] = float("nan")
    out = scan(move(problem.replace(tokens=tokens), device), backend="triton").cpu()
    before, *after = problem.plan[0].tolist()
    assert out[0, before].isfinite().all()
    assert out[0, after].isnan().all()


def test_non_contiguous_inputs(device, random_problem, scan):
    problem = move(random_problem(1, 2, 8, 1, 2).to(torch.float32), device)
    views = type(problem)(*(torch.stack([t, torch.full_like(t, -1)], dim=-1)[..., 0] for t in problem.tensors()))
    assert not views.tokens.is_contiguous()
    torch.testing.assert_close(scan(views, backend="triton"), scan(problem, backend="triton"))


@pytest.mark.parametrize("sizes", [(0, 70, 16, 4, 4), (2, 0, 16, 4, 4), (2, 5, 16, 0, 4)], ids=str)
def test_empty_problems(sizes, device, random_problem, scan):
    problem = move(random_problem(*sizes, unvisited=3).to(torch.float32), device).with_grad()
    out = scan(problem, backend="triton")
    assert out.shape == problem.tokens.shape
    assert not out.any()
    grads = torch.autograd.grad(out.sum(), problem.differentiable())
    for tensor, grad in zip(problem.differentiable(), grads, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_wrong_plans_are_refused_and_a_changed_one_is_checked_again(device, random_problem, scan):
    problem = move(random_problem(1, 1, 8, 1, 2, unvisited=2).to(torch.float32), device)
    plan = problem.plan.clone()
    problem = problem.replace(plan=plan)
    scan(problem, backend="triton")
    plan[0, 0] = 3
    with pytest.raises(ValueError, match="table of 3 tokens"):
        scan(problem, backend="triton")
    with pytest.raises(ValueError, match="visits a token twice"):
        scan(problem.replace(plan=torch.tensor([[1, 1]], device=device)), backend="triton")
    with torch.inference_mode(), pytest.raises(ValueError, match="table of 3 tokens"):
        scan(problem.replace(plan=torch.tensor([[-1]], device=device)), backend="triton")


def test_no_batch_of_several_chunks_needs_no_kernel(random_problem):
    problem = random_problem(0, 70, 16, 2, 4).to(torch.float32)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = (problem.tokens, projected, problem.plan, *problem.tensors()[3:], 0)
    out, checkpoints = torch.ops.avsseg.selective_scan_triton(*inputs, True)
    for gradient in torch.ops.avsseg.selective_scan_triton_backward(*inputs, checkpoints, out):
        assert not gradient.any()


def test_a_compiled_graph_does_not_wait_for_a_check_of_its_plan(device, monkeypatch, random_problem, scan):
    checks = []
    monkeypatch.setattr(reference, "validate_plan", lambda plan, positions: checks.append(positions))
    problem = move(random_problem(1, 1, 5, 1, 2).to(torch.float32), device)
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*problem.tensors(), backend="triton"), scan(problem, backend="torch"))
    assert checks == [1]  # of the PyTorch scan
    for _ in range(2):
        scan(problem, backend="triton")
    assert checks == [1, 1]


def test_states_are_kept_only_for_a_gradient(device, random_problem):
    problem = move(random_problem(1, 1, 16, 2, 4).to(torch.float32), device)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = (problem.tokens, projected, problem.plan, *problem.tensors()[3:])
    assert torch.ops.avsseg.selective_scan_triton(*inputs, 0, False)[1].numel() == 0
    assert torch.ops.avsseg.selective_scan_triton(*inputs, 0, True)[1].shape == (1, 2, 1, 4, 16)


def test_opcheck(device, random_problem):
    problem = move(random_problem(1, 1, 5, 1, 2).to(torch.float32), device)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = [problem.tokens, projected, problem.plan, *problem.tensors()[3:]]
    inputs = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    torch.library.opcheck(torch.ops.avsseg.selective_scan_triton.default, (*inputs, 0, True))


def test_opcheck_of_the_backward_of_one_direction(device, random_problem):
    problem = move(random_problem(1, 1, 5, 1, 2).to(torch.float32), device)
    projected = problem.tokens @ problem.x_proj_weight.flatten(0, 1).T
    inputs = (problem.tokens, projected, problem.plan, *problem.tensors()[3:], 0)
    out, checkpoints = torch.ops.avsseg.selective_scan_triton(*inputs, True)
    backward = torch.ops.avsseg.selective_scan_triton_backward
    assert all(gradient.is_contiguous() for gradient in backward(*inputs, checkpoints, out))
    torch.library.opcheck(backward.default, (*inputs, checkpoints, out), test_utils=("test_schema", "test_faketensor"))


@needs_triton
@outside_interpreter
@pytest.mark.parametrize(("module", "kernel"), KERNELS)
def test_kernels_are_not_compiled_anew_for_another_clip(module, kernel):
    parameters = getattr(importlib.import_module(f"avsseg.ops.triton_{module}"), kernel).params
    sizes = {name for name in ("P", "L", "chunks", "lanes", "output_from") if name in {p.name for p in parameters}}
    assert sizes == {parameter.name for parameter in parameters if parameter.do_not_specialize}
    assert "chunks" in sizes


# States and ranks of the paper's models, of avs-mamba-tiny, and of VMamba's second release.
@needs_triton
@outside_interpreter
@pytest.mark.parametrize(
    ("states", "rank", "side_by_side", "capability"), [(16, 16, False, 80), (4, 8, True, 90), (1, 6, True, 80)]
)
@pytest.mark.parametrize(("module", "kernel"), KERNELS)
def test_kernels_compile_for_gpus_that_are_not_here(
    module, kernel, states, rank, side_by_side, capability, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = pytest.importorskip("triton.compiler", minversion=None)
    targets = pytest.importorskip("triton.backends.compiler")
    function = getattr(importlib.import_module(f"avsseg.ops.triton_{module}"), kernel)
    constants = {
        "N": states,
        "R": rank,
        "N_BLOCK": triton_scan._power_of_two(states),
        "R_BLOCK": triton_scan._power_of_two(rank),
        "D_BLOCK": triton_scan.CHANNELS_PER_PROGRAM,
        "CHUNK": triton_scan.CHECKPOINT_INTERVAL,
        "SIDE_BY_SIDE": side_by_side,
        "KEEP": True,
    }
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    integers = ("P", "K", "D", "L", "chunks", "lanes", "output_from")
    kinds = {
        "plan": "*i32",
        "tokens": "*bf16",
        "grad_out": "*bf16",
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    signature = {name: kinds.get(name, "*fp32") for name in function.arg_names}
    source = compiler.ASTSource(function, signature, constants)
    options = {"num_warps": triton_scan.WARPS, "enable_fp_fusion": True}
    compiled = compiler.compile(source, target=targets.GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]


def test_what_runs_automatically_on_cuda(cuda_device, monkeypatch):
    for device in (cuda_device, torch.device("cuda")):
        assert automatic_backend(device, torch.bfloat16) == "triton"
        assert automatic_backend(device, torch.float64) == "torch"
    assert automatic_backend(torch.device("cpu")) != "triton"
    monkeypatch.setattr(triton_scan, "INSTALLED", False)
    assert automatic_backend(cuda_device) == "torch"


def test_what_runs_automatically_is_known_while_torch_compile_traces(monkeypatch):
    monkeypatch.setattr(triton_scan, "INSTALLED", True)
    device = torch.device("cuda", 0)

    def run(x):
        return x + 1 if automatic_backend(device) == "triton" else x

    torch.compiler.reset()
    assert torch.compile(run, backend="eager", fullgraph=True)(torch.zeros(())) == 1


def test_deterministic_pytorch_does_without_atomics(cuda_device):
    torch.use_deterministic_algorithms(True)
    try:
        assert automatic_backend(cuda_device) == "torch"
    finally:
        torch.use_deterministic_algorithms(False)


def refused(device, reason):
    """Whether the Triton scan is refused on the device, for that reason, and PyTorch's chosen."""
    triton_scan._launch_fault.cache_clear()
    assert automatic_backend(device) == "torch"
    assert available_backends()["triton"] == triton_scan.unavailable_reason(device)
    return reason in triton_scan.unavailable_reason(device)


def test_triton_needs_volta_but_rocm_has_other_numbers(cuda_device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    assert refused(cuda_device, "Triton needs compute capability 7.0, GPU One has 6.1")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    triton_scan._launch_fault.cache_clear()
    assert automatic_backend(cuda_device) == "triton"


def test_triton_needs_a_c_compiler(cuda_device, monkeypatch, tmp_path):
    (tmp_path / "bin" / "gcc").rename(tmp_path / "bin" / "xlc")
    assert refused(cuda_device, "neither gcc nor clang is found: sudo apt install gcc")
    monkeypatch.setenv("CC", "xlc")
    triton_scan._launch_fault.cache_clear()
    assert automatic_backend(cuda_device) == "triton"
    monkeypatch.setenv("CC", "gcc-99")
    assert refused(cuda_device, "CC is 'gcc-99'")


def test_triton_needs_python_headers(cuda_device, monkeypatch, tmp_path):
    (tmp_path / "include" / "Python.h").unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert refused(cuda_device, f"Python.h is not in {tmp_path / 'include'}: sudo apt install python{version}-dev")
    monkeypatch.setattr(sys, "platform", "win32")
    triton_scan._launch_fault.cache_clear()
    assert automatic_backend(cuda_device) == "triton"


def test_a_triton_that_does_not_import_is_named(cuda_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert refused(cuda_device, "Triton does not import: import of triton halted")


def test_what_triton_needs_is_looked_for_once_a_device(cuda_device, monkeypatch):
    assert automatic_backend(cuda_device) == "triton"
    monkeypatch.delattr(torch.cuda, "get_device_capability")
    assert automatic_backend(cuda_device) == "triton"


@outside_interpreter
def test_why_there_is_no_triton_scan(monkeypatch, random_problem, scan):
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_scan, "INSTALLED", True)
        assert available_backends()["triton"] == "no CUDA device"
        with pytest.raises(ValueError, match="'triton': no CUDA device"):
            scan(random_problem(1, 2, 8, 1, 2), backend="triton")
    monkeypatch.setattr(triton_scan, "INSTALLED", False)
    assert "pip install triton" in available_backends()["triton"]


@pytest.mark.skipif(mamba_ssm.INSTALLED, reason="mamba-ssm is installed")
def test_why_there_is_no_mamba_ssm(random_problem, scan):
    assert "not installed" in available_backends()["mamba-ssm"]
    with pytest.raises(ValueError, match="'mamba-ssm': mamba-ssm is not installed"):
        scan(random_problem(1, 2, 8, 1, 2), backend="mamba-ssm")


# Of the model's own sizes: Temporal Mamba; VSS; a training batch that fills the GPU without chunks side by side.
GPU_SIZES = [(1, 5145, 512, 8, 16, 16), (5, 1029, 512, 4, 16, 16), (1, 3000, 512, 8, 1, 16), (40, 200, 512, 4, 4, 16)]


@pytest.mark.parametrize("backend", ["triton", "mamba-ssm"])
@pytest.mark.parametrize("sizes", GPU_SIZES, ids=str)
@pytest.mark.gpu
def test_real_sizes_equal_float64_on_a_gpu(sizes, backend, random_problem, scan, assert_close):
    reason = available_backends()[backend]
    if reason or not torch.cuda.is_available():
        pytest.skip(reason or "no CUDA device")
    exact = move(random_problem(*sizes), "cuda").with_grad()
    expected = scan(exact, backend="torch")
    grad_out = torch.randn(expected.shape, dtype=torch.float64, device="cuda")
    expected_grads = torch.autograd.grad(expected, exact.differentiable(), grad_out)
    problem = exact.to(torch.float32).with_grad()
    out = scan(problem, backend=backend)
    grads = torch.autograd.grad(out, problem.differentiable(), grad_out.float())
    assert_close(out, expected, LONG_TOLERANCE)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, LONG_TOLERANCE)


@pytest.mark.gpu
def test_compile_on_a_gpu_traces_without_a_graph_break(random_problem, scan):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    problem = move(random_problem(2, 70, 20, 2, 4).to(torch.float32), "cuda").with_grad()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    out = compiled(*problem.tensors(), output_from=3)
    torch.testing.assert_close(out, scan(problem, output_from=3))
