"""The last check of a plan: the result is the model that its config.json makes, and all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergeops.architectures import ModelFit
from mergeops.errors import MergeError
from mergeops.planning.architecture import layer_of

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def check_result(
    fit: ModelFit | None,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    label: str,
) -> list[str]:
    """Hold the names and shapes of the result against the model of its config.json.

    Args:
        fit: what transformers says of it; None where it does not know the model.
        config: what the result's config.json will say.
        shapes: tensor of the result -> shape.
        label: the input whose config.json that is.

    Returns:
        Warnings: tensors that the model has no place for, and does without.

    Raises:
        MergeError: parameters would be random, or have another shape, or tensors of the layers
            would be passed over.
    """
    if fit is None:
        return _check_layers(config, shapes, label)
    without_pooler = _lacks_pooler_only(fit)
    if without_pooler:
        fit = replace(fit, missing=())
    inside = [name for name in fit.unexpected if _belongs(name, fit)]
    wrong = _wrong(fit, inside, len(shapes))
    if wrong and config.get("auto_map"):
        return [
            f"whether the merge loads cannot be said, since the config.json of {label} names code "
            f"of its own (auto_map): in transformers' {fit.model_class} {'; '.join(wrong)}"
        ]
    if wrong:
        raise MergeError(
            f"the merge would not be the model that the config.json of {label} makes, "
            f"{fit.model_class}: {'; '.join(wrong)}; {_way_out(fit, inside, config, shapes, label)}"
        )
    if without_pooler:
        return [
            f"no input has the pooler of {fit.model_class}, so the merge has none: load it with "
            "add_pooling_layer=False, or transformers draws one at random"
        ]
    if fit.unexpected:
        return [
            f"{len(fit.unexpected)} tensor(s) have no place in {fit.model_class}, which the "
            f"config.json of {label} makes, and are passed over when it is loaded: "
            f"{_few(fit.unexpected)}"
        ]
    return []


def _lacks_pooler_only(fit: ModelFit) -> bool:
    """Whether all that is missing is what a model without a head may be made without, as those of
    sentences are: ``BertModel(config, add_pooling_layer=False)``."""
    is_bare = fit.model_class.endswith("Model") and bool(fit.missing)
    return is_bare and all(name.startswith("pooler.") for name in fit.missing)


def _wrong(fit: ModelFit, inside: Sequence[str], count: int) -> list[str]:
    wrong = []
    if fit.trouble and not fit.doubled:
        wrong.append(f"its tensors do not convert ({fit.trouble})")
    if fit.missing:
        wrong.append(
            f"{len(fit.missing)} of its {len(fit.parameters)} parameters would be random, since no "
            f"tensor gives them: {_few(fit.missing)}"
        )
    if fit.doubled:
        name = fit.doubled[0]
        wrong.append(
            f"{len(fit.doubled)} of its parameters would be given twice, e.g. {name} by "
            f"{_few(fit.parts[name])}"
        )
    if inside:
        wrong.append(
            f"{len(inside)} of {count} tensors have no place in it and would be passed over: "
            f"{_few(inside)}"
        )
    if fit.mismatched:
        name, (ours, theirs) = next(iter(fit.mismatched.items()))
        more = f" and {len(fit.mismatched) - 1} more" if len(fit.mismatched) > 1 else ""
        wrong.append(f"{name} is {list(ours)} and would have to be {list(theirs)}{more}")
    return wrong


def _way_out(
    fit: ModelFit,
    inside: Sequence[str],
    config: Mapping[str, Any],
    shapes: Iterable[str],
    label: str,
) -> str:
    said, held = _layers(fit.parameters), _layers(shapes)
    for stack, number in said.items():
        if stack in held and held[stack] != number:
            return (
                f"config.json makes {number} layers {stack}* and the weights have {held[stack]}: "
                f"put the config.json that was saved with these weights into {label}"
            )
    if fit.mismatched and not fit.missing and not inside:
        return (
            f"correct the sizes in the config.json of {label}, or put the one that was saved with "
            "these weights there"
        )
    named = ", ".join(map(str, config.get("architectures") or [])) or config["model_type"]
    return (
        f"put the config.json that was saved with these weights into {label}, or save the model "
        f"with transformers from the class that it was trained as, if that is not {named}"
    )


def _layers(names: Iterable[str]) -> dict[str, int]:
    """What names begin with before a layer's number -> how many layers there are."""
    counts: dict[str, int] = {}
    for name in names:
        place = layer_of(name)
        if place is not None:
            counts[place[0]] = max(counts.get(place[0], 0), place[1] + 1)
    return counts


def _belongs(name: str, fit: ModelFit) -> bool:
    """Whether a tensor without a place is part of a layer, or of a module that the model has:
    the model computes something else without it. A head for another task is neither."""
    modules = {parameter.rpartition(".")[0] for parameter in fit.parameters}
    return bool(_NUMBER.search(f".{name}")) or name.rpartition(".")[0] in modules


def _check_layers(config: Mapping[str, Any], shapes: Iterable[str], label: str) -> list[str]:
    """What may be said of a model that transformers does not know: that no layer is missing."""
    text = config.get("text_config")
    said = (text if isinstance(text, Mapping) else config).get("num_hidden_layers")
    held = _layers(shapes)
    most = max(held.values(), default=0)
    if isinstance(said, int) and held and most < said:
        raise MergeError(
            f"the config.json of {label} says num_hidden_layers: {said}, and the merge would have "
            f"{most} layers; put the config.json that was saved with these weights into {label}"
        )
    if config.get("model_type") is None and not config.get("auto_map"):
        return [
            f"the config.json of {label} has no model_type, so transformers cannot load the merge; "
            "put the one that was saved with these weights there"
        ]
    return []


def _few(names: Sequence[str], n: int = 3) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{', '.join(names[:n])}{more}"
