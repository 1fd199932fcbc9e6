"""One file from an artifact store to this machine, going on where an earlier try ended.

s3://...             ranges of the object, several at a time, as long as its ETag is the same
mlflow-artifacts:    one stream from the server, by range where the server allows that
any other            as MLflow does it, from the beginning
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.errors import SourceError
from mergeops.sources.remote.directory import RemoteDirectory
from mergeops.store import is_http, is_s3

PART_BYTES = 1 << 23
PARTS = 8
"""Ranges of an object under way at a time."""
CHUNK = 1 << 20
RANGE_CHUNK = 1 << 16
"""What a cut-off answer loses at most."""
TRIES = 3
"""Of the rest of a range, in a row, that bring neither it nor a chunk."""
MOST_PARTS = 10_000
"""Of an upload, as S3 allows."""
POLL_S = 0.25

Tick = Callable[[int], None]
"""Called with the bytes of this file that are here."""


class UnwritableError(SourceError):
    """The file cannot be written here; the store is not to blame."""


@dataclass(frozen=True)
class Object:
    """An object of an S3 store."""

    etag: str
    size: int
    part_bytes: int
    """Of the upload that made it, where it had several parts; else 0."""
    has_md5: bool
    """Whether the ETag is made of MD5 sums, as it is without a key of the customer's."""


def objects(directory: RemoteDirectory, names: Sequence[str]) -> dict[str, Object]:
    """The versions of files, where the store is S3; empty for other stores.

    Raises:
        SourceError: the store does not answer.
    """
    if not is_s3(directory.repository):
        return {}
    versions = {}
    for name in names:
        with directory.store_errors(f"describe {name}"):
            client, where = _s3(directory, name)
            head = client.head_object(**where)
            etag = str(head.get("ETag", "")).strip('"')
            part_bytes = 0
            if "-" in etag:
                part_bytes = client.head_object(**where, PartNumber=1).get("ContentLength", 0)
            has_md5 = head.get("ServerSideEncryption", "AES256") == "AES256"
            size = head.get("ContentLength", -1)
            if not etag or size < 0:
                raise SourceError(
                    f"{directory.shown} describes {name} without an ETag and a length, which every "
                    "S3 store sends; check the address of the store"
                )
            versions[name] = Object(etag, size, part_bytes, has_md5)
    return versions


