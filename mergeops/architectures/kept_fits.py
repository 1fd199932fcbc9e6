"""What transformers says of a config.json is asked once and kept, so that it is not imported again.

``$XDG_CACHE_HOME/mergeops/architectures/KEY.json`` (``~/.cache`` by default); the key stands for
the config, the tensors' names and shapes, the version of transformers and the code here. Where the
file is missing, damaged or cannot be written, transformers is asked anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.architectures.asked_aside import asked
from mergeops.architectures.model_fit import ModelFit, Shape
from mergeops.checkpoint import keep_text
from mergeops.errors import SourceError
from mergeops.kernels import user_cache


def read_fit(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> ModelFit | None:
    """How a checkpoint's tensors fit the model of its config.json.

    Args:
        config: content of config.json.
        tensors: name on disk -> shape.

    Returns:
        None where transformers does not know the model.

    Raises:
        SourceError: transformers knows the model, but cannot make it of this config.
    """
    shapes = {name: list(shape) for name, shape in sorted(tensors.items())}
    answer = _kept("fit", [dict(config), shapes])
    return None if answer is None else _fit(answer)


def read_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json as transformers reads it: with defaults, and in its own spelling.

    Returns:
        None where transformers does not know the model.

    Raises:
        SourceError: transformers knows the model, but cannot read this config.
    """
    answer: dict[str, Any] | None = _kept("settings", [dict(config)])
    return answer


def tied_setting(config: Mapping[str, Any], value: bool) -> dict[str, Any]:
    """What to change in a config.json so that it ties embeddings and head, or does not, and says
    what it said otherwise: T5 scales its outputs by this setting, unless another one says how."""
    key = "tie_word_embeddings"
    nested = {k: {key: value} for k, v in config.items() if isinstance(v, Mapping) and key in v}
    change: dict[str, Any] = {key: value, **nested}
    new = {k: {**config[k], **v} if isinstance(v, Mapping) else v for k, v in change.items()}
    try:
        before, after = read_settings(config), read_settings({**config, **new})
    except SourceError:
        return change
    if before is None or after is None:
        return change
    kept = {k: v for k, v in before.items() if k in after and after[k] != v and k not in change}
    return {**kept, **change}


def read_original(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Tensor -> shape, as transformers saves the model of a config.json, e.g. experts one by one.

    Returns:
        None where transformers does not know the model.

    Raises:
        SourceError: transformers knows the model, but cannot make it of this config.
    """
    answer = _kept("original", [dict(config)])
    return None if answer is None else {name: tuple(shape) for name, shape in answer.items()}


def _fit(answer: Mapping[str, Any]) -> ModelFit:
    return ModelFit(
        model_class=answer["model_class"],
        parameters={name: tuple(shape) for name, shape in answer["parameters"].items()},
        tied=answer["tied"],
        parts={name: tuple(tensors) for name, tensors in answer["parts"].items()},
        converted=frozenset(answer["converted"]),
        vocabulary=frozenset(answer["vocabulary"]),
        embeddings=answer["embeddings"],
        operations={name: tuple(done) for name, done in answer["operations"].items()},
        layers=answer["layers"],
        missing=tuple(answer["missing"]),
        unexpected=tuple(answer["unexpected"]),
        mismatched={
            name: (tuple(theirs), tuple(ours))
            for name, (theirs, ours) in answer["mismatched"].items()
        },
        doubled=tuple(answer["doubled"]),
        trouble=answer["trouble"],
    )


def _kept(kind: str, question: list[Any]) -> Any:
    return json.loads(_answer(kind, json.dumps(question, sort_keys=True)))


@functools.lru_cache(maxsize=32)
def _answer(kind: str, question: str) -> str:
    """The answer as JSON, from this process, from the disk or from transformers."""
    about = f"{_code()} {version('transformers')} {kind} {question}"
    key = hashlib.sha256(about.encode()).hexdigest()
    place = user_cache("architectures") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.get("key") == key:
            return json.dumps(kept["answer"])
    try:
        answer = asked(kind, json.loads(question))
    except ValueError as error:
        raise SourceError(
            f"transformers {version('transformers')} cannot make the model that config.json "
            f"describes: {error}; correct that in config.json, put the one that was saved with the "
            "weights in its place, or save the model again with the version that wrote it"
        ) from error
    # What a config holds that is no JSON, e.g. a dtype of torch, is compared as a text.
    text = json.dumps({"key": key, "answer": answer}, default=str)
    keep_text(place, text)
    return json.dumps(json.loads(text)["answer"])


@functools.cache
def _code() -> str:
    """Stands for what is asked and how it is written down."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
