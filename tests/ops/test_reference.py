from __future__ import annotations

import pytest
import torch

from avsseg.ops import reference
from avsseg.ops.reference import validate_plan_once


@pytest.mark.parametrize("output_from", [0, 4])
def test_gradcheck(output_from, random_problem, scan):
    problem = random_problem(2, 10, 2, 2, 2, rank=2, unvisited=1).with_grad()
    plan = problem.plan

    def run(tokens, *parameters):
        return scan(type(problem)(tokens, plan, *parameters), output_from=output_from, backend="torch")

    assert torch.autograd.gradcheck(run, problem.differentiable())


@pytest.mark.parametrize("sizes", [(2, 37, 5, 4, 3), (1, 8, 4, 1, 1), (3, 1, 2, 8, 2)], ids=str)
def test_float64_equals_the_recurrence(sizes, random_problem, recurrence, scan, assert_close):
    problem = random_problem(*sizes, unvisited=2)
    assert_close(scan(problem, backend="torch"), recurrence(problem), 1e-13)


@pytest.mark.parametrize("sizes", [(0, 12, 4, 2, 2), (2, 0, 4, 2, 2)], ids=str)
def test_empty_problems(sizes, random_problem, scan):
    problem = random_problem(*sizes, unvisited=3).with_grad()
    out = scan(problem, backend="torch")
    assert out.shape == problem.tokens.shape
    assert not out.any()


def test_a_plan_is_checked_again_only_when_it_or_its_table_changes(monkeypatch):
    checks = []
    monkeypatch.setattr(reference, "validate_plan", lambda plan, positions: checks.append(positions))
    plan = torch.tensor([[0, 1, 2]])
    for positions in (3, 3, 4, 4):
        validate_plan_once(plan, positions)
    assert checks == [3, 4]
    plan[0, 0] = 3
    validate_plan_once(plan, 4)
    assert checks == [3, 4, 4]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    validate_plan_once(torch.tensor([[5, 5]]), 4)
    assert checks == [3, 4, 4]


def test_a_wrong_plan_is_refused_every_time():
    plan = torch.tensor([[1, 1]])
    for _ in range(2):
        with pytest.raises(ValueError, match="visits a token twice"):
            validate_plan_once(plan, 2)


def test_gradients_stay_fast_on_a_long_sequence(random_problem, scan):
    """Saved tensors grow linearly with the length: slicing one step at a time would save a full table for each."""
    saved = []
    for length in (200, 400):
        problem = random_problem(1, length, 4, 1, 2).with_grad()
        sizes: list[int] = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scan(problem, backend="torch")
        saved.append(sum(sizes))
    assert saved[1] <= 2.1 * saved[0]
