"""What decides a task's scores beside its items and the model: as a digest, and in words."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.recipe import EvaluateSpec

ENGINE_KEYS = ("dtype", "backend", "batch_size", "lm_eval", "transformers")
"""Settings that decide what computes the answers, not what is asked."""
# Where the items are kept, and what they are called, is not what is asked: the items are hashed.
_PLACE_KEYS = (
    "custom_dataset",
    "dataset_kwargs",
    "dataset_name",
    "dataset_path",
    "metadata",
    "process_docs",
    "tag",
    "task_alias",
)
_CHAT_KEYS = (
    "system_instruction",
    "fewshot_as_multiturn",
    "chat_template_args",
    "enable_thinking",
    "think_end_token",
)
_PROMPT_KEYS = (
    "description",
    "doc_to_choice",
    "doc_to_target",
    "doc_to_text",
    "fewshot_config",
    "fewshot_delimiter",
    "gen_prefix",
    "target_delimiter",
    "use_prompt",
)


def settings_of(name: str, task: Any, num_fewshot: int, spec: EvaluateSpec) -> dict[str, Any]:
    """What decides a task's scores beside its items and the model."""
    import lm_eval

    config = {k: v for k, v in vars(task.config).items() if k not in _PLACE_KEYS}
    settings = {
        "task": name,
        "version": str(task.VERSION),
        "config": config,
        "num_fewshot": num_fewshot,
        "seed": spec.seed,
        "apply_chat_template": spec.apply_chat_template,
        "dtype": spec.dtype,
        "backend": "mergeops" if spec.backend == "auto" else spec.backend,
        "batch_size": spec.batch_size,
        "max_length": spec.max_length,
        "lm_eval": lm_eval.__version__,
        "transformers": version("transformers"),
    }
    # What is left at its default is not there: scores of an older mergeops were asked so, too.
    settings |= chat_settings(spec)
    if not type(task).__module__.startswith("lm_eval.api."):
        settings["class"] = _code(type(task))
    return settings


def chat_settings(spec: EvaluateSpec) -> dict[str, Any]:
    """The settings of a chat that are not lm-eval's defaults."""
    usual = EvaluateSpec()
    chosen = {key: getattr(spec, key) for key in _CHAT_KEYS}
    return {key: value for key, value in chosen.items() if value != getattr(usual, key)}


def how_asked(settings: Mapping[str, Any], chosen_filter: str) -> dict[str, str]:
    """How items are asked and counted, by what it is called in messages."""
    config = settings["config"]

    def digest_of(*keys: str) -> str:
        return digest_of_settings({key: config.get(key) for key in keys})[:12]

    return {
        "lm-eval": settings["lm_eval"],
        "few-shot examples": str(settings["num_fewshot"]),
        "chat template": ", ".join(
            [
                "on" if settings["apply_chat_template"] else "off",
                *(f"{key} {settings[key]!r}" for key in _CHAT_KEYS if key in settings),
            ]
        ),
        "stop rule": json.dumps(config.get("generation_kwargs"), sort_keys=True, default=str),
        "filter": chosen_filter,
        "prompt templates": digest_of(*_PROMPT_KEYS),
        "code of filters and metrics": digest_of("filter_list", "metric_list", "process_results"),
    }


def digest_of_settings(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if callable(value):
        return _code(value)
    if hasattr(value, "__dataclass_fields__"):
        return vars(value)
    return str(value)


def _code(function: Any) -> str:
    """A function or class by name and by the code that it may call.

    Its whole file; outside lm-eval, whose version is part of the digest, every file of its folder,
    and of an object that can be called its class.
    """
    if isinstance(function, partial):
        return digest_of_settings({"of": function.func, "with": [function.args, function.keywords]})
    kind = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = Path(inspect.getfile(kind))
        own = str(kind.__module__).partition(".")[0] != "lm_eval"
        files = sorted(file.parent.glob("*.py")) if own else [file]
        sources = [[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in files]
    except (TypeError, OSError):
        sources = []
    return f"{kind.__qualname__}:{digest_of_settings({'sources': sources})}"
