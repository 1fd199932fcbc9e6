"""Every request passes here first: who asks, from where, and how much.

A request needs the token: as ``Authorization: Bearer``, or in the cookie that a first visit with
``?token=`` sets. What changes something and comes with the cookie must come from this very page:
its Origin is this server's, and it carries a word that only this page can read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "mergeops_token"
CSRF_HEADER = "x-mergeops-csrf"
OPEN_PATHS = ("/api/v1/health",)
"""Say only that the server lives; nothing else is told without the token."""
SAFE = ("GET", "HEAD", "OPTIONS")
BODY_S = 20.0
"""A body that comes more slowly is not waited for."""
LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class _TooLargeError(Exception):
    pass


class Guard:
    """Lets a request through, or answers it itself.

    Args:
        app: what is guarded.
        token: that requests need.
        hosts: names of this server, beside those of the machine.
        max_body: bytes of a request.
    """

    def __init__(
        self, app: Application, *, token: str, hosts: tuple[str, ...] = (), max_body: int = 1 << 18
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = {host.lower() for host in (*LOCAL, *hosts)}
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        sends = _with_headers(send, scope["path"])
        if refusal is not None:
            await _answer(sends, *refusal)
            return
        if scope["method"] in SAFE and (place := self._first_visit(scope)):
            await _answer(sends, 303, "", {"location": place, "set-cookie": self._cookie(scope)})
            return
        scope["mergeops.csrf"] = csrf_of(self._token)
        if scope["method"] in SAFE:
            await self._app(scope, receive, sends)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), BODY_S)
        except _TooLargeError:
            await _answer(sends, 413, f"the body is larger than {self._max_body} bytes")
        except TimeoutError:
            await _answer(sends, 408, "the body came too slowly")
        else:
            await self._app(scope, _again(body, receive), sends)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _host_of(headers.get("host", ""))
        if host not in self._hosts:
            # Another site's name that leads here (DNS rebinding) is no name of this server.
            return 421, f"{host[:100]!r} is no name of this server; its operator adds it to hosts"
        origin = headers.get("origin")
        is_own = origin is not None and urlsplit(origin).netloc == headers.get("host")
        if origin is not None and not is_own:
            return 403, "the request comes from another site"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            scope["method"] not in SAFE or headers.get("sec-fetch-mode") != "navigate"
        ):
            return 403, "the request comes from another site"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            return 413, f"the body is larger than {self._max_body} bytes"
        if scope["path"] in OPEN_PATHS or self._has_token_in_url(scope):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given):
            return None
        if not self._is_token(_cookie_of(headers.get("cookie", ""))):
            return 401, "a token is needed: open the address that `mergeops serve` printed"
        if scope["method"] not in SAFE:
            word = headers.get(CSRF_HEADER, "")
            if not is_own or not hmac.compare_digest(word.encode(), csrf_of(self._token).encode()):
                return 403, "the request does not come from the service's own page"
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _has_token_in_url(self, scope: Scope) -> bool:
        if scope["method"] not in SAFE or scope["path"].startswith("/api/"):
            return False
        return self._is_token(
            dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        )

    def _first_visit(self, scope: Scope) -> str | None:
        """The address without the token, which is in the cookie from then on."""
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        if scope["path"].startswith("/api/") or "token" not in dict(query):
            return None
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        # A path of two slashes would lead to another host.
        path = "/" + str(scope["path"]).lstrip("/\\")
        return path + (f"?{rest}" if rest else "")

    def _cookie(self, scope: Scope) -> str:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/{secure}"

    async def _read(self, receive: Receive) -> bytes:
        """The whole body, before anybody works on it."""
        body = b""
        while True:
            message = await receive()
            body += bytes(message.get("body", b""))
            if len(body) > self._max_body:
                raise _TooLargeError
            if not message.get("more_body", False):
                return body


def csrf_of(token: str) -> str:
    """The word that the page's own requests carry."""
    return hmac.new(token.encode(), b"mergeops page", hashlib.sha256).hexdigest()


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what comes: that the client went away."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


def _host_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _cookie_of(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _with_headers(send: Send, path: str) -> Send:
    more = dict(HEADERS)
    is_asset = path.startswith("/static/")
    more["cache-control"] = "private, max-age=3600" if is_asset else "no-store"
    raw = [(key.encode(), value.encode()) for key, value in more.items()]

    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {key for key, _ in raw}
            kept = [(k, v) for k, v in message.get("headers", []) if k.lower() not in names]
            message = {**message, "headers": [*kept, *raw]}
        await send(message)

    return sends


async def _answer(
    send: Send, status: int, text: str, headers: dict[str, str] | None = None
) -> None:
    kind = {"content-type": "text/plain; charset=utf-8"} | (headers or {})
    if status == 401:
        kind["www-authenticate"] = "Bearer"
    raw = [(key.encode(), value.encode("latin-1", "replace")) for key, value in kind.items()]
    body = f"{text}\n".encode() if text else b""
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
