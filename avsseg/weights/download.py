"""Downloads one file: resumable, verified, and under its name only when complete. Imports no torch.

What has arrived lies in ``NAME.partial`` beside the target, and ``NAME.partial.json`` says what it is a part of.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO

import avsseg
from avsseg.errors import WeightsError, printable
from avsseg.weights.locking import exclusive
from avsseg.writers.base import PARTIAL_SUFFIX, fsync, output_errors

OFFLINE_VARIABLE = "AVSSEG_OFFLINE"
CHUNK_BYTES = 1 << 18
LOCAL_HOSTS = ("127.0.0.1", "localhost")
MIB = 1 << 20
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


@dataclass(frozen=True)
class Patience:
    """How long a silent server is waited for, and how often a cut connection is made again.

    The pauses double from `backoff_s`; the count starts anew whenever more of the file has arrived.
    """

    timeout_s: float = 30.0
    attempts: int = 5
    backoff_s: float = 1.0


PATIENT = Patience()


class WrongContentError(WeightsError):
    """A file that has not the digest or size that it must have, or is cut off or damaged."""


@dataclass(frozen=True)
class _Expected:
    """What is known of the whole file beforehand; the parameters of `download`."""

    sha256: str
    size: int | None
    fault_of: Callable[[Path], str] | None


class _TransferCut(Exception):  # noqa: N818 (not an error of the user's)
    """This attempt ended early; the next may go on."""


@dataclass
class _Part:
    """What has arrived of `url`, and what the server calls the version that it comes from."""

    path: Path
    url: str
    etag: str = ""  # a strong ETag, else the date of last change; "" if the server gives neither
    total: int | None = None

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def remember(self) -> None:
        self.note.write_text(json.dumps({"url": self.url, "etag": self.etag, "total": self.total}))

    def recall(self) -> bool:
        """Takes over what an earlier run remembered; whether it was a part of the same address."""
        try:
            note = json.loads(self.note.read_text())
            url, etag, total = str(note["url"]), str(note["etag"]), note["total"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if url != self.url or not (total is None or isinstance(total, int)):
            return False
        self.etag, self.total = etag, total
        return True

    def remove(self) -> None:
        with output_errors(self.path):
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)
        self.etag, self.total = "", None


def is_offline(offline: bool | None = None) -> bool:
    """Whether nothing may be downloaded: as asked for, else as the environment's AVSSEG_OFFLINE says."""
    if offline is not None:
        return offline
    return os.environ.get(OFFLINE_VARIABLE, "").strip().lower() not in ("", "0", "false", "no", "off")


def sha256_of(path: Path) -> str:
    """The file's digest, 64 hexadecimal digits. Raises WeightsError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{printable(path)}: cannot be read ({error.strerror}). Check the file") from error
    return digest.hexdigest()


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    fault_of: Callable[[Path], str] | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
    patience: Patience = PATIENT,
) -> str:
    """Downloads `url` to `target` and returns the file's sha256; a file that is there already is only verified.

    `sha256` is the digest, or as many of its first digits as are known; `size` the size in bytes, if known. `fault_of`
    says what shows that a file is not whole, or ""; without a digest nothing else can, since a server may end a file
    early and call it complete. A part left by an earlier run is continued where the server can do so. Another process
    or thread with the same target is waited for, and `on_wait` called then.

    Raises WeightsError: offline, address refused, server without the file, connection lost for good, wrong content.
    Raises OutputError: the disk refuses; what has arrived stays for the next run.
    """
    expected = _Expected(sha256.lower(), size, fault_of)
    _check_address(url)
    if not target.exists() and is_offline(offline):
        raise WeightsError(
            f"{printable(target.name)}: not in the cache, and offline. Fetch {url} elsewhere and put it into "
            f"{printable(target.parent)}"
        )
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target, on_wait=on_wait):
        if target.exists():
            return _verified(target, printable(target), expected, "Remove it and download it again")
        part = _Part(target.with_name(target.name + PARTIAL_SUFFIX), url)
        continued = _pick_up(part, identifiable=bool(sha256))
        try:
            digest = _complete(part, expected, progress, patience)
        except WrongContentError:
            if not continued:
                raise
            # the earlier part may have been of another version, or damaged on the disk
            digest = _complete(part, expected, progress, patience)
        with output_errors(target):
            fsync(part.path)
            os.replace(part.path, target)
            fsync(target.parent)
            part.remove()
    return digest


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        return
    raise WeightsError(f"{url}: refused, weights are only downloaded over https. Fetch the file yourself")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_address(newurl)
            if req.type == "https" and not newurl.lower().startswith("https:"):
                raise WeightsError(f"{req.full_url}: leads from https to {newurl}. Fetch the file yourself")
        except WeightsError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _complete(part: _Part, expected: _Expected, progress: Progress | None, patience: Patience) -> str:
    """Receives the rest and returns the digest of the whole; wrong content is removed."""
    _transfer(part, patience, progress, expected.size)
    try:
        return _verified(part.path, part.url, expected, "It was thrown away; try again, or ask its publisher")
    except WrongContentError:
        part.remove()
        raise


def _verified(path: Path, shown: str, expected: _Expected, hint: str) -> str:
    found = path.stat().st_size
    if expected.size is not None and found != expected.size:
        raise WrongContentError(f"{shown}: has {found} bytes, {expected.size} expected. {hint}")
    digest = sha256_of(path)
    if not digest.startswith(expected.sha256):
        raise WrongContentError(f"{shown}: sha256 is {digest[:12]}…, expected {expected.sha256[:12]}…. {hint}")
    fault = expected.fault_of(path) if expected.fault_of is not None else ""
    if fault:
        raise WrongContentError(f"{shown}: {fault}. {hint}")
    return digest


def _pick_up(part: _Part, *, identifiable: bool) -> bool:
    """Takes over what an earlier run left, or removes it; whether anything was taken over."""
    # without a hash or a version, two versions of a file could be joined unnoticed
    if part.recall() and part.size > 0 and (identifiable or part.etag):
        return True
    part.remove()
    return False


def _transfer(part: _Part, patience: Patience, progress: Progress | None, size: int | None) -> None:
    """Receives until the part is complete, over as many connections as it takes."""
    most, failures = part.size, 0
    while part.total is None or part.size != part.total:
        try:
            return _receive(part, patience.timeout_s, progress, size)
        except _TransferCut as cut:
            # a server that starts from the beginning each time gains nothing
            failures = 1 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures >= patience.attempts:
                raise WeightsError(
                    f"{part.url}: {cut}, {_amount(part)} have arrived, gave up after {failures} attempts. "
                    f"The same command tries again; or fetch it yourself into {printable(part.path.parent)}"
                ) from cut
            time.sleep(patience.backoff_s * 2 ** (failures - 1))


def _amount(part: _Part) -> str:
    of_all = f" of {part.total / MIB:.1f}" if part.total is not None else ""
    return f"{part.size / MIB:.1f}{of_all} MiB"


def _receive(part: _Part, timeout_s: float, progress: Progress | None, size: int | None) -> None:
    """One connection: asks for what is missing and appends it. Raises _TransferCut if some is still missing."""
    try:
        with contextlib.closing(_open(part, timeout_s)) as response:
            start, total = _place(part, response)
            if size is not None and total is not None and total != size:
                raise WeightsError(f"{part.url}: the server offers {total} bytes, {size} expected. Try again later")
            _append(part, response, start, total, progress)
    except urllib.error.URLError as error:
        _refuse_hopeless(part, error.reason)
        raise _TransferCut(f"no connection ({_quoted(error.reason)})") from error
    except TimeoutError as error:
        raise _TransferCut(f"the server was silent for {timeout_s:g} s") from error
    except (http.client.HTTPException, OSError) as error:
        raise _TransferCut(f"the connection broke ({_quoted(error) or type(error).__name__})") from error
    if total is not None and part.size < total:
        raise _TransferCut("the connection was cut")


def _refuse_hopeless(part: _Part, reason: object) -> None:
    """Raises WeightsError for what waiting does not cure."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise WeightsError(f"{part.url}: its certificate is not trusted ({reason.verify_message}). Fetch it yourself")
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN and part.size == 0:
        raise WeightsError(
            f"{part.url}: its host is not found ({reason.strerror}). Without a network, fetch it elsewhere and put it "
            f"into {printable(part.path.parent)}"
        )


