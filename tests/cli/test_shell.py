"""Words of commands, for the shells of Linux, macOS and Windows."""

from __future__ import annotations

import pytest

from avsseg.cli.shell import quoted


@pytest.mark.parametrize(
    ("word", "platform", "written"),
    [
        ("/usr/bin/python3", "linux", "/usr/bin/python3"),
        ("my run", "linux", "'my run'"),
        ("it's", "darwin", "'it'\"'\"'s'"),
        ("C:\\Python311\\python.exe", "win32", "C:\\Python311\\python.exe"),
        ("C:\\Program Files\\python.exe", "win32", '"C:\\Program Files\\python.exe"'),
        ("torch>=2.6,<2.14", "win32", '"torch>=2.6,<2.14"'),
    ],
)
def test_words_are_quoted_where_they_must_be(word: str, platform: str, written: str) -> None:
    assert quoted(word, platform) == written
