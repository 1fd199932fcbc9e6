"""A bucket's answers as files, and a server that sends them."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.loopback_server import served

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "s3-key",
    "AWS_SECRET_ACCESS_KEY": "s3-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # A refusal that is worth another try takes the client seconds.
    "AWS_MAX_ATTEMPTS": "1",
}
"""What a client needs beside the address."""
_ENTRY = """<Contents>
<Key>m/{name}</Key>
<LastModified>2026-01-01T00:00:00.000Z</LastModified>
<ETag>&quot;{etag}&quot;</ETag>
<Size>{size}</Size>
</Contents>
"""
_LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Name>bucket</Name>
<Prefix>m/</Prefix>
<KeyCount>{count}</KeyCount>
<MaxKeys>1000</MaxKeys>
<Delimiter>/</Delimiter>
<IsTruncated>false</IsTruncated>
{entries}<CommonPrefixes>
<Prefix>m/inside/</Prefix>
</CommonPrefixes>
</ListBucketResult>
"""


def write_answers(model: Path, folder: Path) -> None:
    """What a store says of a bucket with a model's config and weights below m/."""
    headers, entries = {}, ""
    names = ("config.json", "model.safetensors")
    for name in names:
        content = (model / name).read_bytes()
        etag, size = hashlib.md5(content).hexdigest(), len(content)
        entries += _ENTRY.format(name=name, etag=etag, size=size)
        said = {"ETag": f'"{etag}"', "Content-Length": str(size), "Accept-Ranges": "bytes"}
        said["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        part = {**said, "Content-Range": f"bytes 0-{size - 1}/{size}"}
        headers[name] = {
            "HEAD": {"status": 200, "headers": said},
            "GET": {"status": 206, "headers": part, "bytes": [0, size]},
        }
    folder.mkdir()
    (folder / "list.xml").write_text(_LISTING.format(count=len(names), entries=entries))
    (folder / "headers.json").write_text(json.dumps(headers))


def storing(answers: Path, model: Path) -> AbstractContextManager[str]:
    """A store that answers with what the files say, whatever is asked."""
    try:
        told = json.loads((answers / "headers.json").read_text())
    except (ValueError, RecursionError):
        told = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if "list-type" in query:
                body = (answers / "list.xml").read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
            else:
                said = _at(told, path.rsplit("/", 1)[-1], self.command)
                status, named = _at(said, "status"), _at(said, "headers")
                known = isinstance(status, int) and 100 <= status < 1000
                self.send_response(status if known else 404)
                for name, value in named.items() if isinstance(named, dict) else ():
                    self.send_header(*(_plain(x) for x in (name, value)))
                content = (model / path.rsplit("/", 1)[-1]).read_bytes() if said else b""
                body = content[_slice(_at(said, "bytes"))]
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    return served(Handler)


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _plain(value: Any) -> str:
    return str(value).encode("latin-1", "replace").decode("latin-1")


def _slice(bounds: Any) -> slice:
    fits = isinstance(bounds, list) and len(bounds) == 2 and all(type(x) is int for x in bounds)
    return slice(*bounds) if fits else slice(None)
