from __future__ import annotations

import argparse
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from avsseg.weights.integrity import fault_of

TENSORS = {f"w{i}": torch.arange(1000.0) + i for i in range(4)}
CUT = "is cut off: the zip directory at its end is missing"
UNREAD = "cannot be read to its end as a file of tensors"


def saved(content: Any, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


NEW, OLD = saved(TENSORS, zipped=True), saved(TENSORS, zipped=False)
SAFE = safetensors.torch.save(TENSORS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth.partial"  # as a download calls it: the content must tell


@pytest.mark.parametrize("body", [NEW, OLD, SAFE], ids=["zip", "pickle", "safetensors"])
def test_a_whole_file_has_no_fault_and_a_part_of_it_has_one(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    assert fault_of(path) == ""
    # also without its last byte, and in the middle of its head
    for length in (len(body) - 1, len(body) - 100, len(body) * 2 // 5, 64, 9, 4, 0):
        path.write_bytes(body[:length])
        assert fault_of(path), length


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_save_beside_the_weights_is_no_fault(path: Path, zipped: bool) -> None:
    checkpoint = {"model": TENSORS, "args": argparse.Namespace(lr=0.1), "epoch": 3, "optimizer": {"state": {}}}
    path.write_bytes(saved(checkpoint, zipped=zipped))
    assert fault_of(path) == ""


def test_a_size_below_the_bound_is_told_first(path: Path) -> None:
    path.write_bytes(NEW)
    assert fault_of(path, len(NEW)) == ""
    assert fault_of(path, 3 << 20) == "has 0.0 MiB, a whole one at least 3.0 MiB"


def test_bytes_that_are_missing_or_changed_within(path: Path) -> None:
    middle = len(NEW) // 2
    path.write_bytes(NEW[:middle] + NEW[middle + 64 :])
    assert "damaged" in fault_of(path)
    changed = bytearray(NEW)
    changed[middle] ^= 1
    path.write_bytes(changed)
    assert fault_of(path).startswith("is damaged: archive/data/")
    assert fault_of(path).endswith(" has not its checksum")
    path.write_bytes(SAFE + b"more")
    assert "damaged" in fault_of(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>log in</html>", "neither a PyTorch nor a safetensors file (it begins with b'<html>log')"),
        (b'{"error": {"code": 404}}', "neither a PyTorch nor"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither a PyTorch nor"),
        (b'<a href={"": ""}>', "is cut off or damaged"),  # a brace where safetensors has one
        (NEW[:500], CUT),
        (OLD[:500], UNREAD),
    ],
    ids=["page", "json", "pointer", "brace", "cut zip", "cut pickle"],
)
def test_what_is_no_file_of_weights(path: Path, body: bytes, message: str) -> None:
    path.write_bytes(body)
    assert message in fault_of(path)
    assert "\n" not in fault_of(path)


def test_a_zip_archive_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/read\nme.txt", "hello")
    assert fault_of(path) == "is a zip archive, but not one of torch.save"
    path.write_bytes(path.read_bytes().replace(b"hello", b"jello"))
    assert fault_of(path) == "is damaged: notes/read\\nme.txt has not its checksum"


class Trap:
    """Creates a file when it is unpickled by something careless."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(path: Path, tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "sprung"
    path.write_bytes(saved({**TENSORS, "trap": Trap(trap)}, zipped=zipped))
    # a zip archive is known to be whole without a look at its pickle; reading it later refuses the trap
    assert fault_of(path) == ("" if zipped else UNREAD)
    assert not trap.exists()


def test_torch_is_imported_for_old_files_alone(tmp_path: Path) -> None:
    for name, body in (("new", NEW), ("safe", SAFE), ("page", b"<html>"), ("cut", NEW[:-1])):
        (tmp_path / name).write_bytes(body)
    program = (
        "import sys, pathlib; from avsseg.weights.integrity import fault_of\n"
        "print([bool(fault_of(path)) for path in sorted(pathlib.Path(sys.argv[1]).iterdir())], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, True, False] False\n"