def bring(
    directory: RemoteDirectory,
    name: str,
    target: Path,
    tick: Tick,
    version: Object | None = None,
    *,
    size: int = 0,
) -> None:
    """Copy one file; what an earlier try left beside ``target`` is gone on with.

    Args:
        directory: the directory at the store.
        name: the file.
        target: where to; it is there when it is whole.
        tick: told how far it is.
        version: from ``objects``, the only one that will do.
        size: bytes that the store lists, no more of which are kept; 0 where it does not say.

    Raises:
        SourceError: the store does not deliver it, it changes meanwhile, or it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    before = -1
    while True:
        here = part.stat().st_size if part.exists() else 0
        try:
            with directory.store_errors(f"deliver {name}"):
                if version is not None:
                    _append(part, here, _ranges(directory, name, version, here), tick)
                elif is_http(directory.repository):
                    _stream(directory, name, part, here, tick, size)
                else:
                    return _whole(directory, name, target, tick)
            return os.replace(part, target)
        except UnwritableError:
            raise
        except SourceError:
            # A lost connection is taken up again as long as each try brings something.
            arrived = part.stat().st_size if part.exists() else 0
            if arrived <= max(here, before) or _is_changed(directory, name, version):
                raise
            before = arrived


def check(directory: RemoteDirectory, name: str, file: Path, version: Object | None) -> None:
    """Compare a file that arrived with the MD5 sums that S3 keeps as its ETag.

    Raises:
        SourceError: it differs.
    """
    if version is None or not version.has_md5:
        return
    etag = etag_of(file, version)
    if etag is not None and etag != version.etag:
        file.unlink()
        raise SourceError(
            f"{directory.shown}/{name} arrived with other bytes than the store holds (ETag "
            f"{version.etag}, here {etag}); run the command again"
        )


def etag_of(file: Path, version: Object) -> str | None:
    """The ETag that S3 gives these bytes; None where its form is not known."""
    plain = re.fullmatch(r"[0-9a-f]{32}(-\d+)?", version.etag)
    if plain is None:
        return None
    if plain.group(1) is None:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "md5").hexdigest()
    step = version.part_bytes
    count = int(plain.group(1)[1:])
    if step < 1 or count > MOST_PARTS or -(-version.size // step) != count:
        return None
    sums = []
    with open(file, "rb") as content:
        while data := content.read(step):
            sums.append(hashlib.md5(data).digest())
    return f"{hashlib.md5(b''.join(sums)).hexdigest()}-{len(sums)}"


def _s3(directory: RemoteDirectory, name: str) -> tuple[Any, dict[str, str]]:
    """A client and which object it is."""
    repository: Any = directory.repository
    bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
    key = "/".join(part for part in (root, directory.folder, name) if part)
    return repository._get_s3_client(), {"Bucket": bucket, "Key": key}


def _is_changed(directory: RemoteDirectory, name: str, version: Object | None) -> bool:
    return version is not None and objects(directory, [name])[name].etag != version.etag


def _ranges(
    directory: RemoteDirectory, name: str, version: Object, start: int
) -> Iterator[bytes | bytearray]:
    """The bytes from ``start`` on, in order, while later ones are under way."""
    from botocore.exceptions import BotoCoreError

    client, where = _s3(directory, name)

    def get(begin: int) -> bytearray:
        # The client takes up what fails before an answer; an answer that is cut off is ours.
        end = min(begin + PART_BYTES, version.size)
        data = bytearray()
        in_vain = 0
        while (here := begin + len(data)) < end:
            answer = client.get_object(
                **where, Range=f"bytes={here}-{end - 1}", IfMatch=version.etag
            )
            lost = None
            try:
                for chunk in answer["Body"].iter_chunks(RANGE_CHUNK):
                    data += chunk
                    if begin + len(data) > end:
                        raise SourceError(
                            f"{directory.shown} sends more of {name} than was asked for, from byte "
                            f"{begin} on; check the address of the store"
                        )
            except BotoCoreError as error:
                lost = error
            came = begin + len(data) - here
            # A store that sends a byte a time would never end.
            in_vain = 0 if came >= min(RANGE_CHUNK, end - here) else in_vain + 1
            if in_vain == TRIES:
                raise lost or SourceError(
                    f"{directory.shown} sends {f'only {came} bytes' if came else 'nothing'} of "
                    f"{name} from byte {here} on"
                )
        return data

    starts = iter(range(start, version.size, PART_BYTES))
    waiting: deque[Future[bytearray]] = deque()
    with ThreadPoolExecutor(PARTS, thread_name_prefix="s3") as pool:
        try:
            for begin in starts:
                waiting.append(pool.submit(get, begin))
                if len(waiting) == PARTS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _stream(
    directory: RemoteDirectory, name: str, part: Path, here: int, tick: Tick, size: int
) -> None:
    from mlflow.utils import rest_utils

    untyped: Any = rest_utils
    repository: Any = directory.repository
    known = part.with_name(f"{part.name}.etag")
    headers = {}
    if here and known.exists():
        headers = {"Range": f"bytes={here}-", "If-Range": known.read_text(encoding="utf-8")}
    path = "/".join(["", *([directory.folder] if directory.folder else []), name])
    get = untyped.http_request
    with get(repository._host_creds, path, "GET", stream=True, extra_headers=headers) as answer:
        goes_on = f"bytes {here}-"
        said = answer.headers.get("Content-Range", "")
        if answer.status_code == 206 and said.startswith(goes_on):
            start = here
        elif answer.status_code == 416:
            # Everything was here already, or what is here is of another file.
            part.unlink()
            raise SourceError(f"{directory.shown} cannot deliver {name} from byte {here} on")
        else:
            untyped.augmented_raise_for_status(answer)
            start = 0
            etag = answer.headers.get("ETag", "")
            # If-Range takes a strong validator only.
            if etag and not etag.startswith("W/"):
                known.write_text(etag, encoding="utf-8")
            else:
                known.unlink(missing_ok=True)
        arriving = answer.iter_content(CHUNK)
        if size:
            arriving = _no_more(arriving, start, size, f"{directory.shown}/{name}")
        _append(part, start, arriving, tick)
    known.unlink(missing_ok=True)


def _no_more(chunks: Iterator[bytes], start: int, size: int, what: str) -> Iterator[bytes]:
    """The chunks, as long as they are no more than what the store lists."""
    for chunk in chunks:
        start += len(chunk)
        if start > size:
            raise SourceError(
                f"{what} arrives with more than the {size} bytes that the store lists"
            )
        yield chunk


def _whole(directory: RemoteDirectory, name: str, target: Path, tick: Tick) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="whole-") as folder:
        with _watched(Path(folder), tick):
            arrived = directory.download(name, Path(folder))
        os.replace(arrived, target)
    tick(target.stat().st_size)


def _append(part: Path, start: int, chunks: Iterator[bytes | bytearray], tick: Tick) -> None:
    try:
        file = open(part, "r+b" if part.exists() else "wb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _unwritable(part, error) from error
    with file:
        file.truncate(start)
        file.seek(start)
        for chunk in chunks:
            view = memoryview(chunk)
            try:
                while view:
                    view = view[file.write(view) :]
            except OSError as error:
                raise _unwritable(part, error) from error
            tick(file.tell())


def _unwritable(part: Path, error: OSError) -> UnwritableError:
    return UnwritableError(
        f"{part} cannot be written: {error.strerror or error}; what has arrived is kept, and the "
        "same command goes on from there"
    )


@contextmanager
def _watched(folder: Path, tick: Tick) -> Iterator[None]:
    # MLflow tells nothing while a file arrives; its size on disk does.
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            here = 0
            for file in folder.rglob("*"):
                try:
                    here += file.stat().st_size if file.is_file() else 0
                except OSError:
                    continue
            tick(here)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
