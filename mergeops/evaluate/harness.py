"""Score one model on one part of the tasks with lm-eval, asking only what was never asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import PARTS, ItemResult, Scores, TaskScore, answers, identity, store
from mergeops.evaluate.catalogue import first_line
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.tasks import LoadedTask, TaskSet, load_tasks
from mergeops.settings import EvaluateSpec

TaskTick = Callable[[str, int, int], None]
"""Called with (task, items done, items in all)."""


def score(
    path: Path,
    weights_sha256: str,
    spec: EvaluateSpec,
    part: str,
    *,
    work_dir: Path,
    tokenizer: Path | None = None,
    tasks: TaskSet | None = None,
    trust_remote_code: bool = False,
    progress: TaskTick | None = None,
) -> Scores:
    """Score a model, task by task; what ``work_dir`` already has is read, not asked again.

    The model is loaded only when a task is missing, after every prompt that can be made without it
    has been made. Tasks are asked one at a time, so that adding one never changes the batches, and
    with them the last digits, of another; each is kept as soon as it is done.

    Args:
        path: a Hugging Face checkpoint directory.
        weights_sha256: names the weights in the store.
        part: dev or confirm.
        work_dir: scores are kept below ``scores/`` in it.
        tokenizer: a directory; None takes ``path``.
        tasks: ``load_tasks(spec)``, to share it, its prompts and its token lists between models.

    Raises:
        EvaluationError: a task is wrong, the model cannot be loaded, does not fit into memory, or
            answers with NaN.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    if tasks is not None and tasks.spec != spec:
        raise ValueError("tasks were loaded with other settings than spec")
    tokenizer = tokenizer or path
    model_sha256 = identity.model_digest(path)
    tokenizer_sha256 = identity.tokenizer_digest(tokenizer)
    tasks = tasks or load_tasks(spec)

    headers, files, records = {}, {}, {}
    for name, loaded in tasks.tasks.items():
        loaded.needed_ids(part)
        headers[name] = {
            "weights_sha256": weights_sha256,
            "task": name,
            "part": part,
            "digest": loaded.digests[part],
            "model_sha256": model_sha256,
            "tokenizer_sha256": tokenizer_sha256,
        }
        key = f"{loaded.digests[part]} {model_sha256} {tokenizer_sha256}"
        key = hashlib.sha256(key.encode()).hexdigest()
        files[name] = store.score_file(work_dir, weights_sha256, key, part)
        if (record := store.read(files[name], headers[name])) is not None:
            records[name] = record
            if progress:
                progress(name, len(record["items"]), len(record["items"]))

    missing = [loaded for name, loaded in tasks.tasks.items() if name not in records]
    if missing:
        with quiet():
            for name, record in _ask(
                missing, part, tasks, path, tokenizer, tokenizer_sha256, trust_remote_code, progress
            ):
                store.write(files[name], headers[name], record)
                records[name] = record

    return Scores(
        weights_sha256=weights_sha256,
        part=part,
        tasks={
            name: _task_score(loaded, part, records[name]) for name, loaded in tasks.tasks.items()
        },
        settings=_settings(tasks, records),
    )


