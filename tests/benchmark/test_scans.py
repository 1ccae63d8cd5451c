from __future__ import annotations

import torch

from avsseg.benchmark.scans import ScanShape, compare_scans, scan_problem, temporal_mamba_shape
from avsseg.ops.selective_scan import available_backends, selective_scan


def test_the_shape_is_that_of_the_papers_temporal_mamba() -> None:
    assert temporal_mamba_shape(224, 5) == ScanShape(1, 8, 5145, 512, 16, 16)
    assert temporal_mamba_shape(225, 1).length == 32 * 32 + 16 * 16 + 8 * 8  # padded to 256


def test_every_back_end_is_timed_or_says_why_not() -> None:
    shape, said = ScanShape(1, 4, 9, 16, 2, 1), []
    rows = {row.name: row for row in compare_scans(shape, torch.device("cpu"), 2, said.append)}
    assert set(rows) == set(available_backends())
    assert len(rows["torch"].times_s) == 2
    assert min(rows["torch"].times_s) <= rows["torch"].latency_s <= max(rows["torch"].times_s)
    assert not rows["triton"].times_s
    assert rows["triton"].reason
    timed = [name for name, row in rows.items() if row.times_s]
    assert said == [*(f"first call of {n}" for n in timed), *(f"round {r} of 2: {n}" for r in (1, 2) for n in timed)]


def test_the_problem_is_one_that_the_operator_takes() -> None:
    problem = scan_problem(ScanShape(1, 4, 9, 16, 2, 1))
    assert selective_scan(*problem).shape == (1, 9, 16)
