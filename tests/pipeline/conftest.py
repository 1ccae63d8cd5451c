from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from avsseg.weights import LoadedModel, load_model


@pytest.fixture(scope="session")
def untrained(untrained_file: Path) -> LoadedModel:
    return load_model(untrained_file, allow_untrained=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
