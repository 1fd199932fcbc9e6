"""Who gets in: token, host, origin, the page's own word, and no more than may be sent."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mergeops.errors import AwayError
from mergeops.service.web.callers import Caller
from mergeops.service.web.guard import COOKIE, CSRF_HEADER, Guard, csrf_of

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
COOKIES = {COOKIE: TOKEN}
OWN = {"Origin": "http://127.0.0.1", CSRF_HEADER: csrf_of(TOKEN, "ben")}


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def name(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["mergeops.caller"].name)


@pytest.fixture
def ask() -> Callable[..., Any]:
    """A request to a small application behind the guard."""
    return asking()


def asking(**settings: Any) -> Callable[..., Any]:
    paths = ("/", "/api/v1/jobs", "/api/v1/health")
    routes = [Route(p, answer, methods=["GET", "POST", "DELETE"]) for p in paths]
    app = Starlette(routes=[*routes, Route("/name", name, methods=["GET", "POST"])])
    settings = {"hosts": ("merge.example.org",), "max_body": 100, **settings}
    guarded: Any = Guard(app, token=TOKEN, user="ben", **settings)

    def ask(verb: str, path: str, **more: Any) -> Any:
        cookies = more.pop("cookies", {})
        client = TestClient(
            guarded, base_url="http://127.0.0.1", cookies=cookies, follow_redirects=False
        )
        return client.request(verb, path, **more)

    return ask


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer "},
        {"Cookie": f"{COOKIE}=wrong"},
        {"Cookie": f'{COOKIE}="'},
    ],
)
def test_without_the_token_nothing_is_told(
    ask: Callable[..., Any], headers: dict[str, str]
) -> None:
    for path in ("/", "/api/v1/jobs", f"/api/v1/jobs?token={TOKEN}"):
        said = ask("GET", path, headers=headers)
        assert (said.status_code, said.headers["www-authenticate"]) == (401, "Bearer")
    assert ask("POST", f"/?token={TOKEN}", headers=headers).status_code == 401
    assert ask("GET", "/api/v1/health", headers=headers).status_code == 200


def test_the_first_visit_moves_the_token_from_the_address_into_a_cookie(
    ask: Callable[..., Any],
) -> None:
    said = ask("GET", f"/?state=failed&token={TOKEN}")
    assert (said.status_code, said.headers["location"]) == (303, "/?state=failed")
    cookie = said.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ask("GET", "/", cookies=COOKIES).status_code == 200
    elsewhere = ask("GET", f"http://127.0.0.1//evil.example/?token={TOKEN}")
    assert elsewhere.headers["location"] == "/evil.example/"


def test_a_change_with_the_cookie_has_to_come_from_the_page(ask: Callable[..., Any]) -> None:
    def status(headers: dict[str, str]) -> int:
        return int(ask("POST", "/api/v1/jobs", cookies=COOKIES, headers=headers).status_code)

    assert status({}) == 403
    assert status({"Origin": "http://127.0.0.1"}) == 403
    assert status({CSRF_HEADER: csrf_of(TOKEN, "ben")}) == 403
    assert status({**OWN, CSRF_HEADER: "wrong"}) == 403
    assert status(OWN) == 200


def test_other_sites_are_refused_whatever_they_have(ask: Callable[..., Any]) -> None:
    for origin in ("http://evil.example", "http://127.0.0.1:99", "null", "https://127.0.0.1.evil"):
        said = ask("POST", "/api/v1/jobs", headers={**BEARER, "Origin": origin})
        assert (said.status_code, said.text) == (403, "the request comes from another site\n")
    cross = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert ask("GET", "/", cookies=COOKIES, headers=cross).status_code == 403
    # A link on another page may lead here.
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask("GET", "/", cookies=COOKIES, headers=link).status_code == 200


def test_only_names_of_this_server_are_answered(ask: Callable[..., Any]) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "evil.example:80"):
        said = ask("GET", "/", headers={**BEARER, "Host": host})
        assert said.status_code == 421 and "is no name of this server" in said.text
    for host in ("localhost:8321", "[::1]:8321", "merge.example.org", "MERGE.example.org:443"):
        assert ask("GET", "/", headers={**BEARER, "Host": host}).status_code == 200


def test_a_body_has_a_limit_also_where_it_says_nothing_of_its_length(
    ask: Callable[..., Any],
) -> None:
    assert ask("POST", "/", headers=BEARER, content=b"x" * 100).text == "100 bytes"
    assert ask("POST", "/", headers=BEARER, content=b"x" * 101).status_code == 413
    assert ask("POST", "/", headers=BEARER, content=iter([b"x" * 60] * 2)).status_code == 413
    assert ask("POST", "/", headers={**BEARER, "Content-Length": "-1"}).status_code == 413


def test_a_body_that_never_comes_is_not_waited_for(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr("mergeops.service.web.guard.BODY_S", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(Guard(slow, token=TOKEN, user="ben")(scope, receive, send))
    assert sent[0]["status"] == 408


def test_every_answer_forbids_what_the_page_does_not_need(ask: Callable[..., Any]) -> None:
    for said in (ask("GET", "/"), ask("GET", "/", headers=BEARER)):
        policy = said.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert said.headers["x-content-type-options"] == "nosniff"
        assert said.headers["referrer-policy"] == "no-referrer"
        assert said.headers["cache-control"] == "no-store"


class Accounts:
    """A stand-in for MLflow's: ann may decide, eve has no role, and it may be away."""

    def __init__(self) -> None:
        self.asked = 0

    async def caller(self, credentials: str) -> Caller | None:
        self.asked += 1
        user, _, password = base64.b64decode(credentials).decode().partition(":")
        if password == "away":
            raise AwayError("cannot reach the MLflow server")
        if password != "right":
            return None
        return Caller(user, frozenset({"approver"} if user == "ann" else ()))


