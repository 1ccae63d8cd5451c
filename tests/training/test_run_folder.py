"""The folder of a run: one training at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avsseg.errors import UsageError
from avsseg.training.run import TrainingRun
from avsseg.training.settings import TrainingSettings
from avsseg.training.trainer import Progress


@pytest.mark.parametrize("going", [False, True], ids=["new", "resumed"])
def test_a_folder_in_which_another_trains_is_refused(tmp_path: Path, quick: TrainingSettings, going: bool) -> None:
    refused: list[str] = []

    def begin_another(progress: Progress) -> None:
        kept = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()}
        with pytest.raises(UsageError) as caught:
            TrainingRun(tmp_path / "run", replace(quick, seed=2), resume=going)
        refused.append(str(caught.value))
        assert kept == {path: path.read_bytes() for path in kept}

    if going:
        TrainingRun(tmp_path / "run", quick).train()
        longer = replace(quick, epochs=2 * quick.epochs)
        TrainingRun(tmp_path / "run", longer, resume=True, listener=begin_another).train()
    else:
        TrainingRun(tmp_path / "run", quick, listener=begin_another).train()
    assert refused
    expected = f"{tmp_path / 'run'}: another process is training there. Wait for its end, or choose another --out"
    # the first checkpoint of a new run comes with its first validation
    assert (
        {expected}
        <= set(refused)
        <= {expected, f"{tmp_path / 'run'}: holds a run already. Go on with --resume, or choose another --out"}
    )
    assert not list((tmp_path / "run").glob("*.lock"))
    TrainingRun(tmp_path / "run", replace(quick, epochs=3 * quick.epochs), resume=True).train()
