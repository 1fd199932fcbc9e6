"""The client against a server that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mergeops.client import Address, ServiceClient, calls, connect
from mergeops.errors import ConfigError, GateRefusedError, ServiceError, TrackingError


class Answers:
    """A server; ``next`` are its answers in turn, ``asked`` what it was asked."""

    def __init__(self) -> None:
        self.next: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, str | None]] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                given = self.headers.get("Authorization")
                answers.asked.append((self.command, self.path, given))
                status, said = answers.next.pop(0)
                body = json.dumps(said).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    monkeypatch.setattr(calls, "WAIT_S", 0.0)
    made = Answers()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.parametrize(
    ("status", "said", "error", "message"),
    [
        (422, {"error": "seed is 'x'", "exit_code": 2}, ConfigError, "seed is 'x'"),
        (409, {"error": "ann proposed it", "exit_code": 7}, GateRefusedError, "ann proposed it"),
        (502, {"error": "no such model", "exit_code": 6}, TrackingError, "no such model"),
        (503, {"error": "cannot reach MLflow", "exit_code": 6}, TrackingError, "cannot reach"),
        (401, "a token is needed", ServiceError, "refuses the token or account; is MERGEOPS_TOKEN"),
        (418, "what", ServiceError, "what"),
        (302, "moved", ServiceError, "moved"),
    ],
)
def test_an_answer_that_is_an_error_is_the_error_of_a_command(
    answers: Answers, status: int, said: Any, error: type[Exception], message: str
) -> None:
    answers.next = [(status, said)]
    with pytest.raises(error, match=message):
        ServiceClient(Address(answers.url, "secret")).job("abcd")
    # Nobody else is told the token.
    assert answers.asked == [("GET", "/api/v1/jobs/abcd", "Bearer secret")]


def test_a_server_that_was_away_is_asked_again(answers: Answers) -> None:
    away = (503, {"error": "the database is away", "exit_code": 8})
    answers.next = [away, away, (200, {"id": "x"})]
    service = ServiceClient(Address(answers.url, "secret"))
    assert service.submit("run", ["seed=1"]) == {"id": "x"}
    answers.next = [away] * calls.TRIES
    with pytest.raises(ServiceError, match="cannot be reached: the database is away"):
        service.jobs()


def test_names_are_one_part_of_the_path(answers: Answers) -> None:
    answers.next = [(200, {})]
    ServiceClient(Address(answers.url, "t")).approve("a/../b?c", 1)
    assert answers.asked[0][1] == "/api/v1/proposals/a%2F..%2Fb%3Fc/approve"


def test_lines_are_followed_until_the_job_ends(answers: Answers) -> None:
    def page(*numbers: int) -> tuple[int, Any]:
        return 200, {"lines": [{"n": n, "line": f"line {n}"} for n in numbers]}

    answers.next = [
        *((200, {"ended": False}), page(1, 2), page()),
        *((200, {"ended": True}), page(3), page()),
    ]
    followed = ServiceClient(Address(answers.url, "t")).follow("abcd", every_s=0)
    assert list(followed) == ["line 1", "line 2", "line 3"]


def test_an_address_of_the_environment_wins(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEOPS_SERVER", f"{answers.url}/")
    monkeypatch.setenv("MERGEOPS_TOKEN", "mine")
    answers.next = [(200, {"workers": []})]
    assert connect("nowhere").workers() == []
    assert answers.asked == [("GET", "/api/v1/workers", "Bearer mine")]
    monkeypatch.setenv("MERGEOPS_SERVER", "ftp://x")
    with pytest.raises(ConfigError, match="it begins with http or https"):
        connect("nowhere")


def test_without_a_token_the_account_of_mlflow_is_taken(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEOPS_SERVER", answers.url)
    monkeypatch.delenv("MERGEOPS_TOKEN", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a:b")
    answers.next = [(200, {"id": "x"})] * 2
    connect().job("x")
    monkeypatch.setenv("MERGEOPS_TOKEN", "secret")
    connect().job("x")
    # base64 of ann:a:b
    assert [asked[2] for asked in answers.asked] == ["Basic YW5uOmE6Yg==", "Bearer secret"]
