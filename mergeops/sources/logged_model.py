"""MLmodel: what MLflow says that a LoggedModel's folders are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.errors import SourceError
from mergeops.schema import read_yaml
from mergeops.sources.contents import Location, examine
from mergeops.sources.remote.directory import Directory, parts_of

MLMODEL = "MLmodel"

# Flavours whose weights are pickled, or not in a form that transformers writes.
_FOREIGN = ("pytorch", "keras", "tensorflow", "onnx", "sklearn")
SENTENCE_MODEL = "model.sentence_transformer"
"""Where MLflow's sentence_transformers flavour keeps what SentenceTransformer.save wrote."""


@dataclass(frozen=True)
class LoggedModelFiles:
    """The checkpoints in a LoggedModel's files."""

    locations: tuple[Location, ...] = ()
    problem: str | None = None
    """Why it holds none, where MLmodel says so."""


def read_logged_model(directory: Directory) -> LoggedModelFiles:
    """What MLmodel says of a directory that holds one: the adapter of a PEFT model, and not the
    wrapped base beside it; else the model; else that of sentence-transformers; else the directories
    that a pyfunc model packs.

    Raises:
        SourceError: MLmodel is no YAML mapping, or a path in it leaves its directory.
    """
    flavours = _flavours(directory)
    transformers = flavours.get("transformers")
    if isinstance(transformers, Mapping):
        return _transformers(directory, transformers)
    packed = _packed(flavours.get("python_function"))
    if "sentence_transformers" in flavours:
        packed.append(SENTENCE_MODEL)
    locations = [Location.at(directory.inside(path)) for path in packed]
    whole = tuple(location for location in locations if location.contents.usable is not None)
    if whole:
        return LoggedModelFiles(whole)
    if locations and (problem := locations[0].contents.problem):
        return LoggedModelFiles(problem=problem)
    foreign = [name for name in _FOREIGN if name in flavours]
    if foreign:
        held = ", ".join(entry.name for entry in directory.entries())
        return LoggedModelFiles(
            problem=f"{directory.shown} holds no checkpoint: it is a model of MLflow's "
            f"{foreign[0]} flavour, and it has {held}; save the model with "
            "save_pretrained and log that directory"
        )
    return LoggedModelFiles()


def _transformers(directory: Directory, flavour: Mapping[str, Any]) -> LoggedModelFiles:
    named = flavour.get("components")
    names = [name for name in (named if isinstance(named, list) else []) if isinstance(name, str)]
    if "processor_type" in flavour:
        names.append("processor")  # which MLflow does not count among the components
    components = tuple(directory.inside(f"components/{name}") for name in names)
    base = _text(flavour, "local_base_model_path") or _text(flavour, "source_model_name")
    revision = _text(flavour, "source_model_revision")
    adapter, model = _text(flavour, "peft_adaptor"), _text(flavour, "model_binary")
    if model is None and revision is None and "local_base_model_path" not in flavour:
        model = "pipeline"  # as MLflow before 2.4.1 called it, without saying so
    if adapter is None and model is None:
        at = f"@{revision}" if revision else ""
        return LoggedModelFiles(
            problem=f"{directory.shown} holds no weights: MLflow noted {base}{at} in their place "
            "(save_pretrained=False), and a model that was trained further is lost; use another "
            f"checkpoint, or hf://{base}{at} where it was not trained"
        )
    inner = directory.inside(adapter or str(model))
    contents = examine(inner)
    if contents.kind is None:
        return LoggedModelFiles(problem=contents.problem)
    return LoggedModelFiles(
        (
            Location(
                inner,
                contents,
                companions=components,
                base=base if adapter else None,
                base_revision=revision if adapter else None,
            ),
        )
    )


def _packed(pyfunc: Any) -> list[str]:
    """The directories that a pyfunc model packs, as the HF Trainer's checkpoints are."""
    artifacts = pyfunc.get("artifacts") if isinstance(pyfunc, Mapping) else None
    if not isinstance(artifacts, Mapping):
        return []
    facts = [fact for fact in artifacts.values() if isinstance(fact, Mapping)]
    return ["/".join(parts_of(path)) for fact in facts if (path := _text(fact, "path"))]


def _flavours(directory: Directory) -> Mapping[str, Any]:
    raw = directory.read(MLMODEL) or b""
    try:
        content = read_yaml(raw)
    except ValueError as error:
        raise SourceError(f"{directory.shown}/{MLMODEL} is not YAML: {error}") from error
    flavours = content.get("flavors") if isinstance(content, Mapping) else None
    if not isinstance(flavours, Mapping):
        raise SourceError(
            f"{directory.shown}/{MLMODEL} names no flavors, so nobody can say what the model's "
            "folders are; name one of them"
        )
    return flavours


def _text(content: Mapping[str, Any], key: str) -> str | None:
    value = content.get(key)
    return value if isinstance(value, str) and value else None