def basic(user: str, password: str = "right") -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def test_accounts_of_mlflow_get_in_beside_the_token() -> None:
    accounts: Any = Accounts()
    ask = asking(accounts=accounts)
    assert ask("GET", "/name", headers=basic("ann")).text == "ann"
    assert ask("GET", "/name", headers=BEARER).text == "ben"
    assert ask("GET", "/name", cookies=COOKIES).text == "ben"
    said = ask("GET", "/name", headers=basic("ann", "wrong"))
    assert said.status_code == 401 and "an account of the MLflow server is needed" in said.text
    # A browser asks for name and password.
    assert said.headers["www-authenticate"].startswith("Basic realm=")
    said = ask("GET", "/name", headers=basic("eve"))
    assert (said.status_code, said.text) == (
        403,
        "the account eve has no role here; the operator gives it one\n",
    )
    said = ask("GET", "/name", headers=basic("ann", "away"))
    assert said.status_code == 503 and "cannot reach the MLflow server" in said.text


def test_a_change_by_an_account_comes_from_the_page_or_from_a_script() -> None:
    accounts: Any = Accounts()
    ask = asking(accounts=accounts)

    def status(**more: str) -> int:
        headers = basic("ann") | {key.replace("_", "-"): value for key, value in more.items()}
        return int(ask("POST", "/name", headers=headers).status_code)

    # What a form of another site may be made to send.
    assert status() == 403
    assert status(Content_Type="application/x-www-form-urlencoded") == 403
    assert status(Content_Type="application/json") == 200
    page = {"Origin": "http://127.0.0.1", "Content_Type": "application/json"}
    assert status(**page) == 403
    # The word of another user's page is none.
    assert status(**page, X_Mergeops_CSRF=csrf_of(TOKEN, "ben")) == 403
    assert status(**page, X_Mergeops_CSRF=csrf_of(TOKEN, "ann")) == 200


def test_who_guesses_is_made_to_wait_and_the_token_is_not() -> None:
    accounts: Any = Accounts()
    ask = asking(accounts=accounts)
    for _ in range(20):
        assert ask("GET", "/name", headers=basic("ann", "guess")).status_code == 401
    said = ask("GET", "/name", headers=basic("ann", "guess"))
    assert (said.status_code, said.headers["retry-after"]) == (429, "3")
    assert accounts.asked == 20
    # The token is not guessed.
    assert ask("GET", "/name", headers=BEARER).status_code == 200
    # Without anything there is nothing to guess, and the browser's question must come.
    fresh = asking(accounts=accounts)
    assert [fresh("GET", "/name").status_code for _ in range(30)] == [401] * 30


def test_an_account_asks_so_often_a_minute_and_no_more() -> None:
    accounts: Any = Accounts()
    ask = asking(accounts=accounts, per_minute=3)
    statuses = [ask("GET", "/name", headers=basic("ann")).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert [ask("GET", "/name", headers=BEARER).status_code for _ in range(9)] == [200] * 9
