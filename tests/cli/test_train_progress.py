"""What a run shows of itself."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import pytest

from avsseg.cli.train_progress import describe
from avsseg.training.trainer import Progress


@pytest.mark.parametrize(
    ("values", "validation", "seconds_left", "text"),
    [
        (
            {"loss": 0.5, "M_J": 0.25},
            {"M_J": 0.125, "M_F": 0.3},
            600,
            "loss 0.500, M_J 0.250, val M_J 0.125, 10 min left",
        ),
        ({"loss": 0.5, "M_J": math.nan}, {}, 89, "loss 0.500, 89 s left"),  # no frame of the batch has truth
        ({"loss": 0.5}, {"seen": 0.7, "heard": 0.8}, 5, "loss 0.500, val seen 0.700, val heard 0.800, 5 s left"),
    ],
)
def test_a_step_in_one_line(
    values: dict[str, float], validation: dict[str, float], seconds_left: float, text: str
) -> None:
    assert describe(Progress(7, 0.5, seconds_left, values, validation)) == text


@pytest.mark.skipif(sys.platform == "win32", reason="of a terminal as POSIX has it")
def test_what_is_said_has_a_line_of_its_own_on_a_terminal() -> None:
    code = """
from avsseg.cli.train_progress import shown
from avsseg.training.trainer import Progress
with shown() as display:
    display.listen(Progress(7, 0.5, 600, {"loss": 0.5}, {}))
    display.say("stopped at step 7")
"""
    shows, terminal = os.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    text = os.read(shows, 2**16).decode()
    os.close(shows)
    assert "step 7" in text
    assert re.search(r"\n(\x1b\[\?25h)?stopped at step 7\r\n$", text)  # the cursor is shown again
