"""Downloads that are killed half way go on from there: from S3, and from an MLflow server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from support.mlflow_server import Server
from support.s3_server import S3

from mergeops.checkpoint import weights_sha256
from mergeops.errors import SourceError
from mergeops.sources.remote import transfer
from mergeops.sources.remote.directory import RemoteDirectory
from mergeops.sources.remote.download import fetch
from mergeops.sources.remote.transfer import Object, bring, etag_of, objects
from mergeops.sources.training_runs import open_remote

pytestmark = pytest.mark.integration

SIZE = 40 << 20


class Between:
    """A proxy that counts the bytes of the bodies that it passes on, and may cut them."""

    def __init__(self, target: str) -> None:
        self.passed = 0
        self.cut_after: int | None = None
        """Bytes of large answers after which connections are closed, as often as ``cuts`` says."""
        self.cuts = 1
        self.slow = False
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass("GET")

            def do_HEAD(self) -> None:
                self._pass("HEAD")

            def do_POST(self) -> None:
                self._pass("POST")

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

            def _pass(self, method: str) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length) if length else None
                kept = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                asked = Request(target + self.path, body, kept, method=method)
                try:
                    answer = urlopen(asked)
                except OSError as error:
                    answer = error
                with answer:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        if name.lower() not in ("connection", "transfer-encoding"):
                            self.send_header(name, value)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.close_connection = True
                    while method != "HEAD" and (data := answer.read(1 << 16)):
                        between.passed += len(data)
                        over = between.cut_after is not None and between.passed > between.cut_after
                        if over and between.cuts > 0:
                            between.cuts -= 1
                            return
                        self.wfile.write(data)
                        if between.slow:
                            time.sleep(0.01)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def weights() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    running = S3()
    running.start()
    running.client.create_bucket(Bucket="models")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def mlflow_server(
    template_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), template_database)
    running.start()
    yield running
    running.stop()


def open_s3(
    s3: S3, between: Between, name: str, monkeypatch: pytest.MonkeyPatch
) -> RemoteDirectory:
    for key, value in (s3.environment | {"MLFLOW_S3_ENDPOINT_URL": between.uri}).items():
        monkeypatch.setenv(key, value)
    return open_remote(f"s3://models/{name}")


@pytest.fixture(params=["s3", "mlflow"])
def far(
    request: Any,
    s3: S3,
    mlflow_server: Server,
    weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[RemoteDirectory, Between]]:
    """A directory at a store behind a proxy: 40 MiB of weights and a config."""
    folder = tmp_path.name
    if request.param == "s3":
        between = Between(s3.endpoint)
        client = s3.client
        client.put_object(Bucket="models", Key=f"{folder}/model.safetensors", Body=weights)
        client.put_object(Bucket="models", Key=f"{folder}/config.json", Body=b"{}")
        place = open_s3(s3, between, folder, monkeypatch)
    else:
        between = Between(mlflow_server.uri)
        there = mlflow_server.folder / "artifacts" / folder
        there.mkdir(parents=True)
        (there / "model.safetensors").write_bytes(weights)
        (there / "config.json").write_text("{}")
        place = open_remote(f"mlflow-artifacts:/{folder}", between.uri)
    yield place, between
    between.close()


FETCH = """
import sys
from pathlib import Path
from mergeops.sources.remote.download import fetch
from mergeops.sources.training_runs import open_remote
place = open_remote(sys.argv[1], sys.argv[2])
fetch(place, Path(sys.argv[3]), lambda what, done, total: print(done, total, flush=True))
"""


def test_a_download_that_is_killed_goes_on_where_it_was(
    far: tuple[RemoteDirectory, Between], weights: bytes, tmp_path: Path
) -> None:
    place, between = far
    between.slow = True
    command = [sys.executable, "-c", FETCH, place.uri, between.uri, str(tmp_path / "cache")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout
    for line in running.stdout:
        done, total = map(int, line.split())
        if done > total // 3:
            os.kill(running.pid, signal.SIGKILL)
            break
    assert running.wait() == -signal.SIGKILL
    assert total == SIZE + 2
    between.slow = False
    (part,) = (tmp_path / "cache/downloads").glob("*.parts/model.safetensors.part")
    here = part.stat().st_size
    assert here >= SIZE // 3
    time.sleep(0.5)
    between.passed = 0
    ticks: list[int] = []
    there = fetch(place, tmp_path / "cache", lambda what, done, total: ticks.append(done))
    assert (there / "model.safetensors").read_bytes() == weights
    # What was here is not fetched again; answers of a few hundred bytes list and describe.
    assert between.passed < SIZE - here + 10_000
    assert ticks == sorted(ticks)
    # The config of two bytes was here, too.
    assert next(done for done in ticks if done > 2) > here
    assert ticks[-1] == SIZE + 2


@pytest.mark.parametrize("after", [3 << 20, SIZE // 2])
def test_a_connection_that_is_lost_is_taken_up_again(
    far: tuple[RemoteDirectory, Between], weights: bytes, tmp_path: Path, after: int
) -> None:
    """In the first range of S3's too, when nothing has been written yet."""
    place, between = far
    between.cut_after = after
    there = fetch(place, tmp_path / "cache")
    assert (there / "model.safetensors").read_bytes() == weights


