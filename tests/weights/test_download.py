from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import pytest

from avsseg.errors import OutputError, WeightsError
from avsseg.weights import download as module
from avsseg.weights.download import Patience, WrongContentError, _CheckedRedirects, download, is_offline

BODY = random.Random(0).randbytes(1_000_003)
DIGEST = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(1).randbytes(len(BODY))
QUICK = Patience(timeout_s=5.0, attempts=3, backoff_s=0.01)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


def interrupt_after(body: bytes, url: str, does: Any, target: Path) -> None:
    """A first run that got part of the file and then gave up."""
    does.body, does.cuts = body, [400_000]
    with pytest.raises(WeightsError, match="cut"):
        download(url, target, patience=Patience(5.0, 1, 0.01))
    assert left(target) == {"weights.pth.partial", "weights.pth.partial.json"}
    does.requests.clear()
    does.sent = 0


def test_a_whole_file_with_progress(server: Any, target: Path) -> None:
    url, does = server
    does.body = BODY
    seen: list[tuple[int, int | None]] = []
    assert download(url, target, progress=lambda done, total: seen.append((done, total))) == DIGEST
    assert target.read_bytes() == BODY
    assert left(target) == {"weights.pth"}
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert download(url, target, offline=True) == DIGEST  # it is there: nothing is asked
    assert len(does.requests) == 1


def test_cut_connections_ask_for_the_rest_only(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.cuts = (
        BODY,
        [300_000, 300_000, 300_000, 1, 1],
    )  # more cuts than attempts, but each brought something
    assert download(url, target, patience=QUICK) == DIGEST
    assert [r.get("Range") for r in does.requests] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
        "bytes=900000-",
        "bytes=900001-",
        "bytes=900002-",
    ]
    assert all("If-Range" in r for r in does.requests[1:])
    assert does.sent == len(BODY)


def test_a_later_run_goes_on_where_an_earlier_one_ended(server: Any, target: Path) -> None:
    url, does = server
    interrupt_after(BODY, url, does, target)
    assert download(url, target, patience=QUICK) == DIGEST
    assert does.sent == len(BODY) - 400_000
    assert left(target) == {"weights.pth"}


@pytest.mark.parametrize("changes", [{"ranges": False}, {"if_range": True}, {"if_range": False}])
def test_another_version_or_no_ranges_starts_again(server: Any, target: Path, changes: dict[str, bool]) -> None:
    url, does = server
    interrupt_after(BODY, url, does, target)
    does.body = OTHER
    for name, value in changes.items():
        setattr(does, name, value)
    assert download(url, target, patience=QUICK) == hashlib.sha256(OTHER).hexdigest()
    assert target.read_bytes() == OTHER


def test_a_part_without_version_is_continued_only_with_a_digest(server: Any, target: Path) -> None:
    url, does = server
    does.etag = False
    interrupt_after(BODY, url, does, target)
    download(url, target, patience=QUICK)
    assert does.sent == len(BODY)
    target.unlink()
    interrupt_after(BODY, url, does, target)
    download(url, target, sha256=DIGEST[:8], patience=QUICK)
    assert does.sent == len(BODY) - 400_000


def test_a_damaged_part_is_fetched_again_when_the_digest_tells(server: Any, target: Path) -> None:
    url, does = server
    interrupt_after(BODY, url, does, target)
    part = target.with_name("weights.pth.partial")
    part.write_bytes(bytes(400_000))
    assert download(url, target, sha256=DIGEST, patience=QUICK) == DIGEST
    assert [r.get("Range") for r in does.requests] == ["bytes=400000-", None]


def test_a_complete_part_is_taken_without_a_request(server: Any, target: Path) -> None:
    url, does = server
    interrupt_after(BODY, url, does, target)
    target.with_name("weights.pth.partial").write_bytes(BODY)
    assert download(url, target) == DIGEST
    assert does.requests == []


