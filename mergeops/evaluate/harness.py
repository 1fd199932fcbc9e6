"""Score models on one part of the tasks with lm-eval, asking only what was never asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import PARTS, ItemResult, Scores, TaskScore, devices, identity
from mergeops.evaluate.asking import Asked, Asker, Candidate, Missing
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.store import ScoreStore, SharedScores, way_of
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
    shared: SharedScores | None = None,
    trust_remote_code: bool = False,
    progress: TaskTick | None = None,
) -> Scores:
    """Score one model; see ``score_all``."""
    [scores] = score_all(
        [Candidate(path, weights_sha256, tokenizer)],
        spec,
        part,
        work_dir=work_dir,
        tasks=tasks,
        shared=shared,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    return scores


def score_all(
    candidates: Sequence[Candidate],
    spec: EvaluateSpec,
    part: str,
    *,
    work_dir: Path,
    tasks: TaskSet | None = None,
    shared: SharedScores | None = None,
    trust_remote_code: bool = False,
    progress: TaskTick | None = None,
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
    asked = [_identify(candidate, trust_remote_code) for candidate in candidates]
    tasks = tasks or load_tasks(spec)
    store = ScoreStore(work_dir, shared)
    records: list[dict[str, dict[str, Any]]] = []
    for one in asked:
        one.headers.update(_headers(one, tasks, part))
        records.append(store.find(one.headers))
        for name, record in records[-1].items():
            if progress:
                progress(name, len(record["items"]), len(record["items"]))

    waiting = _first_of_each(asked, records, tasks)
    if waiting:
        places = _devices(spec)
        turn, telling = threading.Lock(), threading.Lock()

        def tick(task: str, done: int, total: int) -> None:
            with telling:
                if progress:
                    progress(task, done, total)

        def open_worker(device: Any) -> _Worker:
            asker = Asker(tasks, part, device, trust_remote_code=trust_remote_code, turn=turn)
            return _Worker(asker, asked, tasks, store, tick)

        with quiet():
            devices.share_out(waiting, places, open_worker)
        for i, one in enumerate(asked):
            if len(records[i]) < len(one.headers):
                records[i] = store.find(one.headers)
    return [_scores(one, part, tasks, found) for one, found in zip(asked, records, strict=True)]


class _Worker:
    """Has one device ask what is missing of one candidate after the other."""

    def __init__(
        self,
        asker: Asker,
        asked: Sequence[Asked],
        tasks: TaskSet,
        store: ScoreStore,
        tick: TaskTick,
    ) -> None:
        self._asker, self._asked, self._tasks = asker, asked, tasks
        self._store, self._tick = store, tick

    def work(self, item: tuple[int, Sequence[str]]) -> None:
        number, names = item
        headers, tasks = self._asked[number].headers, self._tasks.tasks
        ways = {name: way_of(headers[name], tasks[name].way) for name in names}
        alike = self._store.alike({name: headers[name] for name in names}, ways)
        missing = [Missing(tasks[n], self._store.journal(headers[n]), alike[n]) for n in names]
        done = {}
        try:
            for name, record in self._asker.ask(self._asked[number], missing, self._tick):
                self._store.keep(headers[name], {**record, "way": ways[name]})
                done[name] = headers[name]
        finally:
            self._store.share(done.values(), [ways[name] for name in done])

    def close(self) -> None:
        self._asker.close()


def _identify(candidate: Candidate, trust: bool) -> Asked:
    words = candidate.tokenizer or candidate.path
    return Asked(
        candidate,
        model_sha256=identity.model_digest(candidate.path, trust_remote_code=trust),
        tokenizer_sha256=identity.tokenizer_digest(words, trust_remote_code=trust),
    )


def _headers(asked: Asked, tasks: TaskSet, part: str) -> dict[str, dict[str, str]]:
    headers = {}
    for name, loaded in tasks.tasks.items():
        loaded.needed_ids(part)
        headers[name] = {
            "weights_sha256": asked.candidate.weights_sha256,
            "task": name,
            "part": part,
            "digest": loaded.digests[part],
            "model_sha256": asked.model_sha256,
            "tokenizer_sha256": asked.tokenizer_sha256,
        }
    return headers


def _first_of_each(
    asked: Sequence[Asked], records: Sequence[Mapping[str, Any]], tasks: TaskSet
) -> list[tuple[int, list[str]]]:
    """(candidate, tasks that are missing), models of one configuration one after the other.

    Candidates with the same weights, configuration and tokenizer are asked once.
    """
    waiting: dict[str, tuple[int, list[str]]] = {}
    for i, one in enumerate(asked):
        missing = [name for name in tasks.tasks if name not in records[i]]
        if missing:
            waiting.setdefault(repr(one.headers), (i, missing))
    return sorted(
        waiting.values(), key=lambda w: (asked[w[0]].model_sha256, asked[w[0]].tokenizer_sha256)
    )


def _devices(spec: EvaluateSpec) -> list[Any]:
    if spec.backend == "vllm":
        from mergeops.evaluate.vllm import check_installed

        check_installed()
        return [None]  # it takes the GPUs that it finds
    return list(devices.pick_devices(spec.device))


def _scores(
    asked: Asked, part: str, tasks: TaskSet, records: Mapping[str, dict[str, Any]]
) -> Scores:
    return Scores(
        weights_sha256=asked.candidate.weights_sha256,
        part=part,
        tasks={name: _task_score(t, part, records[name]) for name, t in tasks.tasks.items()},
        settings=_settings(tasks, records),
    )


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
    for key in ("backend", "dtype", "device", "max_length", "transformers", "torch"):
        settings[key] = _joined({name: r["settings"][key] for name, r in records.items()})
    return settings


def _joined(values: Mapping[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{name}={value}" for name, value in values.items())