def test_a_store_that_brings_nothing_any_more_is_an_error_and_what_is_here_is_kept(
    far: tuple[RemoteDirectory, Between], weights: bytes, tmp_path: Path
) -> None:
    place, between = far
    between.cut_after = SIZE // 2
    between.cuts = 1_000_000
    with pytest.raises(SourceError, match=r"cannot deliver model\.safetensors: "):
        fetch(place, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    between.cuts = 0
    there = fetch(place, tmp_path / "cache")
    assert (there / "model.safetensors").read_bytes() == weights


def test_another_file_of_the_same_size_is_not_gone_on_with(
    far: tuple[RemoteDirectory, Between],
    s3: S3,
    mlflow_server: Server,
    weights: bytes,
    tmp_path: Path,
) -> None:
    """Half of the old and half of the new would be a checkpoint that nobody trained."""
    place, _ = far

    def interrupt(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(place, tmp_path / "cache", interrupt)
    other = weights[::-1]
    if place.uri.startswith("s3"):
        key = f"{tmp_path.name}/model.safetensors"
        s3.client.put_object(Bucket="models", Key=key, Body=other)
    else:
        file = mlflow_server.folder / "artifacts" / tmp_path.name / "model.safetensors"
        file.write_bytes(other)
        os.utime(file, (1, 1))
    there = fetch(place, tmp_path / "cache")
    assert (there / "model.safetensors").read_bytes() == other


def test_an_object_that_changes_while_it_is_fetched_is_refused(
    s3: S3, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = Between(s3.endpoint)
    place = open_s3(s3, between, tmp_path.name, monkeypatch)
    key = {"Bucket": "models", "Key": f"{tmp_path.name}/model.safetensors"}
    s3.client.put_object(**key, Body=weights)
    monkeypatch.setattr(transfer, "PARTS", 1)
    changed = False

    def change(what: str, done: int, total: int) -> None:
        nonlocal changed
        if not changed:
            changed = True
            s3.client.put_object(**key, Body=weights[::-1])

    with pytest.raises(SourceError, match="cannot deliver model.safetensors: .*PreconditionFailed"):
        fetch(place, tmp_path / "cache", change)
    assert not list((tmp_path / "cache/downloads").glob("*/mergeops-download.json"))
    between.close()


def test_etags_of_s3_are_those_of_the_bytes(
    s3: S3, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part, and the parts of boto3's multipart upload."""
    between = Between(s3.endpoint)
    place = open_s3(s3, between, tmp_path.name, monkeypatch)
    (tmp_path / "file").write_bytes(weights)
    s3.client.put_object(Bucket="models", Key=f"{tmp_path.name}/plain", Body=weights)
    s3.client.upload_file(str(tmp_path / "file"), "models", f"{tmp_path.name}/parts")
    found = objects(place, ["plain", "parts"])
    assert found["parts"].etag.endswith("-5")
    for version in found.values():
        assert etag_of(tmp_path / "file", version) == version.etag
    (tmp_path / "file").write_bytes(weights[:-1] + b"x")
    for version in found.values():
        assert etag_of(tmp_path / "file", version) != version.etag
    assert etag_of(tmp_path / "file", Object("of another kind", SIZE, 0, True)) is None
    between.close()


def test_bytes_that_differ_from_the_etag_are_refused_and_fetched_again(
    s3: S3, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that lies on this disk and was damaged there."""
    between = Between(s3.endpoint)
    place = open_s3(s3, between, tmp_path.name, monkeypatch)
    s3.client.put_object(Bucket="models", Key=f"{tmp_path.name}/model.safetensors", Body=weights)

    def interrupt(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(place, tmp_path / "cache", interrupt)
    (part,) = (tmp_path / "cache/downloads").glob("*.parts/model.safetensors.part")
    with open(part, "r+b") as file:
        file.write(b"damaged")
    with pytest.raises(SourceError, match="arrived with other bytes than the store holds"):
        fetch(place, tmp_path / "cache")
    assert (fetch(place, tmp_path / "cache") / "model.safetensors").read_bytes() == weights
    between.close()


def test_a_cache_that_cannot_be_written_is_not_the_stores_fault(
    s3: S3, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = Between(s3.endpoint)
    place = open_s3(s3, between, tmp_path.name, monkeypatch)
    s3.client.put_object(Bucket="models", Key=f"{tmp_path.name}/model.safetensors", Body=weights)
    version = objects(place, ["model.safetensors"])["model.safetensors"]
    target = tmp_path / "nowhere" / "model.safetensors"
    match = "model.safetensors.part cannot be written: No such file or directory; what has arrived"
    with pytest.raises(SourceError, match=match):
        bring(place, "model.safetensors", target, lambda done: None, version)
    between.close()


def test_a_merge_of_sources_in_s3_from_the_command_line(
    s3: S3,
    tiny_llama: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    base = tiny_llama()
    recipe: dict[str, Any] = {"method": {"name": "linear"}, "sources": {}}
    for seed, name in enumerate("ab", 1):
        folder = tiny_llama(like=base, seed=seed)
        for file in folder.iterdir():
            s3.client.upload_file(str(file), "models", f"{tmp_path.name}/{name}/{file.name}")
        recipe["sources"][name] = {"uri": f"s3://models/{tmp_path.name}/{name}"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["merge", "recipe.yaml", "out", "output.cache_limit=1GB", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mergeops", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == "out"
    source = json.loads((tmp_path / "out/mergeops.json").read_text())["sources"][0]
    assert source["sha256"] == weights_sha256(tiny_llama(like=base, seed=1))
    for file in (tmp_path / "out").iterdir():
        s3.client.upload_file(str(file), "models", f"{tmp_path.name}/out/{file.name}")
    s3.client.delete_object(Bucket="models", Key=f"{tmp_path.name}/out/generation_config.json")
    checked = subprocess.run(
        [sys.executable, "-m", "mergeops", "verify", f"s3://models/{tmp_path.name}/out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (4, "generation_config.json is missing\n")
