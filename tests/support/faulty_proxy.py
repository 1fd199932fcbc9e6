"""A proxy on loopback before a real server, which breaks the line at a chosen request."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FaultyProxy:
    """Passes HTTP requests on to ``target``, until it is told to break the line.

    Args:
        target: URI of the server.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 80)
        self._lock = threading.Lock()
        self._passed, self._break_at = 0, 0
        self._answer_lost = self._comes_back = False
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else an answer's body waits for the receipt of its headers.
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy._pass(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Gives a list that holds, after the block, how many requests were passed in it."""
        counted: list[int] = []
        self._passed = 0
        yield counted
        counted.append(self._passed)

    @contextmanager
    def breaking(
        self, at: int, *, answer_lost: bool = False, comes_back: bool = False
    ) -> Iterator[None]:
        """Break the line at the ``at``-th request of the block, counted from 1.

        Args:
            answer_lost: the server does what was asked, and only its answer is lost.
            comes_back: only this one request suffers; else all later ones are refused too.
        """
        self._passed, self._break_at = 0, at
        self._answer_lost, self._comes_back = answer_lost, comes_back
        try:
            yield
        finally:
            self._break_at = 0

    def _pass(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Transfer-Encoding") == "chunked":
            body = _chunked(request)
        with self._lock:
            self._passed += 1
            here = self._break_at and self._passed == self._break_at
            after = self._break_at and self._passed > self._break_at and not self._comes_back
        if after or (here and not self._answer_lost):
            request.close_connection = True
            return
        status, reason, headers, answer = self._ask(request, body)
        if here:
            request.close_connection = True
            return
        request.send_response_only(status, reason)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def _ask(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._target, timeout=60)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "transfer-encoding", "connection", "accept-encoding")
        }
        headers["Content-Length"] = str(len(body))
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        whole = answer.status, answer.reason, answer.getheaders(), answer.read()
        connection.close()
        return whole


def _chunked(request: BaseHTTPRequestHandler) -> bytes:
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body
