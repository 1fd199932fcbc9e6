"""What MLflow refuses or cuts, mapped: keys, values and names.

Limits of MLflow 3: keys 250 characters of ``[\\w /.:-]`` that form a normalised path, parameter
values 6000, run tags 8000; LoggedModel names without ``/ : . % " '``. PostgreSQL, unlike sqlite,
holds run names to 250 characters too, and takes no NUL characters.
Whatever is shortened here is whole in an artifact.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from mergeops.redact import redact

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
VERSION_TAG_LIMIT = 5000
"""What PostgreSQL's column holds of a registered model's or version's tag."""
PREFIX = "mergeops."
"""Of every tag that is ours."""
FACTS = "mergeops.facts"
"""The tag that others are folded into."""


def key(text: str) -> str:
    """A metric, parameter or tag key that MLflow takes, as close to ``text`` as can be."""
    cleaned = re.sub(r"[^/\w.\- :]", "_", text.replace("@", "_at_"))
    parts = [part if part.strip(".") else "_" for part in cleaned.split("/") if part]
    return _short("/".join(parts) or "_", KEY_LIMIT)


def model_name(text: str) -> str:
    """A LoggedModel name: ``ties density=0.5`` becomes ``ties density=0p5``."""
    decimal = re.sub(r"(?<=\d)\.(?=\d)", "p", text)
    named = re.sub(r"[/:.%\"'\x00-\x1f]", "_", _clean(decimal)).strip()
    return _short(named or "model", KEY_LIMIT)


def run_name(text: str) -> str:
    """A run's name as every database takes it."""
    return _short(_clean(text).strip() or "trial", KEY_LIMIT)


def file_name(text: str) -> str:
    """One path component for an artifact or a folder."""
    return _short(re.sub(r"[^\w.\- ]", "_", text).strip(" .") or "_", 120)


def param_value(value: Any) -> str:
    """A parameter's text, cut at MLflow's limit with an ellipsis that says so."""
    return _cut(_text(value), PARAM_LIMIT)


def tag_value(value: Any) -> str:
    """A tag's text, cut at MLflow's limit."""
    return _cut(_text(value), TAG_LIMIT)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: ``{"a": {"b": 1}}`` becomes ``{"a.b": "1"}``.

    Lists stay one value, as JSON; empty ones and nulls are left out.
    """
    flat: dict[str, str] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        elif value is not None and value != []:
            flat[key(path)] = param_value(value)
    return flat


def quoted(text: str) -> str:
    """``text`` as a literal of MLflow's filter language, which has no escapes."""
    return '"' + text + '"' if "'" in text else "'" + text + "'"


def with_tags(**tags: str) -> str:
    """An MLflow filter on mergeops' own tags, for runs, models and versions alike."""
    return " and ".join(f"tags.`mergeops.{name}` = {quoted(value)}" for name, value in tags.items())


def run_filters(role: str, **facts: str) -> tuple[str, str]:
    """MLflow's filters on runs of a role with these facts, hidden and, as versions before 0.2 kept
    them, in the open; MLflow's filters have no OR."""
    names = {f"{PREFIX}{name}": value for name, value in facts.items()}
    both = {hidden(tag): value for tag, value in names.items()}, names
    first, second = (
        " and ".join(f"tags.`{tag}` = {quoted(value)}" for tag, value in spelled.items())
        for spelled in both
    )
    return f"{with_tags(role=role)} and {first}", f"{with_tags(role=role)} and {second}"


def hidden_facts(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts by name as hidden tags, one each, so that runs can be searched by them."""
    return {hidden(f"{PREFIX}{name}"): tag_value(value) for name, value in facts.items()}


def hidden(tag: str) -> str:
    """The tag as it is kept where nobody has to look at it: MLflow's pages show no tag that begins
    with ``mlflow.``, and its search finds them all."""
    return f"mlflow.{tag}"


def folded(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts as one hidden tag, since a model's page lists hidden tags of its versions, too; where
    they are too long for one, a hidden tag for each."""
    text = json.dumps(dict(facts))
    if len(text) <= VERSION_TAG_LIMIT:
        return {hidden(FACTS): text}
    return {hidden(tag): value for tag, value in facts.items()}


def own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of mergeops with those that are hidden or folded under their plain names, beside all
    others.

    Entries of mergeops 0.1 have them in the open; where a tag is both, the hidden one is newer.
    """
    plain = {tag: value for tag, value in tags.items() if not tag.startswith(hidden(PREFIX))}
    own = {
        tag.removeprefix(hidden("")): value
        for tag, value in tags.items()
        if tag.startswith(hidden(PREFIX))
    }
    try:
        facts = dict(json.loads(own.pop(FACTS, "{}")))
    except (ValueError, TypeError):
        # Anybody may edit a tag.
        facts = {}
    return plain | {str(tag): str(value) for tag, value in facts.items()} | own


def spellings(tags: Mapping[str, str], tag: str) -> list[str]:
    """The names under which a tag is there: hidden, in the open, both or neither."""
    return [name for name in (hidden(tag), tag) if name in tags]


def _text(value: Any) -> str:
    value = redact(value)
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _clean(text: str) -> str:
    # Half a surrogate pair has no bytes in UTF-8.
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _short(text: str, limit: int) -> str:
    # The hash keeps two long names that begin alike apart.
    if len(text) <= limit:
        return text
    return text[: limit - 9] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
