"""Mutations of files, each decided by a seed: JSON and YAML by structure, the rest by bytes."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

ELSEWHERE = "/tmp/mergeops-fuzz-elsewhere"
"""A path that nothing may make, and nobody has: a finding must not harm who fuzzes as root."""
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30,
    10**400,
    300_000_000, "", "x", "0", "\ud800", "\0", "../../outside/x", ELSEWHERE, "a" * 5000,
    "${oc.env:HOME}", ":dog: [bold]", "ü\u202e", [], {}, [[]], [None], {"a": None}, {"": {}},
)  # fmt: skip
"""Values that a careless reader falls over."""
WORDS = (
    "null", "-1", "1e999", ".nan", "[]", "{}", "&a [*a]", "*b", "!!python/name:os.system", "<<",
    "'", '"', "${x}", "0x7f", "2024-01-01", "? ", "- ", ": ", "%", "\t", "~", "true", "\0",
    "2024-13-45", "!!int ''", "!!bool x", "!!timestamp x", "!!binary x", "!!float x", "1" * 5000,
    "0x" + "f" * 5000,
)  # fmt: skip


def mutate_file(path: Path, source: random.Random) -> None:
    """Change one file in one to three places."""
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        _mutate_once(path, source)


def _mutate_once(path: Path, source: random.Random) -> None:
    content = path.read_bytes()
    by_structure = source.random() < 0.8
    try:
        if path.suffix == ".safetensors" and by_structure:
            content = _header(content, source)
        elif path.suffix == ".json" and by_structure:
            content = _dump(change(json.loads(content), source))
        elif path.suffix == ".jsonl" and by_structure:
            lines = content.splitlines()
            i = source.randrange(len(lines))
            lines[i] = _dump(change(json.loads(lines[i]), source))
            content = b"\n".join(lines) + b"\n"
        elif path.suffix in (".yaml", ".yml") and by_structure:
            content = _text(content.decode(), source).encode("utf-8", "surrogatepass")
        else:
            content = _bytes(content, source)
    except (ValueError, IndexError, struct.error, RecursionError):
        # What an earlier mutation left has no structure any more.
        content = _bytes(content, source)
    path.write_bytes(content)


def change(value: Any, source: random.Random) -> Any:
    """JSON with one node changed, taken away, doubled, renamed or buried."""
    places: list[tuple[Any, Any]] = []
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting and len(places) < 5000:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    if not places or source.random() < 0.02:
        return source.choice(ODD)
    # Long lists, as of a vocabulary, would hide all other places.
    shallow = [place for place in places if len(place[0]) <= 40] or places
    node, key = source.choice(source.choice((places, shallow)))
    kind = source.randrange(6)
    if kind <= 1:
        node[key] = source.choice(ODD)
    elif kind == 2:
        del node[key]
    elif kind == 3:
        deep: Any = node[key]
        for _ in range(source.choice((1, 3, 80, 3000))):
            deep = [deep] if source.random() < 0.5 else {"a": deep}
        node[key] = deep
    elif kind == 4 and isinstance(node, dict):
        node[str(source.choice(ODD))] = node.pop(key)
    else:
        other, place = source.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    return value


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _dump(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}"


def _header(content: bytes, source: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = source.randrange(10)
    if kind == 0:
        return (
            struct.pack("<Q", source.choice((0, 1, size - 1, size + 1, 2**63, 2**31))) + content[8:]
        )
    if kind == 1:
        return content[: source.randrange(len(content))]
    if kind == 2:
        return content + bytes(source.randrange(1, 64))
    header = _dump(change(json.loads(header), source)) if kind < 8 else _bytes(header, source)
    return struct.pack("<Q", len(header)) + header + data


def _text(text: str, source: random.Random) -> str:
    lines = text.splitlines()
    i, j = source.randrange(len(lines)), source.randrange(len(lines))
    kind = source.randrange(7)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(i, lines[j])
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 3:
        lines[i] = "  " * source.choice((1, 2, 60)) + lines[i]
    elif kind == 4:
        words = re.split(r"(\W+)", lines[i])
        words[source.randrange(len(words))] = source.choice(WORDS)
        lines[i] = "".join(words)
    elif kind == 5:
        begin, _, _ = lines[i].partition(":")
        lines[i] = f"{begin}: {_flow(source)}"
    else:
        depth = source.choice((3, 50, 2000))
        lines[i] = lines[i].partition(":")[0] + ": " + "[" * depth + "]" * depth
    return "\n".join(lines) + "\n"


def _flow(source: random.Random) -> str:
    try:
        return json.dumps(source.choice(ODD))
    except ValueError:
        return "x"


def _bytes(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    i = source.randrange(len(changed))
    kind = source.randrange(6)
    if kind <= 1:
        changed[i] = source.randrange(256)
    elif kind == 2:
        del changed[i : i + source.randrange(1, 9)]
    elif kind == 3:
        changed[i:i] = source.randbytes(source.randrange(1, 9))
    elif kind == 4:
        del changed[i:]
    else:
        changed[i:i] = changed[i : i + source.randrange(1, 200)]
    return bytes(changed)
