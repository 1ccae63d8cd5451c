"""A real HTTP server on this machine that can misbehave in the ways that real ones do."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Behaviour:
    """What the server does. `cuts` are bytes after which it drops the first connections, one each.

    `length_lie` is added to Content-Length, which is left out without `tells_length`; `statuses` are answered first,
    one each, with `reason`; `hang` never answers.
    """

    body: bytes = b""
    cuts: list[int] = field(default_factory=list)
    length_lie: int = 0
    tells_length: bool = True
    ranges: bool = True
    if_range: bool = True
    etag: bool = True
    statuses: list[int] = field(default_factory=list)
    reason: str | None = None
    content_type: str = "application/octet-stream"
    redirect: str = ""
    hang: bool = False
    hold: threading.Event | None = None
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour
    released: threading.Event

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        does = self.behaviour
        does.requests.append(dict(self.headers))
        if does.hang:
            self.released.wait(20)
            return
        if does.statuses:
            self.send_error(does.statuses.pop(0), does.reason)
            return
        if does.redirect and self.path != "/direct":
            self.send_response(302)
            self.send_header("Location", does.redirect)
            self.end_headers()
            return
        body, etag = does.body, f'"{hashlib.md5(does.body).hexdigest()}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and does.ranges and (not does.if_range or self.headers.get("If-Range", etag) == etag):
            start = int(asked[1])
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", does.content_type)
        if does.tells_length:
            self.send_header("Content-Length", str(len(body) - start + does.length_lie))
        if does.etag:
            self.send_header("ETag", etag)
        self.end_headers()
        end = start + does.cuts.pop(0) if does.cuts else len(body)
        does.sent += len(body[start:end])  # first: a client that has it all may be quicker than what comes after
        self.wfile.write(body[start:end])
        if does.hold is not None:
            self.wfile.flush()
            does.hold.wait(20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behaviour]]:
    """The address of one file on a server of this machine, and what it does."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    behaviour, released = Behaviour(), threading.Event()
    handler = type("Handler", (_Handler,), {"behaviour": behaviour, "released": released})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/weights.pth", behaviour
        released.set()
        if behaviour.hold is not None:
            behaviour.hold.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def in_threads() -> Callable[..., list[Any]]:
    """Calls a function in several threads at once and returns what each returned; raises what one raised."""

    def call(function: Callable[[], Any], count: int) -> list[Any]:
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results

    return call
