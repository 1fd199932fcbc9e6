"""Every request passes here first: who asks, from where, and how much.

A request needs the token: as ``Authorization: Bearer``, or in the cookie that a first visit with
``?token=`` sets. Where the operator lets accounts of MLflow in, a name and a password will do
(``Authorization: Basic``, for which a browser asks). What changes something and comes with what a
browser sends by itself must come from this very page: its Origin is this server's, and it carries a
word that only this page can read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from mergeops.errors import TrackingError
from mergeops.service.operator_config import ROLES
from mergeops.service.web.callers import Accounts, Caller
from mergeops.service.web.rate_limit import RateLimit

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
WRONG_PER_MINUTE = 20
"""Wrong tokens or passwords from one address."""
BODY_S = 20.0
"""A body that comes more slowly is not waited for."""
BASIC = 'Basic realm="accounts of MLflow", charset="UTF-8"'
ACCOUNT_NEEDED = "an account of the MLflow server is needed"
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


class _RefusedError(Exception):
    """A request that is answered here.

    Args:
        status: of HTTP.
        text: one line.
        wait_s: until another may come.
    """

    def __init__(self, status: int, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {"retry-after": str(math.ceil(wait_s))} if wait_s else {}


class Guard:
    """Lets a request through, or answers it itself.

    Args:
        app: what is guarded.
        token: that requests need.
        user: whom the token stands for; he may everything.
        hosts: names of this server, beside those of the machine.
        max_body: bytes of a request.
        accounts: of MLflow, which get in too.
        per_minute: requests of one account.
    """

    def __init__(
        self,
        app: Application,
        *,
        token: str,
        user: str,
        hosts: tuple[str, ...] = (),
        max_body: int = 1 << 18,
        accounts: Accounts | None = None,
        per_minute: int = 1200,
    ) -> None:
        self._app = app
        self._token = token
        self._holder = Caller(user, frozenset(ROLES))
        self._hosts = {host.lower() for host in (*LOCAL, *hosts)}
        self._max_body = max_body
        self._accounts = accounts
        self._rate = RateLimit(per_minute)
        self._wrong = RateLimit(WRONG_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        sends = _with_headers(send, scope["path"])
        try:
            self._check_place(scope, headers)
            if scope["path"] not in OPEN_PATHS:
                caller = await self._caller(scope, headers)
                scope["mergeops.caller"] = caller
                scope["mergeops.csrf"] = csrf_of(self._token, caller.name)
            if scope["method"] in SAFE and (place := self._first_visit(scope)):
                moved = {"location": place, "set-cookie": self._cookie(scope)}
                await _answer(sends, 303, "", moved)
                return
            if scope["method"] not in SAFE:
                body = await asyncio.wait_for(self._read(receive), BODY_S)
                receive = _again(body, receive)
        except _RefusedError as refusal:
            if refusal.status == 401:
                ways = "Bearer" if self._accounts is None else BASIC
                refusal.headers["www-authenticate"] = ways
            await _answer(sends, refusal.status, str(refusal), refusal.headers)
        except _TooLargeError:
            await _answer(sends, 413, f"the body is larger than {self._max_body} bytes")
        except TimeoutError:
            await _answer(sends, 408, "the body came too slowly")
        else:
            await self._app(scope, receive, sends)

    def _check_place(self, scope: Scope, headers: dict[str, str]) -> None:
        """Refuse what other sites send, and what is too large."""
        host = _host_of(headers.get("host", ""))
        if host not in self._hosts:
            # Another site's name that leads here (DNS rebinding) is no name of this server.
            raise _RefusedError(
                421, f"{host[:100]!r} is no name of this server; its operator adds it to hosts"
            )
        if "origin" in headers and not _is_own_origin(headers):
            raise _RefusedError(403, "the request comes from another site")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            scope["method"] not in SAFE or headers.get("sec-fetch-mode") != "navigate"
        ):
            raise _RefusedError(403, "the request comes from another site")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            raise _RefusedError(413, f"the body is larger than {self._max_body} bytes")

    async def _caller(self, scope: Scope, headers: dict[str, str]) -> Caller:
        """Who asks."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        if self._has_token_in_url(scope) or (is_bearer and self._is_token(given)):
            return self._holder
        cookie = _cookie_of(headers.get("cookie", ""))
        if cookie and self._is_token(cookie):
            self._check_page(scope, headers, self._holder)
            return self._holder
        address = (scope.get("client") or ("",))[0]
        if wait_s := self._wrong.wait_s(address):
            raise _RefusedError(429, "too many wrong tokens or passwords; wait a minute", wait_s)
        if scheme.lower() == "basic" and self._accounts is not None:
            caller = await self._account(given)
            if caller is not None:
                if wait_s := self._rate.wait_s(caller.name):
                    raise _RefusedError(
                        429, f"the account {caller.name} asks too often; wait a moment", wait_s
                    )
                self._rate.take(caller.name)
                self._check_page(scope, headers, caller)
                return caller
        if given or cookie:
            self._wrong.take(address)
        need = "a token is needed: open the address that `mergeops serve` printed"
        raise _RefusedError(401, need if self._accounts is None else f"{ACCOUNT_NEEDED}, or {need}")

    async def _account(self, credentials: str) -> Caller | None:
        assert self._accounts is not None
        try:
            caller = await self._accounts.caller(credentials)
        except TrackingError as error:
            raise _RefusedError(503, f"the account cannot be checked: {error}") from error
        if caller is not None and not caller.roles:
            raise _RefusedError(
                403, f"the account {caller.name} has no role here; the operator gives it one"
            )
        return caller

    def _check_page(self, scope: Scope, headers: dict[str, str], caller: Caller) -> None:
        """Refuse a change that a browser may have been made to send from elsewhere."""
        if scope["method"] in SAFE:
            return
        word = headers.get(CSRF_HEADER, "").encode()
        own = csrf_of(self._token, caller.name).encode()
        is_page = _is_own_origin(headers) and hmac.compare_digest(word, own)
        # A browser says where a change comes from; and of JSON it asks first whether it may.
        is_script = (
            caller is not self._holder
            and "origin" not in headers
            and headers.get("content-type", "").startswith("application/json")
        )
        if not (is_page or is_script):
            raise _RefusedError(403, "the request does not come from the service's own page")

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


def csrf_of(token: str, user: str) -> str:
    """The word that requests of this user's page carry."""
    return hmac.new(token.encode(), f"mergeops page {user}".encode(), hashlib.sha256).hexdigest()


def _is_own_origin(headers: dict[str, str]) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")


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
    raw = [(key.encode(), value.encode("latin-1", "replace")) for key, value in kind.items()]
    body = f"{text}\n".encode() if text else b""
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
