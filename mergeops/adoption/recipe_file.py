"""A ready-to-use Hydra recipe of adopted runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeops.adoption.found import FoundRun
from mergeops.adoption.groups import group
from mergeops.adoption.repetitions import without_repetitions
from mergeops.checkpoint import replace_with
from mergeops.errors import ConfigError, SourceError
from mergeops.recipe import PACKAGE
from mergeops.sources import is_hub_name

HEADER = "# Written by `mergeops adopt`"
"""A file that begins so (after the package line) is replaced without asking."""
MAX_NAME = 40


def write_recipe(
    runs: Sequence[FoundRun],
    path: Path,
    *,
    path_map: Mapping[str, str] | None = None,
    force: bool = False,
) -> list[FoundRun]:
    """Write the largest group that can be merged as a recipe; the file appears whole or not at all.

    Args:
        runs: what ``adopt`` found; those with a problem are left out.
        path: the YAML file; its directories are made.
        path_map: what the runs were found with; the recipe needs it too.
        force: replace a file that adopt did not write.

    Returns:
        The runs that are its sources.

    Raises:
        ConfigError: the file is there and somebody else's.
        SourceError: nothing can be merged.
    """
    groups = group(runs)
    if not groups:
        raise SourceError("no run left a usable checkpoint, so there is nothing to write")
    _check_free(path, force)
    chosen, *others = groups
    in_order = sorted(chosen.members, key=lambda run: (run.run_name, run.run_id))
    members, repeated = without_repetitions(in_order)
    lines = [PACKAGE, f"{HEADER}: {len(members)} run(s) that can be merged with each other."]
    for other in others:
        names = ", ".join(sorted(run.run_name for run in other.members))
        lines += [f"# Left out, since it {other.reason}: {_one_line(names)}"]
    for run, first in repeated:
        words = f"has the very weights of {first.run_name}: {run.run_name}"
        lines += [f"# Left out, since it {_one_line(words)}"]
    base = _base_uri(chosen.base)
    lines += [f"base: {_quote(base)}", "sources:"]
    for name, run in zip(source_names(members), members, strict=True):
        # An adapter that calls its base otherwise is told which one it is.
        is_told = base is not None and run.adapter_base not in (None, base, chosen.base)
        is_told = is_told or "@" in str(run.adapter_base)
        told = f", base: {_quote(base)}" if is_told else ""
        lines += [f"  # {_comment(run)}", f"  {name}: {{uri: {_quote(run.uri)}{told}}}"]
    lines += _path_map_lines(path_map)
    _write(path, "\n".join(lines) + "\n")
    return members


def write_window(
    runs: Sequence[FoundRun],
    run: str,
    path: Path,
    *,
    path_map: Mapping[str, str] | None = None,
    force: bool = False,
) -> FoundRun:
    """Write a recipe whose sources are the kept checkpoints of one run, oldest first.

    Args:
        runs: what ``adopt`` found.
        run: name or id of the run.
        path: the YAML file; its directories are made.
        path_map: what the runs were found with; the recipe needs it too.
        force: replace a file that adopt did not write.

    Returns:
        The run.

    Raises:
        ConfigError: no such run, several of that name, or the file is there and somebody else's.
        SourceError: the run has no two checkpoints.
    """
    found = [each for each in runs if run in (each.run_id, each.run_name)]
    if len(found) != 1:
        names = ", ".join(sorted({each.run_name for each in runs}))
        what = f"{len(found)} runs have that name; give its id" if found else f"there are: {names}"
        raise ConfigError(f"--all-checkpoints is {run!r}, but {what}")
    [chosen] = found
    if len(chosen.checkpoints) < 2:
        why = chosen.problem or f"it kept {len(chosen.checkpoints)} with a name of its own"
        raise SourceError(f"run {chosen.run_name} has no two checkpoints to average: {why}")
    _check_free(path, force)
    base = _base_uri(chosen.base)
    lines = [
        PACKAGE,
        f"{HEADER}: {len(chosen.checkpoints)} checkpoints of {_one_line(chosen.run_name)}, oldest "
        "first, for strategy=windows.",
        f"base: {_quote(base)}",
        "sources:",
    ]
    for name in reversed(chosen.checkpoints):
        plain = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_").lower()
        lines.append(f"  {plain}: {{uri: {_quote(f'runs:/{chosen.run_id}/{name}')}}}")
    lines += _path_map_lines(path_map)
    _write(path, "\n".join(lines) + "\n")
    return chosen


def source_names(runs: Sequence[FoundRun]) -> list[str]:
    """A short, unique and valid source name for each, made from its run's name."""
    names: list[str] = []
    for run in runs:
        plain = re.sub(r"[^0-9A-Za-z]+", "_", run.run_name).strip("_")[:MAX_NAME].strip("_").lower()
        if not plain or plain == "base" or plain[0].isdigit():
            plain = f"run_{plain}".strip("_")
        name, n = plain, 2
        while name in names:
            name, n = f"{plain}_{n}", n + 1
        names.append(name)
    return names


def _path_map_lines(path_map: Mapping[str, str] | None) -> list[str]:
    moved = [f"  {_quote(old)}: {_quote(new)}" for old, new in (path_map or {}).items()]
    return ["path_map:", *moved] if moved else []


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force and not _is_ours(path):
        raise ConfigError(
            f"{path} is there and was not written by mergeops adopt; add --force to replace it, or "
            "choose another file"
        )


def _base_uri(base: str | None) -> str | None:
    if base is None or Path(base).is_absolute() or not is_hub_name(base):
        return base
    return f"hf://{base}"


def _comment(run: FoundRun) -> str:
    facts = [run.run_name, run.status]
    if run.step is not None:
        facts.append(f"step {run.step}")
    loss = run.metrics.get("eval_loss", run.metrics.get("eval_loss_last"))
    if loss is not None:
        facts.append(f"eval loss {loss:.4g}")
    if run.not_finite:
        facts.append(f"diverged: {' and '.join(run.not_finite)} is no number")
    if run.kind != "full":
        facts.append("LoRA" if run.kind == "lora" else f"{run.kind} adapter")
    if run.sharded:
        facts.append(f"in pieces: {run.sharded}")
    return _one_line(", ".join(facts))


def _one_line(text: str) -> str:
    # A line break in a run's name would end the comment.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _quote(value: str | None) -> str:
    # A JSON string is a YAML string; "$" would begin an interpolation in Hydra.
    if value is None:
        return "null"
    return json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")


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
        with replace_with(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o644)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
