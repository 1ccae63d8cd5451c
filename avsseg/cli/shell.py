"""Commands to be pasted into a shell."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path


def quoted(word: Path | str, platform: str = sys.platform) -> str:
    """The word as the shell of that platform takes it whole, in quotes where it must be.

    On Windows as cmd.exe does; PowerShell, too, save for a first word in quotes, which it takes only behind ``&``.
    """
    if platform == "win32":
        return str(word) if re.fullmatch(r"[\w:\\/.+=-]+", str(word)) else f'"{word}"'
    return shlex.quote(str(word))
