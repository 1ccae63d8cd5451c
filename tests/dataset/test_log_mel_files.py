"""Pickled log-mels: what AVSBench distributes is read, what would run anything is not."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avsseg.data.log_mel_files import read_log_mel, write_log_mel
from avsseg.errors import DataError


@pytest.fixture
def log_mel() -> Tensor:
    return torch.randn(5, 1, 96, 64, generator=torch.Generator().manual_seed(0))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class Call:
    """Pickled as a call of the function that the name means to the reader."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_distributed_pickles(tmp_path: Path, log_mel: Tensor, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(log_mel.clone().requires_grad_(), protocol))
    found = read_log_mel(path)
    assert torch.equal(found, log_mel)
    assert not found.requires_grad
    assert found.dtype == torch.float32


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path: Path, log_mel: Tensor, zipped: bool) -> None:
    path = tmp_path / "x.pkl"
    torch.save(log_mel.clone().requires_grad_(), path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_log_mel(path), log_mel)


def test_views_parameters_and_doubles(tmp_path: Path, log_mel: Tensor) -> None:
    path = tmp_path / "x.pkl"
    for tensor in (log_mel.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), log_mel[1:3].double()):
        path.write_bytes(pickle.dumps(tensor))
        assert torch.equal(read_log_mel(path), tensor.float())
    path.write_bytes(pickle.dumps(torch.nn.Parameter(log_mel)))
    assert torch.equal(read_log_mel(path), log_mel)


def test_what_is_written_is_a_plain_pickle_of_its_own_data(tmp_path: Path, log_mel: Tensor) -> None:
    path = tmp_path / "new" / "x.pkl"
    write_log_mel(path, torch.cat([log_mel] * 20).requires_grad_()[5:10])
    # as AVSBench's own loader does
    assert torch.equal(pickle.loads(path.read_bytes()).detach(), log_mel)
    assert path.stat().st_size < log_mel.numel() * 4 + 2000
    assert torch.equal(read_log_mel(path), log_mel)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.pkl"]


def test_a_pickle_that_runs_a_command_does_not(tmp_path: Path) -> None:
    path, touched = tmp_path / "x.pkl", tmp_path / "touched"
    payload = pickle.dumps(Touch(touched))
    pickle.loads(payload)
    assert touched.exists(), "the payload must work where it is let"
    touched.unlink()
    path.write_bytes(payload)
    with pytest.raises(DataError, match=r"x\.pkl: not a pickled log-mel.*asks for posix\.system"):
        read_log_mel(path)
    assert not touched.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_runs_a_command_does_not(tmp_path: Path, zipped: bool) -> None:
    path, touched = tmp_path / "x.pkl", tmp_path / "touched"
    torch.save(Touch(touched), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="not a pickled log-mel"):
        read_log_mel(path)
    assert not touched.exists()


@pytest.mark.parametrize("zipped", [True, False, None])
def test_a_storage_that_runs_a_command_does_not(tmp_path: Path, zipped: bool | None) -> None:
    path, touched = tmp_path / "x.pkl", tmp_path / "touched"
    if zipped is None:
        inner = pickle.dumps(Touch(touched))
    else:
        buffer = io.BytesIO()
        torch.save(Touch(touched), buffer, _use_new_zipfile_serialization=zipped)
        inner = buffer.getvalue()
    payload = pickle.dumps(Call(torch.storage._load_from_bytes, inner))
    if zipped is not None:
        pickle.loads(payload)
        assert touched.exists(), "the payload must work where it is let"
        touched.unlink()
    path.write_bytes(payload)
    with pytest.raises(DataError, match="not a pickled log-mel"):
        read_log_mel(path)
    assert not touched.exists()


def test_a_command_hidden_in_the_hooks_does_not_run(tmp_path: Path, log_mel: Tensor) -> None:
    path, touched = tmp_path / "x.pkl", tmp_path / "touched"
    function, arguments = log_mel.__reduce_ex__(4)[:2]
    parts = list(arguments)
    parts[5] = Touch(touched)
    path.write_bytes(pickle.dumps(Call(function, *parts)))
    with pytest.raises(DataError, match="not a pickled log-mel"):
        read_log_mel(path)
    assert not touched.exists()


def test_a_file_cannot_change_how_the_next_is_read(tmp_path: Path, log_mel: Tensor) -> None:
    path = tmp_path / "x.pkl"
    # GLOBAL _rebuild_tensor_v2, then BUILD with a state that would replace attributes of that function
    changing = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\nI2\nI3\nI4\ntstb."
    path.write_bytes(changing)
    with pytest.raises(DataError):
        read_log_mel(path)
    path.write_bytes(pickle.dumps(log_mel))
    assert torch.equal(read_log_mel(path), log_mel)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, log_mel: Tensor) -> None:
    path = tmp_path / "x.pkl"
    function, arguments = log_mel.__reduce_ex__(4)[:2]
    parts = list(arguments)
    parts[1] = 10_000  # offset
    path.write_bytes(pickle.dumps(Call(function, *parts)))
    with pytest.raises(DataError, match="not a pickled log-mel"):
        read_log_mel(path)


@pytest.mark.parametrize("length", [0, 1, 30, 200, 60_000, 123_000])
def test_truncated_files(tmp_path: Path, log_mel: Tensor, length: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(log_mel)[:length])
    with pytest.raises(DataError, match=r"x\.pkl: not a pickled log-mel"):
        read_log_mel(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(5, 96, 64), r"float32 \(5, 96, 64\), must be a float tensor \(n, 1, 96, 64\)"),
        (torch.zeros(0, 1, 96, 64), "must be a float tensor"),
        (torch.zeros(5, 1, 96, 64, dtype=torch.int32), "int32"),
        (torch.full((5, 1, 96, 64), torch.nan), "not finite"),
        ({"a": 1}, "holds dict"),
    ],
)
def test_other_contents(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        read_log_mel(path)


def test_a_zip_that_is_none_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DataError, match="not a pickled log-mel"):
        read_log_mel(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_log_mel(tmp_path / "nowhere.pkl")
