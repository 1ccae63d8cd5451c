from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_command_reference_is_up_to_date() -> None:
    """docs/cli.md; run python docs/make_cli_reference.py where this fails."""
    script = ROOT / "docs" / "make_cli_reference.py"
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_reference_has_every_command() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in (
        "run",
        "train",
        "evaluate",
        "info",
        "bench",
        "visualize",
        "data check",
        "data compose",
        "data synth",
        "weights convert",
    ):
        assert f"## avsseg {command}\n" in text
