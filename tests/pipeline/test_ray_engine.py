"""What a cluster's workers reserve; `tests/cli/test_run_ray.py` runs them."""

from __future__ import annotations

import pytest

from avsseg.errors import EnvironmentFault
from avsseg.pipeline.ray_engine import WorkerShare, worker_share

HEAD, SMALL, GPU_NODE, TWO_GPUS = {"CPU": 32.0}, {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "cards", "expected"),
    [
        ([SMALL], None, True, WorkerShare(1, 4, 0.0)),
        ([SMALL], 2, True, WorkerShare(2, 2, 0.0)),
        # what the machines have together fits none of them
        ([HEAD, SMALL], None, False, WorkerShare(2, 4, 0.0)),
        ([HEAD, GPU_NODE], None, True, WorkerShare(1, 8, 1.0)),
        ([HEAD, GPU_NODE], None, False, WorkerShare(2, 8, 0.0)),
        # two thirds of a GPU fit each of two GPUs once
        ([TWO_GPUS], 3, True, WorkerShare(3, 4, 0.5)),
        ([TWO_GPUS, GPU_NODE], None, True, WorkerShare(3, 8, 1.0)),
        # more than there is room for would wait for ever
        ([SMALL], 9, True, WorkerShare(4, 1, 0.0)),
        ([{"CPU": 2.0, "GPU": 4.0}], None, True, WorkerShare(2, 1, 1.0)),
        ([{"GPU": 1.0}, SMALL], None, True, WorkerShare(1, 4, 0.0)),
    ],
)
def test_a_share_fits_as_often_as_there_are_workers(
    nodes: list[dict[str, float]], workers: int | None, cards: bool, expected: WorkerShare
) -> None:
    assert worker_share(nodes, workers, cards=cards) == expected


def test_a_cluster_without_processors_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match="no machine with a free processor"):
        worker_share([{"memory": 1.0}], None, cards=True)
