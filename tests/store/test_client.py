"""What the errors of MLflow, databases and artifact stores become."""

from __future__ import annotations

from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from mergeops.errors import AwayError, TrackingError
from mergeops.store.client import or_none, pages, translated
from mergeops.store.made_once import log_params

botocore = pytest.importorskip("botocore.exceptions")
SERVER = "http://admin:password@mlflow.example:5000"


def told(error: Exception, uri: str = SERVER, location: str = "") -> TrackingError:
    with pytest.raises(TrackingError) as caught, translated(uri, "store x", location):
        raise error
    assert "\n" not in str(caught.value)
    assert "password@" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        botocore.EndpointConnectionError(endpoint_url="http://127.0.0.1:9/bucket"),
        botocore.ConnectTimeoutError(endpoint_url="http://127.0.0.1:9/bucket"),
    ],
)
def test_a_store_that_does_not_answer_is_away_and_named_with_its_address(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    found = told(error, location="s3://key:secret@bucket/x")
    assert isinstance(found, AwayError)
    assert str(found) == (
        "cannot reach the artifact store s3://bucket/x at "
        "MLFLOW_S3_ENDPOINT_URL=http://127.0.0.1:9; check that it runs, and its address"
    )


def test_a_store_without_credentials_names_the_variables() -> None:
    found = told(botocore.NoCredentialsError(), location="s3://bucket")
    assert isinstance(found, AwayError)
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(found)


@pytest.mark.parametrize(
    ("code", "away", "message"),
    [
        ("AccessDenied", True, "denies access"),
        ("ExpiredToken", True, "denies access"),
        ("NoSuchBucket", False, "has no such bucket"),
        ("NoSuchKey", False, "could not store x"),
    ],
)
def test_what_a_store_refuses_is_told_by_its_code(code: str, away: bool, message: str) -> None:
    error = botocore.ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")
    found = told(error, location="s3://bucket")
    assert isinstance(found, AwayError) == away
    assert message in str(found)


@pytest.mark.parametrize(
    ("message", "away", "said"),
    [
        ("API request to http://x failed with exception: too many 503 error responses", True, ""),
        ("API request to http://x failed: Connection refused", True, "connection refused"),
        ("API request to endpoint /x failed with error code 500 != 200", True, "fails inside"),
        ("API request to endpoint /x failed with error code 403 != 200", True, "denies access"),
        ("PERMISSION_DENIED: Permission denied", True, "denies access"),
        ("API request to endpoint /x failed with error code 404 != 200", False, "like an MLflow"),
        ("INVALID_PARAMETER_VALUE: Invalid value", False, "could not store x: Invalid value"),
    ],
)
def test_what_passes_later_is_away_and_what_never_will_is_not(
    message: str, away: bool, said: str
) -> None:
    from mlflow.exceptions import MlflowException

    found = told(MlflowException(message))
    assert isinstance(found, AwayError) == away
    assert said in str(found)


def test_a_package_that_is_missing_is_named_with_how_to_install_it() -> None:
    error = ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
    found = told(error, uri="postgresql://mlflow:password@db/mlflow")
    assert str(found) == (
        "postgresql://db/mlflow needs the package psycopg2; install it: pip install psycopg2-binary"
    )


@pytest.mark.parametrize("code", ["RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"])
def test_only_what_does_not_exist_is_none(code: str) -> None:
    def ask(error: Exception | None = None) -> str:
        with translated(SERVER, "get run"):
            if error is not None:
                raise error
        return "answer"

    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    missing = MlflowException("no run", error_code=getattr(databricks_pb2, code))
    assert or_none(lambda: ask(missing)) is None
    assert or_none(ask) == "answer"
    with pytest.raises(AwayError):
        or_none(lambda: ask(ConnectionRefusedError("API request to x: Connection refused")))


def test_pages_are_asked_for_until_there_is_no_token() -> None:
    class Page(list[int]):
        token: str | None = None

    def search(*wanted: str, most: int, page_token: str | None) -> Page:
        assert (wanted, most) == (("x",), 2)
        page = Page({None: [1, 2], "second": [], "third": [3]}[page_token])
        page.token = {None: "second", "second": "third", "third": None}[page_token]
        return page

    assert list(pages(search, "x", most=2)) == [[1, 2], [], [3]]


def test_a_wrong_password_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    error = MlflowException("API request to endpoint /x failed with error code 401 != 200")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    assert "set MLFLOW_TRACKING_USERNAME" in str(told(error))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert "check MLFLOW_TRACKING_USERNAME" in str(told(error))


class Raced:
    """A store where another process logs ``theirs`` after the run was read and before the write."""

    def __init__(self, words: str, theirs: dict[str, str]) -> None:
        self.words, self.theirs = words, theirs
        self.params: dict[str, str] = {}

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params=dict(self.params)))

    def log_batch(self, run_id: str, params: Any) -> None:
        self.params |= self.theirs
        new = {param.key: param.value for param in params}
        if set(new) & set(self.params):
            raise TrackingError(f"MLflow at {SERVER} could not log batch: {self.words}")
        self.params |= new


