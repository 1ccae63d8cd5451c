"""The folder that keeps downloaded weights, and the digests by which they are known ever after. Imports no torch."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avsseg.errors import EnvironmentFault, OutputError, WeightsError, printable
from avsseg.model.config import backbone_name
from avsseg.weights.catalogue import CATALOGUE, CatalogueEntry
from avsseg.weights.download import PATIENT, Patience, Progress, WrongContentError, download, sha256_of
from avsseg.weights.integrity import fault_of
from avsseg.weights.locking import exclusive
from avsseg.writers.base import PARTIAL_SUFFIX, written_whole

CHECKSUMS_NAME = "checksums.json"
_log = logging.getLogger(__name__)

Verdict = Literal["ok", "recorded", "differs", "damaged", "missing"]


@dataclass(frozen=True)
class Check:
    """What `verify` found: the verdict, the digest of the file ("" if missing) and the one it should have ("" if none).

    "recorded" is a file whose digest was not known, as after copying it there by hand, and now is. "damaged" is one
    whose digest is not known and that is not whole, as `fault` says.
    """

    verdict: Verdict
    sha256: str
    expected: str
    fault: str = ""


def cache_dir() -> Path:
    """AVSSEG_HOME, else XDG_CACHE_HOME/avsseg, else ~/.cache/avsseg; it need not exist.

    Raises EnvironmentFault if it is in a home directory that nobody knows.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG rules: a relative path is to be ignored
    folder = os.environ.get("AVSSEG_HOME", "") or Path(base if os.path.isabs(base) else "~/.cache", "avsseg")
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise EnvironmentFault(
            f"{printable(folder)}: no place for weights, its home directory is unknown. Set AVSSEG_HOME to a folder"
        ) from error


def weights_dir() -> Path:
    """Where the files lie under the names that their publishers gave them."""
    return cache_dir() / "weights"


def cached_file(entry: CatalogueEntry) -> Path:
    """Where the entry's file is, or would be."""
    return weights_dir() / entry.file_name


def cached_size(entry: CatalogueEntry) -> int | None:
    """Bytes of the entry's file, None if it is not there. Raises WeightsError if the cache cannot be read."""
    path = cached_file(entry)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def partial_size(entry: CatalogueEntry) -> int:
    """Bytes of an interrupted download."""
    path = cached_file(entry)
    try:
        return path.with_name(path.name + PARTIAL_SUFFIX).stat().st_size
    except OSError:
        return 0


def expected_sha256(entry: CatalogueEntry) -> str:
    """The digest that the entry's file must have, or the first digits of it that are known, or "".

    Raises WeightsError if the recorded digests cannot be read.
    """
    return entry.sha256 or _recorded().get(entry.file_name, "") or entry.sha256_prefix


def obtain(
    entry: CatalogueEntry,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
    patience: Patience = PATIENT,
) -> Path:
    """The entry's file, downloaded if it is not in the cache, with the digest that it always had.

    Where no digest is known yet, the file must be whole by its container and size before its own is recorded.
    Raises WeightsError or OutputError as `download` does, and WeightsError when a cached file has changed or was put
    there damaged.
    """
    path = cached_file(entry)
    if cached_size(entry) is not None:
        check = verify(entry)
        if check.verdict == "differs":
            raise WeightsError(
                f"{printable(path)}: sha256 is {check.sha256[:12]}…, expected {check.expected[:12]}…. Remove the file, "
                f"then run: avsseg weights download {entry.name}"
            )
        if check.verdict == "damaged":
            raise WeightsError(
                f"{printable(path)}: {check.fault}. Remove the file, then run: avsseg weights download {entry.name}"
            )
        return path
    expected = expected_sha256(entry)
    try:
        digest = download(
            entry.url,
            path,
            sha256=expected,
            fault_of=None if expected else functools.partial(fault_of, min_bytes=entry.min_bytes),
            offline=offline,
            progress=progress,
            on_wait=on_wait,
            patience=patience,
        )
    except WrongContentError as error:
        if entry.file_name not in _recorded():
            raise
        raise WeightsError(
            f"{error}. If they have replaced it, remove it from {printable(weights_dir() / CHECKSUMS_NAME)}"
        ) from error
    if digest != expected:
        _record(entry, digest)
    return path


def verify(entry: CatalogueEntry) -> Check:
    """Compares the cached file with its digest; a digest known in part, or not at all for a whole file, is recorded.

    Raises WeightsError if a file cannot be read.
    """
    expected, path = expected_sha256(entry), cached_file(entry)
    if cached_size(entry) is None:
        return Check("missing", "", expected)
    digest = sha256_of(path)
    if not digest.startswith(expected):
        return Check("differs", digest, expected)
    if digest == expected:
        return Check("ok", digest, expected)
    fault = "" if expected else fault_of(path, entry.min_bytes)
    if fault:
        return Check("damaged", digest, expected, fault)
    try:
        _record(entry, digest)
    except OutputError as error:  # a cache shared read-only serves all the same
        _log.info("not recorded: %s", error)
    return Check("recorded", digest, expected)


def find_weights(
    name_or_path: str | Path,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Path:
    """A file as it is, or the catalogue's file of that name through the cache.

    Raises WeightsError if it is neither, and as `obtain` does.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    entry = CATALOGUE.get(backbone_name(str(name_or_path)))
    if entry is None:
        raise WeightsError(
            f"{printable(name_or_path)}: neither a file nor published weights. Names: {', '.join(CATALOGUE)}"
        )
    return obtain(entry, offline=offline, progress=progress, on_wait=on_wait)


def _recorded() -> dict[str, str]:
    """sha256 by file name."""
    path = weights_dir() / CHECKSUMS_NAME
    try:
        entries = json.loads(path.read_text())
        return {str(name): str(entry["sha256"]) for name, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{printable(path)}: not a list of checksums ({error!r}). Remove it and run: avsseg weights verify"
        ) from error


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{printable(path)}: cannot be read ({error.strerror}). Make {printable(cache_dir())} a folder that you can "
        "read, or set AVSSEG_HOME to one"
    )


def _record(entry: CatalogueEntry, digest: str) -> None:
    path = weights_dir() / CHECKSUMS_NAME
    # two processes may finish different files at the same time
    with exclusive(path):
        recorded = _recorded()
        recorded[entry.file_name] = digest
        document = {name: {"sha256": recorded[name]} for name in sorted(recorded)}
        with written_whole(path) as partial:
            partial.write_text(json.dumps(document, indent=2) + "\n")
