"""What docs/python.md shows is run, in the order of the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from avsseg import errors

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not here")


def test_the_code_of_the_page_runs(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), known)
    printed = capsys.readouterr().out
    assert "missing.mp4: no such file" in printed
    assert printed.splitlines()[-1].startswith("done ['results")
    assert known["sounding"].shape == (known["track"].info.height, known["track"].info.width)


def test_the_errors_of_the_page_are_those_of_the_package() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert all(issubclass(getattr(errors, name), errors.AvssegError) for name in named)
