"""The model that transformers makes of a config.json, without weights: on the meta device.

What loads where is asked of ``from_pretrained`` itself, with tensors that have a shape and no
content. So names of older versions, prefixes, tied parameters and experts one by one are as
transformers has them. No code of a checkpoint's own is run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mergeops.architectures.model_fit import ModelFit, Shape
from mergeops.checkpoint import QUANTISATION_KEYS

AUTO_CLASSES = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_MAPPING",
)
"""Where a config without ``architectures`` finds its class, in this order."""
NOT_THE_MODELS = (
    *QUANTISATION_KEYS,
    "auto_map",
    "_attn_implementation_internal",
    "dtype",
    "torch_dtype",
)
"""Keys that would have the model made in another way, not another model."""


def fit_of(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> ModelFit | None:
    """How a checkpoint fits the model of its config.json.

    Args:
        config: content of config.json.
        tensors: name on disk -> shape.

    Returns:
        None where transformers does not know the model.

    Raises:
        ValueError: transformers knows the model, but cannot make it of this config.
    """
    with in_silence():
        settings = read_config(config)
        if settings is None:
            return None
        best = None
        for cls in classes_of(config, settings):
            fit = _load(cls, settings, tensors)
            if fit.is_whole:
                return fit
            best = best or fit
        return best


def settings_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json as transformers reads it: with defaults, and in its own spelling.

    Returns:
        None where transformers does not know the model.

    Raises:
        ValueError: transformers knows the model, but cannot read this config.
    """
    with in_silence():
        settings = read_config(config)
        return None if settings is None else settings.to_dict()


