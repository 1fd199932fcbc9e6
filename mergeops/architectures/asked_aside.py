"""transformers asked in a process beside: it takes seconds to import and 300 MB, which that process
gives back when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from mergeops.architectures.transformers_models import fit_of, original_of, settings_of

_ASK = "from mergeops.architectures.asked_aside import answer; answer()"


def asked(kind: str, question: list[Any]) -> Any:
    """What transformers says, as JSON types; it is asked here where it is imported already.

    Args:
        kind: ``fit``, ``settings`` or ``original``.
        question: the config; for ``fit`` also tensor -> shape.

    Raises:
        ValueError: transformers knows the model, but cannot make it.
    """
    if "transformers" not in sys.modules and (said := _aside(kind, question)) is not None:
        if "error" in said:
            raise ValueError(said["error"])
        return said["answer"]
    return _ask(kind, question)


def answer() -> None:
    """What the other process does: answer a question of the standard input."""
    # What libraries print is no answer.
    out, sys.stdout = sys.stdout, sys.stderr
    kind, question = json.load(sys.stdin)
    try:
        said = {"answer": _ask(kind, question)}
    except ValueError as error:
        said = {"error": str(error)}
    # What a config holds that is no JSON, e.g. a dtype of torch, is compared as a text.
    out.write(json.dumps(said, default=str))
    out.flush()


def _ask(kind: str, question: list[Any]) -> Any:
    if kind == "settings":
        return settings_of(question[0])
    if kind == "original":
        return original_of(question[0])
    config, shapes = question
    fit = fit_of(config, {name: tuple(shape) for name, shape in shapes.items()})
    if fit is None:
        return None
    sets = {"converted": sorted(fit.converted), "vocabulary": sorted(fit.vocabulary)}
    return {**vars(fit), **sets}


def _aside(kind: str, question: list[Any]) -> dict[str, Any] | None:
    """The other process's answer; None where there is none, so that it is asked here, which says
    what is wrong."""
    # It finds the modules that this process finds, and none besides.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", _ASK],
            input=json.dumps([kind, question]).encode(),
            env=environment,
            capture_output=True,
            check=True,
        )
        said: dict[str, Any] = json.loads(process.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return said
