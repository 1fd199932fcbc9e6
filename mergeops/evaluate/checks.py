"""What can be known to be wrong with a task before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.schema import did_you_mean

_REMOTE = ("http://", "https://", "hf://", "s3://", "gs://")


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Check a task's YAML before lm-eval builds it.

    Raises:
        EvaluationError: a metric that lm-eval does not have; a data file that does not exist.
    """
    if config.get("process_results") is None and "class" not in config:
        for entry in config.get("metric_list") or []:
            metric = entry.get("metric") if isinstance(entry, Mapping) else None
            if isinstance(metric, str) and not entry.get("hf_evaluate"):
                _check_metric(name, metric)
    for file in _data_files(config):
        if not file.startswith(_REMOTE) and not _exists(file):
            raise EvaluationError(
                f"task {name}: data file {file} does not exist (from {Path.cwd()}, nor beside the "
                "task's YAML)"
            )


def pin_data_files(name: str, config: dict[str, Any], folder: Path) -> None:
    """Make relative ``dataset_kwargs.data_files`` absolute, in place.

    As lm-eval reads them, from the current directory; and where that does not exist, from
    ``folder``, beside the YAML.
    """
    keywords = config.get("dataset_kwargs")
    if not isinstance(keywords, Mapping) or not keywords.get("data_files"):
        return
    if config.get("dataset_path") and not _is_local(config):
        return  # paths inside a hub dataset

    def pin(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: pin(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [pin(inner) for inner in value]
        if not isinstance(value, str) or value.startswith(_REMOTE):
            return value
        beside = folder / value
        chosen = beside if not _exists(value) and _exists(str(beside)) else Path(value)
        return str(chosen.absolute()) if _exists(str(chosen)) else value

    config["dataset_kwargs"] = {**keywords, "data_files": pin(keywords["data_files"])}


def needs_network(config: Mapping[str, Any]) -> bool:
    """Whether building the task may download something that is not cached."""
    if config.get("custom_dataset") is not None or "class" in config:
        return True  # the user's code, which may do anything
    metrics = [m for m in config.get("metric_list") or [] if isinstance(m, Mapping)]
    if any(metric.get("hf_evaluate") for metric in metrics) or not _is_local(config):
        return True
    return any(file.startswith(_REMOTE) for file in _data_files(config))


def check_built(name: str, task: Any) -> None:
    """Check what lm-eval made of a task.

    Raises:
        EvaluationError: a metric or aggregation that lm-eval could not find (it says so only after
            inference), code execution, images or sound.
    """
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"task {name} runs code that the model writes; mergeops does not run such tasks"
        )
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(f"task {name} needs images or sound; only text models can be scored")
    if task.get_config("process_results") is None:
        for metric, function in getattr(task, "_metric_fn_list", {}).items():
            if function is None:
                _check_metric(name, metric)
                if task.OUTPUT_TYPE != "generate_until":
                    continue  # lm-eval counts such answers itself and calls no function
                raise EvaluationError(
                    f"task {name}: metric {metric!r} is to come from HF evaluate, which has it "
                    "neither in its cache nor within reach"
                )
    for metric, function in task.aggregation().items():
        if function is None:
            raise EvaluationError(f"task {name}: the aggregation of metric {metric!r} is unknown")


def _check_metric(name: str, metric: str) -> None:
    from lm_eval.api import metrics  # noqa: F401 (fills the registry)
    from lm_eval.api.registry import METRIC_REGISTRY

    known = sorted(METRIC_REGISTRY)
    if metric not in known:
        raise EvaluationError(
            f"task {name}: unknown metric {metric!r}; {did_you_mean(metric, known)}"
            f"lm-eval has: {', '.join(known)}"
        )


def _is_local(config: Mapping[str, Any]) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    path = config.get("dataset_path")
    if not isinstance(path, str) or not path:
        return True
    return path in _PACKAGED_DATASETS_MODULES or Path(path).exists()


def _data_files(config: Mapping[str, Any]) -> list[str]:
    if not _is_local(config):
        return []
    keywords = config.get("dataset_kwargs")
    return list(_texts(keywords.get("data_files"))) if isinstance(keywords, Mapping) else []


def _texts(value: Any) -> Iterator[str]:
    """The texts in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _exists(path: str) -> bool:
    """A file, or a glob that finds one."""
    if any(c in path for c in "*?["):
        folder = Path(path).anchor or "."
        return any(Path(folder).glob(str(Path(path).relative_to(folder))))
    return Path(path).expanduser().exists()