def _open(part: _Part, timeout_s: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"avsseg/{avsseg.__version__}", "Accept-Encoding": "identity"}
    if part.size > 0:
        headers["Range"] = f"bytes={part.size}-"
        if part.etag:
            headers["If-Range"] = part.etag
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(part.url, headers=headers), timeout=timeout_s
        )
    except urllib.error.HTTPError as answer:
        answer.close()
        if answer.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.remove()  # longer than the file is, or of another version
            raise _TransferCut("the server has nothing after what has arrived") from answer
        if answer.code >= 500 or answer.code in _TRANSIENT:
            raise _TransferCut(f"the server answers {answer.code} {_quoted(answer.reason)}") from answer
        raise WeightsError(
            f"{part.url}: the server answers {answer.code} {_quoted(answer.reason)}. If it has moved, fetch it "
            f"yourself and put it into {printable(part.path.parent)}"
        ) from answer
    except ValueError as error:  # a redirect's Location may be anything
        raise WeightsError(
            f"{part.url}: the server leads to an address that is none ({_quoted(error)}). Fetch the file yourself"
        ) from error
    return response


def _quoted(words: object) -> str:
    """A server's words: the first line, with nothing that steers a terminal."""
    return printable(str(words).partition("\n")[0].rstrip(" .\r"))


def _place(part: _Part, response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the body belongs, and the size of the whole file if the server says it."""
    if response.headers.get_content_type() == "text/html":
        # a login page of the network, or an address that shows the file instead of sending it
        raise WeightsError(f"{part.url}: the server answers with a web page instead of the file. Fetch it yourself")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        # a server may know ranges but not If-Range, and send the rest of another version
        other = part.etag not in ("", _version(response) or part.etag)
        if told is None or int(told[1]) != part.size or part.total not in (None, int(told[2])) or other:
            part.remove()
            raise _TransferCut("the server sent another part than asked for")
        return part.size, int(told[2])
    part.etag = _version(response)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _version(response: http.client.HTTPResponse) -> str:
    """What the server calls this version of the file, in a form that If-Range takes; "" if it does not say."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _append(
    part: _Part, response: http.client.HTTPResponse, start: int, total: int | None, progress: Progress | None
) -> None:
    part.total = total
    with output_errors(part.path):
        # unbuffered: what a full disk refuses must not come up again when the file is closed
        file = part.path.open("r+b" if start else "wb", buffering=0)
    with file:
        with output_errors(part.path):
            file.seek(start)
            part.remember()
        done = start
        if progress is not None:
            progress(done, total)
        while chunk := response.read1(CHUNK_BYTES):
            with output_errors(part.path):
                _write(file, chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)


def _write(file: IO[bytes], chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]
