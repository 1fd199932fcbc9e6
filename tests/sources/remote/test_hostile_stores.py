"""A store that says what no store says is refused in a line; nothing waits, no disk is filled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fuzz.s3_answers import ENVIRONMENT, storing, write_answers
from support.loopback_server import served

from mergeops.errors import SourceError
from mergeops.sources import resolve_uri
from mergeops.sources.remote.directory import RemoteDirectory
from mergeops.sources.remote.download import fetch
from mergeops.sources.remote.transfer import Object, etag_of
from mergeops.sources.training_runs import open_remote

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama()


@pytest.fixture
def told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files of what a bucket's store answers; the store runs when ``download`` is called."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    write_answers(model, tmp_path / "s3")
    return tmp_path / "s3"


def download(told: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with storing(told, model) as address:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
        return resolve_uri("s3://bucket/m", cache_dir=told.parent / "cache").path


def test_a_store_that_tells_the_truth(
    told: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = download(told, model, monkeypatch)
    assert (here / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def without(headers: dict[str, Any], name: str) -> None:
    del headers["HEAD"]["headers"][name]


def empty(headers: dict[str, Any]) -> None:
    headers["GET"]["bytes"] = [0, 0]
    headers["GET"]["headers"]["Content-Length"] = "0"


def dripping(headers: dict[str, Any]) -> None:
    """It sends a byte an answer: ten thousand requests for a small file."""
    headers["GET"]["headers"]["Content-Length"] = "1"


def doubled(headers: dict[str, Any]) -> None:
    """It says that there is half, and sends all of it."""
    half = int(headers["HEAD"]["headers"]["Content-Length"]) // 2
    headers["HEAD"]["headers"]["Content-Length"] = str(half)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda said: without(said, "ETag"), "without an ETag and a length"),
        (lambda said: without(said, "Content-Length"), "without an ETag and a length"),
        (
            lambda said: said["HEAD"]["headers"].update({"Content-Length": "[1]"}),
            "cannot describe model.safetensors: the store's answer cannot be read (ValueError",
        ),
        (empty, "sends nothing of model.safetensors from byte 0 on"),
        (dripping, "sends only 1 bytes of model.safetensors from byte 2 on"),
        (doubled, "sends more of model.safetensors than was asked for"),
    ],
)
def test_headers(
    told: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None],
    says: str,
) -> None:
    headers = json.loads((told / "headers.json").read_text())
    change(headers[WEIGHTS])
    (told / "headers.json").write_text(json.dumps(headers))
    with pytest.raises(SourceError) as refused:
        download(told, model, monkeypatch)
    assert says in str(refused.value)


def test_an_etag_of_more_parts_than_s3_allows_is_not_computed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(20_000))
    version = Object(f"{'0' * 32}-20000", 20_000, 1, True)
    assert etag_of(file, version) is None


def test_a_server_that_sends_more_than_it_lists_fills_no_disk(tmp_path: Path) -> None:
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if "path=" in self.path or self.path.endswith("/artifacts"):
                files = [{"path": WEIGHTS, "is_dir": False, "file_size": 5}]
                body = json.dumps({"files": files}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(1 << 20))
                sent.append(1)

    with served(Handler) as address:
        place = open_remote("mlflow-artifacts:/m", address)
        assert isinstance(place, RemoteDirectory)
        with pytest.raises(SourceError, match="more than the 5 bytes that the store lists"):
            fetch(place, tmp_path / "cache")
    assert len(sent) < 100