def test_a_part_that_is_too_long_or_of_another_address_starts_again(server: Any, target: Path) -> None:
    url, does = server
    interrupt_after(BODY, url, does, target)
    target.with_name("weights.pth.partial").write_bytes(BODY + b"more")
    assert download(url, target, patience=QUICK) == DIGEST  # over a 416
    target.unlink()
    interrupt_after(BODY, url, does, target)
    note = target.with_name("weights.pth.partial.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"url": "https://example.org/other"}))
    assert download(url, target, patience=QUICK) == DIGEST
    assert "Range" not in does.requests[0]


@pytest.mark.parametrize("known", [DIGEST, DIGEST[:8]])
def test_wrong_bytes_leave_nothing(server: Any, target: Path, known: str) -> None:
    url, does = server
    does.body = OTHER
    with pytest.raises(WrongContentError, match=r"weights\.pth: sha256 is .*expected .*thrown away") as caught:
        download(url, target, sha256=known, patience=QUICK)
    assert "\n" not in str(caught.value)
    assert left(target) == set()
    does.body = BODY
    assert download(url, target, sha256=known) == DIGEST
    with pytest.raises(WrongContentError, match="Remove it"):
        download(url, target, sha256="0" * 64)


def test_lies_about_the_size(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.length_lie, does.ranges = BODY, 1000, False
    with pytest.raises(WeightsError, match=r"cut, 1\.0 of 1\.0 MiB have arrived, gave up after 3 attempts"):
        download(url, target, patience=QUICK)
    assert len(does.requests) == 3
    does.length_lie = -1000
    with pytest.raises(WeightsError, match=f"offers {len(BODY) - 1000} bytes, {len(BODY)} expected"):
        download(url, target, size=len(BODY), patience=QUICK)
    with pytest.raises(WrongContentError, match="sha256"):
        download(url, target, sha256=DIGEST, patience=QUICK)
    assert not target.exists()


def test_answers_that_are_final_and_answers_that_pass(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.statuses = BODY, [404]
    with pytest.raises(WeightsError, match=r"answers 404 Not Found.*cache"):
        download(url, target, patience=QUICK)
    assert len(does.requests) == 1
    does.statuses = [500, 503]
    assert download(url, target, patience=QUICK) == DIGEST
    target.unlink()
    does.statuses = [500] * 3
    with pytest.raises(WeightsError, match=r"500.*gave up after 3 attempts"):
        download(url, target, patience=QUICK)


@pytest.mark.parametrize("status", [403, 503])
def test_the_words_of_a_server_do_nothing_to_a_terminal(server: Any, target: Path, status: int) -> None:
    url, does = server
    does.statuses, does.reason = [status] * QUICK.attempts, "For\x1b[31mbidden"
    with pytest.raises(WeightsError, match=rf"answers {status} For\\x1b\[31mbidden[.,]"):
        download(url, target, patience=QUICK)


def test_a_redirect_that_leads_nowhere_is_one_line(server: Any, target: Path) -> None:
    url, does = server
    does.redirect = url  # urllib tells of a circle in three lines
    with pytest.raises(WeightsError, match=r"answers 302 .*infinite loop\. If it has moved") as caught:
        download(url, target, patience=QUICK)
    assert "\n" not in str(caught.value)
    does.redirect = "http://[::1"
    with pytest.raises(WeightsError, match=r"leads to an address that is none \(Invalid IPv6 URL\)"):
        download(url, target, patience=QUICK)
    assert left(target) == set()


def test_a_name_server_that_does_not_answer_at_once_is_asked_again(
    server: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, does = server
    does.body = BODY
    resolve, faults = socket.getaddrinfo, [socket.EAI_AGAIN, socket.EAI_NONAME]

    def unsteady(*arguments: Any, **options: Any) -> Any:
        if faults:
            raise socket.gaierror(faults.pop(0), "no answer")
        return resolve(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unsteady)
    with pytest.raises(WeightsError, match="its host is not found"):  # which the second answer says for good
        download(url, target, patience=QUICK)
    assert faults == []
    faults.append(socket.EAI_AGAIN)
    assert download(url, target, patience=QUICK) == DIGEST


def test_a_web_page_is_not_a_file(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.content_type = b"<html>log in</html>", "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="a web page"):
        download(url, target, patience=QUICK)
    assert left(target) == set()


def test_a_silent_server_and_no_server(server: Any, target: Path, free_port: int) -> None:
    url, does = server
    does.hang = True
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"silent for 0\.1 s"):
        download(url, target, patience=Patience(0.1, 2, 0.01))
    assert time.monotonic() - start < 5
    with pytest.raises(WeightsError, match="no connection"):
        download(f"http://127.0.0.1:{free_port}/x.pth", target, patience=QUICK)


@pytest.mark.parametrize("url", ["http://example.org/x.pth", "ftp://localhost/x", "file:///etc/passwd", "x.pth"])
def test_only_https_and_this_machine(target: Path, url: str) -> None:
    with pytest.raises(WeightsError, match="https"):
        download(url, target)
    assert not target.parent.exists()


def test_a_redirect_is_followed_also_when_a_download_goes_on(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.redirect = BODY, urllib.parse.urljoin(url, "/direct")
    does.cuts = [len(does.body) // 2]
    download(url, target, patience=QUICK)
    assert target.read_bytes() == does.body
    again = [request for request in does.requests if "Range" in request]
    assert again
    assert all("If-Range" in request for request in again)


def test_a_redirect_does_not_leave_https() -> None:
    request = urllib.request.Request("https://example.org/weights.pth")
    with pytest.raises(WeightsError, match="leads from https"):
        _CheckedRedirects().redirect_request(
            request, io.BytesIO(), 302, "", HTTPMessage(), "http://127.0.0.1/weights.pth"
        )


def test_redirects_are_followed_only_to_allowed_addresses(server: Any, target: Path) -> None:
    url, does = server
    for place in ("http://example.org/x.pth", "ftp://localhost/x"):
        does.redirect = place
        with pytest.raises(WeightsError, match="refused, weights are only downloaded over https"):
            download(url, target, patience=QUICK)
    assert left(target) == set()


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False), ("false", False)]
)
def test_offline(monkeypatch: pytest.MonkeyPatch, server: Any, target: Path, value: str, offline: bool) -> None:
    url, does = server
    monkeypatch.setenv("AVSSEG_OFFLINE", value)
    assert is_offline() is offline
    assert is_offline(False) is False
    with pytest.raises(WeightsError) as caught:
        download(url, target, offline=True)
    assert "weights.pth: not in the cache, and offline" in str(caught.value)
    assert url in str(caught.value)
    assert str(target.parent) in str(caught.value)
    assert does.requests == []


def test_a_full_disk_keeps_the_part(server: Any, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, does = server
    does.body = BODY
    write, written = module._write, 0

    def full(file: Any, chunk: bytes) -> None:
        nonlocal written
        if written > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, chunk)
        written += len(chunk)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Free space there"):
        download(url, target, patience=QUICK)
    monkeypatch.setattr(module, "_write", write)
    assert download(url, target, patience=QUICK) == DIGEST
    # what the server sent cannot be counted: it may still be sending the first answer into the socket's buffer
    kept = re.fullmatch(r"bytes=(\d+)-", does.requests[-1]["Range"])
    assert kept
    assert 300_000 <= int(kept[1]) < len(BODY)


def test_an_unwritable_place(server: Any, tmp_path: Path) -> None:
    url, does = server
    does.body = BODY
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        download(url, tmp_path / "file" / "weights.pth")


def test_two_threads_download_once(server: Any, target: Path, in_threads: Callable[..., list[Any]]) -> None:
    url, does = server
    does.body = BODY
    waited: list[int] = []
    does.hold = threading.Event()
    last_resort = threading.Timer(20, does.hold.set)
    last_resort.start()

    def waits() -> None:
        waited.append(1)
        if len(waited) == 2:
            does.hold.set()

    got = in_threads(lambda: download(url, target, on_wait=waits, patience=QUICK), 3)
    last_resort.cancel()
    assert got == [DIGEST] * 3
    assert len(does.requests) == 1
    assert waited == [1, 1]
    assert left(target) == {"weights.pth"}


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_process_leaves_a_part_and_no_lock(server: Any, target: Path) -> None:
    url, does = server
    does.body, does.cuts, does.hold = BODY, [500_000], threading.Event()
    program = "import sys, pathlib, avsseg.weights.download as d; d.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-c", program, url, str(target)]) as process:
        part = target.with_name("weights.pth.partial")
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == 500_000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    does.hold.set()
    assert not target.exists()
    assert part.stat().st_size == 500_000
    does.sent = 0
    assert download(url, target, patience=QUICK) == DIGEST
    assert does.sent == len(BODY) - 500_000
    assert left(target) == {"weights.pth"}