@pytest.mark.parametrize(
    "words",
    [
        "BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: params.key",
        "BAD_REQUEST: (psycopg2.errors.UniqueViolation) duplicate key value violates unique",
    ],
)
def test_parameters_that_another_process_logs_meanwhile_are_no_error(words: str) -> None:
    client: Any = Raced(words, theirs={"a": "1", "b": "2"})
    log_params(client, "run", {"a": "1", "b": "2", "c": "3"})
    assert client.params == {"a": "1", "b": "2", "c": "3"}


def test_who_lost_the_run_meanwhile_does_not_go_on_writing_parameters() -> None:
    def taken_over() -> None:
        raise TrackingError("taken over")

    client: Any = Raced("UNIQUE constraint failed", theirs={"a": "1"})
    with pytest.raises(TrackingError, match="taken over"):
        log_params(client, "run", {"a": "1", "b": "2"}, taken_over)
    assert client.params == {"a": "1"}


def test_a_parameter_that_the_server_refuses_for_itself_is_an_error() -> None:
    class Refusing(Raced):
        def log_batch(self, run_id: str, params: Any) -> None:
            raise TrackingError("Exceeded length")

    client: Any = Refusing("", theirs={})
    with pytest.raises(TrackingError, match="Exceeded length"):
        log_params(client, "run", {"a": "x"})


@pytest.mark.parametrize("message", ["Expecting value", "no such field"])
def test_an_answer_that_mlflows_client_cannot_read_is_one_line(message: str) -> None:
    def reads() -> None:
        """As a module of MLflow's would."""
        raise AttributeError(message)

    in_mlflow = FunctionType(
        reads.__code__, {"__name__": "mlflow.entities.run"}, closure=reads.__closure__
    )
    wanted = "MLflow's client cannot read, asked to get run"
    with pytest.raises(TrackingError, match=wanted) as at, translated(SERVER, "get run"):
        in_mlflow()
    assert "password" not in str(at.value)
    with pytest.raises(TrackingError, match="not get run"), translated(SERVER, "get run"):
        json_format.Parse('{"a": 1}', Struct(), max_recursion_depth=0)
    # A fault of our own is not the server's.
    with pytest.raises(AttributeError), translated(SERVER, "get run"):
        reads()


def test_a_server_that_leads_back_to_a_page_is_not_followed() -> None:
    from mlflow.store.entities import PagedList

    asked: list[str | None] = []

    def search(page_token: str | None) -> PagedList[int]:
        asked.append(page_token)
        following = {None: "a", "a": "b", "b": "a"}
        return PagedList([len(asked)], following[page_token])

    found = pages(search)
    assert [list(next(found)) for _ in range(3)] == [[1], [2], [3]]
    with pytest.raises(TrackingError, match="gives the same page of its answer again and again"):
        next(found)
    assert asked == [None, "a", "b"]
