"""Score models on one part of the tasks with lm-eval, asking only what was never asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import workers
from mergeops.evaluate.asking import Asker, Missing, TaskTick
from mergeops.evaluate.identity import model_digest, tokenizer_digest
from mergeops.evaluate.kept import ScoreRecord, ScoreStore, SharedScores, Subject
from mergeops.evaluate.model import Model, check_vllm
from mergeops.evaluate.seat import Seat
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.tasks import LoadedTask, TaskSet, load_tasks
from mergeops.recipe import EvaluateSpec
from mergeops.scores import PARTS, ItemResult, Scores, TaskScore


def score_all(
    candidates: Sequence[Model],
    spec: EvaluateSpec,
    part: str,
    *,
    work_dir: Path,
    tasks: TaskSet | None = None,
    shared: SharedScores | None = None,
    trust_remote_code: bool = False,
    progress: TaskTick | None = None,
    begin: Callable[[Model], object] | None = None,
    count: Callable[[int], object] | None = None,
    seat: Seat | None = None,
) -> list[Scores]:
    """Score models, task by task; what ``work_dir`` or ``shared`` already has is not asked again.

    A model is loaded only when a task is missing, after every prompt that can be made without it
    has been made. Of a task that was asked in the same way on other items (another limit, another
    split), only the items that are new are asked. Tasks are asked one at a time, so that adding one
    never changes the batches, and with them the last digits, of another; each is kept as soon as it
    is done. With several GPUs each has one model at a time; a model of the same configuration as
    the one before it only replaces its weights.

    Args:
        candidates: whose scores are wanted.
        spec: what to ask and how.
        part: dev or confirm.
        work_dir: scores are kept below ``scores/`` in it.
        tasks: ``load_tasks(spec)``, to share it, its prompts and its token lists between calls.
        shared: a store that other machines see too.
        trust_remote_code: whether a checkpoint's own code may run.
        progress: called from one thread at a time.
        begin: called with each model that is asked, before it is.
        count: called with the number of items whenever some were asked of a model.
        seat: where they are asked, and what stays open; None takes the devices of the spec.

    Returns:
        In the order of the candidates.

    Raises:
        EvaluationError: a task is wrong, a model cannot be loaded, does not fit into memory, or
            answers with NaN. Finished tasks of all models are kept.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    if tasks is not None and tasks.spec != spec:
        raise ValueError("tasks were loaded with other settings than spec")
    trust = trust_remote_code
    digests = [
        {
            "model_sha256": model_digest(model.path, trust_remote_code=trust),
            "tokenizer_sha256": tokenizer_digest(model.tokenizer_path, trust_remote_code=trust),
        }
        for model in candidates
    ]
    tasks = tasks or load_tasks(spec)
    for loaded in tasks.tasks.values():
        loaded.needed_ids(part)  # refuses a part without items
    lock = threading.Lock()

    def tick(task: str, done: int, total: int) -> None:
        if progress:
            with lock:
                progress(task, done, total)

    store = ScoreStore(work_dir, shared)
    subjects: list[list[Subject]] = []
    records: list[dict[str, ScoreRecord]] = []
    for model, own_digests in zip(candidates, digests, strict=True):
        subjects.append(
            [
                Subject(
                    weights_sha256=model.weights_sha256,
                    task=name,
                    part=part,
                    digest=loaded.digests[part],
                    task_way=loaded.way,
                    **own_digests,
                )
                for name, loaded in tasks.tasks.items()
            ]
        )
        records.append(store.find(subjects[-1]))
        for name, record in records[-1].items():
            tick(name, len(record["items"]), len(record["items"]))

    missing = _missing(candidates, subjects, records)
    if missing:
        lock_of_tasks = threading.Lock()

        def open_asker(device: Any) -> Asker:
            return Asker(
                seat or Seat(device, trust_remote_code=trust),
                tasks=tasks,
                part=part,
                store=store,
                tick=tick,
                turn=lock_of_tasks,
                begin=begin,
                count=count,
                is_lent=seat is not None,
            )

        devices = _devices(spec) if seat is None else [seat.device]
        with quiet():
            workers.share_out(missing, devices, open_asker)
        for i, (own_subjects, own_records) in enumerate(zip(subjects, records, strict=True)):
            if len(own_records) < len(own_subjects):
                records[i] = store.find(own_subjects)
    return [
        Scores(
            weights_sha256=model.weights_sha256,
            part=part,
            tasks={
                name: _task_score(loaded, part, own_records[name])
                for name, loaded in tasks.tasks.items()
            },
            settings=_settings(tasks, own_records),
            groups=tasks.groups,
        )
        for model, own_records in zip(candidates, records, strict=True)
    ]


def _missing(
    candidates: Sequence[Model],
    subjects: Sequence[Sequence[Subject]],
    records: Sequence[Mapping[str, ScoreRecord]],
) -> list[Missing]:
    """What is to be asked, models of one configuration one after the other.

    Candidates with the same weights, configuration and tokenizer are asked once.
    """
    missing: dict[tuple[Subject, ...], Missing] = {}
    for model, own_subjects, own_records in zip(candidates, subjects, records, strict=True):
        unknown = [subject for subject in own_subjects if subject.task not in own_records]
        if unknown:
            missing.setdefault(tuple(own_subjects), Missing(model, unknown))
    return sorted(missing.values(), key=lambda each: each.digests)


def _devices(spec: EvaluateSpec) -> list[Any]:
    if spec.backend == "vllm":
        check_vllm()
        return [None]  # it takes the GPUs that it finds
    return list(workers.pick_devices(spec.device))


def _task_score(loaded: LoadedTask, part: str, record: Mapping[str, Any]) -> TaskScore:
    key = f"{loaded.metric},{loaded.filter}"
    whole = record["metrics"].get(key, {"value": None})
    others = ", ".join(k for k, m in record["metrics"].items() if m["value"] is not None)
    advice = f"choose another with evaluate.metrics.{loaded.name}: it has {others or 'none'}"
    if whole["value"] is None:
        reason = f" ({whole['error']})" if "error" in whole else ""
        raise EvaluationError(
            f"task {loaded.name} gives no finite value of metric {loaded.metric}{reason}; {advice}"
        )
    identity = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    items = tuple(
        ItemResult(
            **{name: item[name] for name in identity},
            value=item["values"][key],
            weight=item["weights"].get(key, 1.0),
        )
        for item in record["items"]
        if key in item["values"]
    )
    if not items:
        raise EvaluationError(
            f"metric {loaded.metric} of task {loaded.name} is no number on any item, so models "
            f"cannot be compared by it; {advice}"
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
        kind=whole["kind"],
        by_log=whole["by_log"],
        replicates=tuple(whole.get("replicates", ())),
        asked=loaded.how,
        chosen=loaded.chosen,
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
    for key in ("backend", "dtype", "device", "max_length", "transformers", "torch"):
        settings[key] = _joined({name: r["settings"][key] for name, r in records.items()})
    return settings


def _joined(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name}={value}" for name, value in values.items())
