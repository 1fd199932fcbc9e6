"""A ready-to-use Hydra recipe of adopted runs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeops.compose import PACKAGE
from mergeops.errors import ConfigError, SourceError
from mergeops.sources.found import Found
from mergeops.sources.groups import group

HEADER = "# Written by `mergeops adopt`"
"""A file that begins so (after the package line) is replaced without asking."""
MAX_NAME = 40

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def write_recipe(
    found: Sequence[Found],
    path: Path,
    *,
    path_map: Mapping[str, str] | None = None,
    force: bool = False,
) -> list[Found]:
    """Write the largest group that can be merged as a recipe; the file appears whole or not at all.

    Args:
        found: what ``discover`` gave; those with a problem are left out.
        path: the YAML file; its directories are made.
        path_map: what the runs were found with; the recipe needs it too.
        force: replace a file that adopt did not write.

    Returns:
        The runs that are its sources.

    Raises:
        ConfigError: the file is there and somebody else's.
        SourceError: nothing can be merged.
    """
    groups = group(found)
    if not groups:
        raise SourceError("no run left a usable checkpoint, so there is nothing to write")
    if path.exists() and not force and not _is_ours(path):
        raise ConfigError(
            f"{path} is there and was not written by mergeops adopt; add --force to replace it, or "
            "choose another file"
        )
    chosen, *others = groups
    members = sorted(chosen.members, key=lambda one: (one.run_name, one.run_id))
    lines = [PACKAGE, f"{HEADER}: {len(members)} run(s) that can be merged with each other."]
    for other in others:
        names = ", ".join(sorted(one.run_name for one in other.members))
        lines += [f"# Left out, since it {other.reason}: {_one_line(names)}"]
    lines += [f"base: {_quote(_base_uri(chosen.base))}", "sources:"]
    for name, one in zip(source_names(members), members, strict=True):
        lines += [f"  # {_comment(one)}", f"  {name}: {{uri: {_quote(one.uri)}}}"]
    if path_map:
        lines += ["path_map:"]
        lines += [f"  {_quote(old)}: {_quote(new)}" for old, new in path_map.items()]
    _write(path, "\n".join(lines) + "\n")
    return members


def source_names(found: Sequence[Found]) -> list[str]:
    """A short, unique and valid source name for each, made from its run's name."""
    names: list[str] = []
    for one in found:
        plain = re.sub(r"[^0-9A-Za-z]+", "_", one.run_name).strip("_")[:MAX_NAME].strip("_").lower()
        if not plain or plain == "base" or plain[0].isdigit():
            plain = f"run_{plain}".strip("_")
        name, n = plain, 2
        while name in names:
            name, n = f"{plain}_{n}", n + 1
        names.append(name)
    return names


def _base_uri(base: str | None) -> str | None:
    if base is None or Path(base).is_dir() or not _HUB_ID.match(base):
        return base
    return f"hf://{base}"


def _comment(one: Found) -> str:
    facts = [one.run_name, one.status]
    if one.step is not None:
        facts.append(f"step {one.step}")
    loss = one.metrics.get("eval_loss", one.metrics.get("eval_loss_last"))
    if loss is not None:
        facts.append(f"eval loss {loss:.4g}")
    if one.kind == "lora":
        facts.append("LoRA")
    return _one_line(", ".join(facts))


def _one_line(text: str) -> str:
    # A line break in a run's name would end the comment.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quote(value: str | None) -> str:
    # A JSON string is a YAML string; "$" would begin an interpolation in Hydra.
    return (
        "null" if value is None else json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")
    )


def _is_ours(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            first, second = file.readline(), file.readline()
    except (OSError, UnicodeDecodeError):
        return False
    return first.rstrip() == PACKAGE and second.startswith(HEADER)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