def _ask(
    missing: list[LoadedTask],
    part: str,
    tasks: TaskSet,
    path: Path,
    tokenizer_path: Path,
    tokenizer_sha256: str,
    trust_remote_code: bool,
    progress: TaskTick | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Load the model, ask it one task after the other, and give its memory back."""
    from mergeops.evaluate import model as models

    spec = tasks.spec
    chat = spec.apply_chat_template
    device = models.pick_device(spec.device)
    tokenizer = models.load_tokenizer(
        tokenizer_path, trust_remote_code=trust_remote_code, chat=chat
    )
    if not chat:
        for loaded in missing:
            _requests(tasks, loaded, part, "", None)
    model = models.load_model(path, spec, device, trust_remote_code=trust_remote_code)
    encodings = tasks.encodings.setdefault(tokenizer_sha256, {})
    asked = models.ScoringModel(model, tokenizer, spec, encodings)
    threads = models.use_threads_for(model)
    try:
        for loaded in missing:
            template = asked.apply_chat_template if chat else None
            instances = _requests(tasks, loaded, part, tokenizer_sha256 if chat else "", template)
            asked.asking = loaded.name
            asked.set_cache_hook(models.Ticker(_counter(loaded, part, instances, progress)))
            _ask_one(loaded, instances, asked, path, spec.batch_size)
            settings = {
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": device.type,
                "max_length": str(asked.max_length),
                "transformers": version("transformers"),
                "torch": version("torch"),
            }
            record = answers.results(loaded, instances)
            yield loaded.name, {**record, "settings": settings, "version": loaded.version}
    finally:
        models.set_threads(threads)
        del asked, model
        models.free_memory()


def _requests(
    tasks: TaskSet, loaded: LoadedTask, part: str, tokenizer: str, template: Any
) -> list[Any]:
    key = (loaded.name, part, tokenizer)
    if key not in tasks.requests:
        tasks.requests[key] = answers.build_requests(loaded, part, tasks.spec.seed, template)
    return tasks.requests[key]


def _ask_one(
    loaded: LoadedTask, instances: list[Any], model: Any, path: Path, batch_size: int
) -> None:
    try:
        answers.ask(instances, model)
    except EvaluationError:
        raise
    except Exception as error:
        message = first_line(error)
        if "out of memory" in message.lower() or "can't allocate memory" in message:
            raise EvaluationError(
                f"out of memory on {model.device} in task {loaded.name}, with "
                f"evaluate.batch_size={batch_size}; use a smaller one"
            ) from error
        raise EvaluationError(
            f"model {path} cannot be asked task {loaded.name}: {type(error).__name__}: {message}"
        ) from error
    answers.check_finite(loaded, instances, str(path))


def _counter(
    loaded: LoadedTask, part: str, instances: list[Any], progress: TaskTick | None
) -> Callable[[int], None]:
    """Answers counted as items, one call an item."""
    items = len(loaded.ids[part])
    expected = sum(instance.repeats for instance in instances)
    last = 0

    def tick(answered: int) -> None:
        nonlocal last
        done = min(items, answered * items // expected)
        if progress and done > last:
            last = done
            progress(loaded.name, done, items)

    return tick


def _task_score(loaded: LoadedTask, part: str, record: Mapping[str, Any]) -> TaskScore:
    key = f"{loaded.metric},{loaded.filter}"
    whole = record["metrics"].get(key)
    if whole is None or whole["value"] is None:
        raise EvaluationError(
            f"task {loaded.name} gives no finite value of metric {loaded.metric}; choose another "
            f"with evaluate.metrics.{loaded.name}: it has {', '.join(record['metrics'])}"
        )
    items = tuple(
        ItemResult(
            doc_id=item["doc_id"],
            doc_hash=item["doc_hash"],
            prompt_hash=item["prompt_hash"],
            target_hash=item["target_hash"],
            value=item["values"][key],
        )
        for item in record["items"]
        if key in item["values"]
    )
    if not items:
        raise EvaluationError(
            f"metric {loaded.metric} of task {loaded.name} has no value for a single item, so "
            f"models cannot be paired on it; choose another with evaluate.metrics.{loaded.name}"
        )
    return TaskScore(
        task=loaded.name,
        metric=loaded.metric,
        value=whole["value"],
        stderr=whole["stderr"],
        items=items,
        version=record["version"],
        digest=loaded.digests[part],
        higher_is_better=loaded.higher_is_better,
    )


def _settings(tasks: TaskSet, records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What to log with the scores; a value that differs between tasks is spelled out."""
    import lm_eval

    spec = tasks.spec
    settings = {
        "lm_eval": lm_eval.__version__,
        "batch_size": str(spec.batch_size),
        "seed": str(spec.seed),
        "apply_chat_template": str(spec.apply_chat_template).lower(),
        "confirm_fraction": str(spec.confirm_fraction),
        "split_salt": spec.split_salt,
        "limit": "none" if spec.limit is None else str(spec.limit),
        "num_fewshot": _joined({n: str(t.num_fewshot) for n, t in tasks.tasks.items()}),
    }
    for key in ("dtype", "device", "max_length", "transformers", "torch"):
        settings[key] = _joined({name: r["settings"][key] for name, r in records.items()})
    return settings


def _joined(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name}={value}" for name, value in values.items())
