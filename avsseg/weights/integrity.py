"""Whether a file of weights is whole, told from its own container where no digest is known.

Servers can end a file early and call it complete. A zip archive, which torch.save writes, has its directory at the end
and a checksum for each record; safetensors says how long it is; a torch.save file of before PyTorch 1.6 is whole if it
can be read to its end. No code of a file ever runs. Only for such an old file is torch imported.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from avsseg.errors import printable

MIB = 1 << 20
_ZIP_RECORD = b"PK\x03\x04"
_PICKLE = b"\x80"  # its first opcode since protocol 2
_HEAD_BYTES = 9  # safetensors: eight bytes of length, then JSON
_log = logging.getLogger(__name__)


def fault_of(path: Path, min_bytes: int = 0) -> str:
    """What shows that the file is cut off, damaged or no weights at all, to follow its name; "" if nothing does.

    `min_bytes` is what a whole one has at least, if known. Reads the whole file; raises no error of its own.
    """
    try:
        size = path.stat().st_size
        if size < min_bytes:
            return f"has {size / MIB:.1f} MiB, a whole one at least {min_bytes / MIB:.1f} MiB"
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(_ZIP_RECORD):
            return _zip_fault(path)
        if head.endswith(b"{") and len(head) == _HEAD_BYTES:
            return _safetensors_fault(path)
        if head.startswith(_PICKLE):
            return _pickle_fault(path)
    except Exception as error:  # damaged or hostile bytes can make the readers raise anything
        _log.info("%s: %r", path, error)
        return f"is cut off or damaged ({printable(str(error))[:200] or type(error).__name__})"
    return f"is neither a PyTorch nor a safetensors file (it begins with {head!r})"


def _zip_fault(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "is cut off: the zip directory at its end is missing"
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        names = archive.namelist()
    if damaged is not None:
        return f"is damaged: {printable(damaged)} has not its checksum"
    if not any(name.endswith("/data.pkl") for name in names):
        return "is a zip archive, but not one of torch.save"
    return ""


def _safetensors_fault(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="np"):  # refuses a file that is not as long as its header says
        return ""


def _pickle_fault(path: Path) -> str:
    from avsseg.weights.official import load_untrusted

    try:
        load_untrusted(path)
    except Exception as error:
        # its text tells users to load the file without these precautions
        _log.info("%s: %r", path, error)
        return "cannot be read to its end as a file of tensors"
    return ""
