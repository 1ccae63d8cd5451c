"""AVSBench's pickled log-mels, read without running anything that a file asks for.

The distributed files are `pickle.dump` of a torch tensor that wants gradients, (5, 1, 96, 64). A pickle may name any
function to call; only the few that build tensors are known here, and torch's own loader for the storage inside, which
would unpickle freely, is replaced by one that takes weights only.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avsseg.errors import DataError, printable
from avsseg.media.audio import EXAMPLE_FRAMES, MEL_BANDS
from avsseg.writers.base import written_whole

_ZIP = b"PK\x03\x04"
# how a file of torch.save before 1.6 begins
_LEGACY = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)[:-1]


class ForeignContentError(DataError):
    """A file that is whole, but holds something else than a log-mel of AVSBench's."""


class _UnknownNameError(pickle.UnpicklingError):
    """A pickle that asks for what no tensor is made of."""


def read_log_mel(path: Path) -> Tensor:
    """Log-mel examples (n, 1, 96, 64) float32, n >= 1, from a `pickle.dump` or `torch.save` of a tensor.

    Raises DataError for a file that is damaged, and ForeignContentError for one that holds anything else or asks for
    anything but tensors; nothing that it asks for is run.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror or error})") from error
    try:
        found = _tensors_only(data)
    except Exception as error:  # a damaged pickle can fail in any way, also in torch's
        reason = str(error).split("\n", 1)[0]
        foreign = isinstance(error, _UnknownNameError) or (
            data.startswith(_ZIP) and isinstance(error, pickle.UnpicklingError)
        )
        raise (ForeignContentError if foreign else DataError)(
            f"{printable(path)}: not a pickled log-mel, or not only one ({type(error).__name__}: {printable(reason)})"
        ) from error
    shape = (1, EXAMPLE_FRAMES, MEL_BANDS)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape[1:] != shape or not len(found):
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ForeignContentError(
            f"{printable(path)}: holds {what}, must be a float tensor (n, {', '.join(map(str, shape))})"
        )
    log_mel = found.detach().to(torch.float32).contiguous()
    if not torch.isfinite(log_mel).all():
        raise DataError(f"{printable(path)}: holds values that are not finite. Remove it and make it again")
    return log_mel


def write_log_mel(path: Path, log_mel: Tensor) -> None:
    """Writes (n, 1, 96, 64) as a plain pickle, which AVSBench's own loader reads; whole or not at all.

    Raises OutputError when the disk refuses.
    """
    # a view would be pickled with everything that it is a view of
    payload = pickle.dumps(log_mel.detach().cpu().clone(memory_format=torch.contiguous_format))
    with written_whole(path) as partial:
        partial.write_bytes(payload)


def _tensors_only(data: bytes) -> Any:
    if data.startswith((_ZIP, _LEGACY)):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return _TensorUnpickler(io.BytesIO(data)).load()


class _TensorUnpickler(pickle.Unpickler):
    """Knows six names; the functions behind them are made anew for each file, as a pickle can change what it gets."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor"): lambda *parts: _tensor(*parts[:4]),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: _tensor(*parts[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda *parts: _checked(parts[0]),
            ("torch.storage", "_load_from_bytes"): lambda data: _storage(data),
            ("collections", "OrderedDict"): lambda: {},
            # how protocol 2 writes bytes
            ("_codecs", "encode"): lambda text, encoding: _latin(text, encoding),
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise _UnknownNameError(f"it asks for {module}.{name}") from None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """What torch's functions of that name build, without hooks and without gradients."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor is made of {type(storage).__name__}")
    tensor = torch.empty(0, dtype=storage.dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    held = storage._untyped_storage.nbytes() // tensor.element_size()
    # torch would make the storage larger, with whatever stands in memory
    if min(offset, *size, *stride) < 0 or last >= held:
        raise pickle.UnpicklingError(f"a tensor reaches to element {last} of {held}")
    return tensor.set_(storage._untyped_storage, offset, size, stride)


def _storage(data: Any) -> Any:
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError(f"a storage is made of {type(data).__name__}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _checked(tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError(f"a parameter is made of {type(tensor).__name__}")
    return tensor


def _latin(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are made of {type(text).__name__}")
    return text.encode("latin1")