def original_of(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Tensor -> shape, as transformers saves the model of a config.json.

    Returns:
        None where transformers does not know the model.

    Raises:
        ValueError: transformers knows the model, but cannot make it of this config.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    with in_silence():
        settings = read_config(config)
        for cls in () if settings is None else classes_of(config, settings):
            try:
                with torch.device("meta"):
                    bare = cls._from_config(settings, attn_implementation="eager")
                tied = bare.all_tied_weights_keys
                held = {n: value for n, value in bare.state_dict().items() if n not in tied}
                written = revert_weight_conversion(bare, held)
            except Exception as error:  # Whatever the model raises of foreign values.
                raise ValueError(_in_one_line(error)) from error
            return {name: tuple(value.shape) for name, value in written.items()}
    return None


def read_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers; None where it does not know the ``model_type``.

    Raises:
        ValueError: it cannot read this config.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    plain = json.loads(json.dumps(config), object_hook=_of_the_model)
    try:
        return CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # Whatever the class of the config raises of foreign values.
        raise ValueError(_in_one_line(error)) from error


def classes_of(config: Mapping[str, Any], settings: Any) -> Iterator[Any]:
    """The model's class; where the config names none, those that it may be for."""
    import transformers
    from transformers.models.auto import modeling_auto

    named = config.get("architectures")
    if isinstance(named, list) and named:
        cls = getattr(transformers, named[0], None) if isinstance(named[0], str) else None
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            yield cls
        return
    for mapping in AUTO_CLASSES:
        cls = getattr(modeling_auto, mapping).get(type(settings), None)
        if isinstance(cls, type):
            yield cls


class _Places(NamedTuple):
    parts: dict[str, tuple[str, ...]]
    """Parameter -> tensors on disk."""
    converted: set[str]
    """Parameters that are more than renamed."""
    operations: dict[str, tuple[str, ...]]
    """What is done to those."""
    lost: dict[str, str]
    """Tensor without a place -> the name that it would have in memory."""
    doubled: set[str]
    """Parameters that are given twice."""


def _load(cls: Any, settings: Any, tensors: Mapping[str, Shape]) -> ModelFit:
    import torch

    try:
        with torch.device("meta"):
            bare = cls._from_config(settings, attn_implementation="eager")
    except Exception as error:  # Whatever the class of the model raises of foreign values.
        raise ValueError(_in_one_line(error)) from error
    parameters = {name: tuple(value.shape) for name, value in bare.state_dict().items()}
    tied = dict(bare.all_tied_weights_keys)
    placed = _places(bare, tensors)
    given = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    try:
        _, told = cls.from_pretrained(
            None,
            config=settings,
            state_dict=given,
            device_map={"": "meta"},
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # Whatever its operations raise of tensors that do not fit them.
        told, trouble = {}, _in_one_line(error)
    else:
        trouble = ""
    # The model's class may pass over some, e.g. buffers that older versions saved.
    ahead = _layers_ahead(settings)
    unexpected = {n for n in told.get("unexpected_keys", ()) if not ahead.search(n)}
    return ModelFit(
        model_class=cls.__name__,
        parameters=parameters,
        tied=tied,
        parts=placed.parts,
        converted=frozenset(placed.converted),
        operations=placed.operations,
        layers=_layers(bare),
        embeddings=_embeddings(bare),
        vocabulary=frozenset(_vocabulary(bare)),
        missing=tuple(sorted(told.get("missing_keys", ()))),
        unexpected=tuple(tensor for tensor, name in placed.lost.items() if name in unexpected),
        mismatched={
            name: (tuple(theirs), tuple(ours))
            for name, theirs, ours in sorted(told.get("mismatched_keys", ()))
        },
        doubled=tuple(sorted(placed.doubled)),
        trouble=trouble,
    )


def _layers_ahead(settings: Any) -> re.Pattern[str]:
    """Names in the layers that predict tokens further ahead, which servers use and transformers
    passes over: behind the model's own, as DeepSeek-V3 and GLM-4.5 have them. Their classes know
    the numbers of those layers for the sizes that were published first only."""
    text = settings.get_text_config()
    own, more = (
        getattr(text, key, None) for key in ("num_hidden_layers", "num_nextn_predict_layers")
    )
    numbers = range(own, own + more) if isinstance(own, int) and isinstance(more, int) else ()
    return re.compile(rf"(^|\.)layers\.({'|'.join(map(str, numbers))})\." if numbers else "(?!)")


def _places(model: Any, tensors: Iterable[str]) -> _Places:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    targets = {p: c.target_patterns for c in converters for p in c.source_patterns}
    order = {p: i for c in converters for i, p in enumerate(c.source_patterns)}
    own = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, list[tuple[int, str]]] = {}
    converted: set[str] = set()
    doubled: set[str] = set()
    done = {
        p: tuple(type(o).__name__ for o in c.operations)
        for c in converters
        for p in c.source_patterns
    }
    operations: dict[str, tuple[str, ...]] = {}
    lost: dict[str, str] = {}
    for tensor in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(tensor, renamings, converters, prefix, own)
        if name not in own and tensor in own:
            name, pattern = rename_source_key(tensor, [], [], prefix, own)
        if name not in own:
            lost[tensor] = name
            continue
        # A tensor that is split gives several parameters, whose names differ in the pattern.
        to = targets[pattern] if pattern else [""]
        names = {name.replace(to[0], other) if other else name for other in to} & own.keys()
        for one in names:
            if one in found and (not pattern or one not in converted):
                doubled.add(one)
            found.setdefault(one, []).append((order.get(pattern, 0), tensor))
        if pattern:
            converted |= names
            operations |= dict.fromkeys(names, done[pattern])
    parts = {
        name: tuple(tensor for _, tensor in sorted(given, key=lambda pair: pair[0]))
        for name, given in found.items()
    }
    return _Places(parts, converted, operations, lost, doubled)


def _embeddings(model: Any) -> str:
    with contextlib.suppress(NotImplementedError, AttributeError):
        wanted = model.get_input_embeddings()
        return next((f"{name}.weight" for name, m in model.named_modules() if m is wanted), "")
    return ""


def _vocabulary(model: Any) -> set[str]:
    """Embeddings, head and its bias, and what transformers makes larger with them, as BART's
    ``final_logits_bias``; the model is left with another vocabulary."""
    import torch

    modules: list[Any] = []
    # Models that read no tokens raise.
    with contextlib.suppress(NotImplementedError, AttributeError):
        modules = [model.get_input_embeddings()]
    modules = [module for module in modules if isinstance(module, torch.nn.Embedding)]
    modules += [module for module in [model.get_output_embeddings()] if module is not None]
    own = set(model.state_dict())
    found: set[str] = own & {
        f"{name}.{part}"
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is one for one in modules)
        for part in ("weight", "bias")
    }
    for pair in model.all_tied_weights_keys.items():
        found |= set(pair) if found & set(pair) else set()
    # Marian's cannot be made larger without values.
    found |= {name for name in own if name.endswith("final_logits_bias")}
    before = {name: value.shape for name, value in model.state_dict().items()}
    # Models of two vocabularies, or of none, raise, each in its way.
    with contextlib.suppress(Exception), torch.device("meta"):
        rows = model.get_input_embeddings().weight.shape[0]
        model.resize_token_embeddings(rows + 1, mean_resizing=False)
    return found | {n for n, value in model.state_dict().items() if value.shape != before.get(n)}


def _layers(model: Any) -> dict[str, str]:
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = {torch.nn.Embedding: "embedding", Conv1D: "conv1d", torch.nn.Linear: "linear"}
    found = {}
    for name, module in model.named_modules():
        kind = next((word for cls, word in kinds.items() if isinstance(module, cls)), None)
        if getattr(module, "is_transposed", False):
            kind = "transposed_experts"
        if kind is not None:
            found[name] = kind
    return found


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    """transformers reports what it misses to the terminal; here that is the question."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(logging.CRITICAL + 1)
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _of_the_model(item: dict[str, Any]) -> Any:
    """An object of config.json without what is not the model's; or Infinity, as transformers 5
    writes it."""
    if item.keys() == {"__float__"}:
        return float(item["__float__"])
    return {key: value for key, value in item.items() if key not in NOT_THE_MODELS}


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
