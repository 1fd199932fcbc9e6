"""Load tasks and split their items, so that their errors are found before a model is loaded."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.catalogue import Catalogue, first_line
from mergeops.evaluate.checks import check_built, choose_metric
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.split import item_digest, part_ids, split_units
from mergeops.recipe import EvaluateSpec
from mergeops.schema import did_you_mean
from mergeops.scores import PARTS

_ENGINE_KEYS = ("dtype", "backend", "batch_size", "lm_eval", "transformers")
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


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedTask:
    """One lm-eval task, its items and how it is scored."""

    name: str
    task: Any
    """The lm-eval Task object."""
    metric: str
    filter: str
    """Name of the lm-eval filter whose output the metric is taken on."""
    num_fewshot: int
    docs: tuple[Any, ...]
    """All items."""
    ids: Mapping[str, tuple[int, ...]]
    """Part -> ascending positions in ``docs``."""
    pools: Mapping[str, tuple[Any, ...]]
    """Part -> examples that its prompts may show: none that is an item of the other part."""
    digests: Mapping[str, str]
    """Part -> sha256 of everything that decides questions and answers, the model apart."""
    asked: Mapping[str, str]
    """Part -> sha256 of the questions alone: whatever computes the answers is left out."""
    way: str
    """sha256 of everything that decides how an item is asked, whichever items they are."""

    @property
    def version(self) -> str:
        """The task's version as its author counts it."""
        return str(self.task.VERSION)

    @property
    def higher_is_better(self) -> bool:
        """Direction of the chosen metric."""
        return self.task.higher_is_better().get(self.metric) is not False

    def needed_ids(self, part: str) -> tuple[int, ...]:
        """The items of a part.

        Raises:
            EvaluationError: there are none.
        """
        if not self.ids[part]:
            raise EvaluationError(
                f"task {self.name} has no items in its {part} part: {len(self.docs)} items in all; "
                "change evaluate.confirm_fraction or evaluate.split_salt, or use more items"
            )
        return self.ids[part]


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Tasks by name, in the recipe's order, and what is kept of them between models."""

    spec: EvaluateSpec
    tasks: Mapping[str, LoadedTask]
    requests: dict[tuple[str, str, str | None], list[Any]] = field(default_factory=dict)
    """(task, part, tokenizer where prompts depend on it) -> lm-eval instances, built once."""
    encodings: dict[str, dict[tuple[str, bool | None], list[int]]] = field(default_factory=dict)
    """Tokenizer digest -> text -> token ids: models of one family share their tokenizer."""


def load_tasks(spec: EvaluateSpec) -> TaskSet:
    """Load every task that ``spec.tasks`` names and split its items into dev and confirm.

    Raises:
        EvaluationError: unknown task, broken YAML, unknown metric, missing data, no network,
            a task named twice, too few few-shot examples.
    """
    if not spec.tasks:
        raise EvaluationError(
            "evaluate.tasks is empty; name tasks or task files, e.g. evaluate.tasks=[my_task]"
        )
    loaded: dict[str, LoadedTask] = {}
    named_by: dict[str, str] = {}
    with quiet():
        catalogue = Catalogue(spec.include_path)
        for entry in (name for pattern in spec.tasks for name in catalogue.expand(pattern)):
            for task in catalogue.build(entry):
                name = str(task.task_name)
                if name in loaded:
                    raise EvaluationError(
                        f"evaluate.tasks has task {name!r} twice: by {named_by[name]!r} and by "
                        f"{entry!r}"
                    )
                named_by[name] = entry
                loaded[name] = _load(name, task, spec)
    for name in spec.metrics:
        if name not in loaded:
            raise EvaluationError(
                f"evaluate.metrics names task {name!r}, which is not scored; "
                f"{did_you_mean(name, loaded)}the tasks are: {', '.join(loaded)}"
            )
    return TaskSet(spec, loaded)


def _load(name: str, task: Any, spec: EvaluateSpec) -> LoadedTask:
    check_built(name, task)
    metric, chosen_filter = choose_metric(
        name,
        spec.metrics.get(name),
        task.aggregation(),
        [ensemble.name for ensemble in task._filters],
    )
    try:
        docs = tuple(task.eval_docs)
    except Exception as error:
        raise EvaluationError(
            f"task {name}: its items cannot be read: {first_line(error)}"
        ) from error
    num_fewshot = _num_fewshot(task, spec)
    items = [item_digest(doc) for doc in docs]
    cluster_field = spec.clusters.get(name)
    examples = _examples(task) if num_fewshot else []
    with _templates_kept():
        marks = [_marks(task, doc, cluster_field) for doc in docs]
        example_marks = [set(_marks(task, doc, cluster_field)) - {None} for doc, _ in examples]
    split = partial(
        part_ids,
        items,
        units=split_units(items, *zip(*marks, strict=True)) if marks else [],
        confirm_fraction=spec.confirm_fraction,
        salt=spec.split_salt,
    )
    settings = _settings(name, task, num_fewshot, spec)
    way = _digest(settings)
    ids, pools, digests, asked = {}, {}, {}, {}
    for part, other in zip(PARTS, reversed(PARTS), strict=True):
        ids[part] = split(part, limit=spec.limit)
        hidden = {mark for i in split(other, limit=None) for mark in marks[i]}
        pool = [e for e, own in zip(examples, example_marks, strict=True) if not own & hidden]
        pools[part] = tuple(doc for doc, _ in pool)
        _check_pool(name, part, num_fewshot, len(pool), len(examples))
        if num_fewshot:
            settings["fewshot_pool"] = [digest for _, digest in pool]
        whole = {**settings, "items": [[i, items[i]] for i in ids[part]]}
        digests[part] = _digest(whole)
        asked[part] = _digest({k: v for k, v in whole.items() if k not in _ENGINE_KEYS})
    return LoadedTask(
        name=name,
        task=task,
        metric=metric,
        filter=chosen_filter,
        num_fewshot=num_fewshot,
        docs=docs,
        ids=ids,
        pools=pools,
        digests=digests,
        asked=asked,
        way=way,
    )


@contextmanager
def _templates_kept() -> Iterator[None]:
    """In the block lm-eval compiles each template once, not for every item, which takes 1 ms."""
    from lm_eval.utils import env

    env.from_string = lru_cache(env.from_string)
    try:
        yield
    finally:
        del env.from_string


def _marks(task: Any, doc: Any, field: str | None) -> tuple[str, str | None]:
    """Digests of what an item asks, and of its cluster; None where it is in none.

    Where a prompt cannot be made, which is an error when it is asked, the whole item counts.
    """
    try:
        choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
        question = [task.doc_to_text(doc), choices, task.doc_to_target(doc)]
    except Exception:
        question = doc
    shared = doc.get(field) if field else None
    return item_digest(question), None if shared is None else item_digest([field, shared])


def _num_fewshot(task: Any, spec: EvaluateSpec) -> int:
    """In-context examples, by lm-eval's rule: a task whose YAML says 0 keeps 0."""
    own = task.get_config("num_fewshot")
    shots = int(own or 0) if spec.num_fewshot is None or own == 0 else spec.num_fewshot
    task.set_config("num_fewshot", shots)
    return shots


def _examples(task: Any) -> list[tuple[Any, str]]:
    """What prompts may show, with digests; none where the task's own code draws them."""
    sampler = getattr(task, "sampler", None)
    docs = [] if sampler is None else sampler.fewshot_docs()
    return [(doc, item_digest(doc)) for doc in docs]


def _check_pool(name: str, part: str, num_fewshot: int, left: int, examples: int) -> None:
    if examples and num_fewshot > left:
        lost = examples - left
        why = f" for its {part} part, {lost} more being items of the other part" if lost else ""
        raise EvaluationError(
            f"task {name} has {left} examples to draw from{why}, fewer than num_fewshot "
            f"{num_fewshot}"
        )


def _settings(name: str, task: Any, num_fewshot: int, spec: EvaluateSpec) -> dict[str, Any]:
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
    if not type(task).__module__.startswith("lm_eval.api."):
        settings["class"] = _code(type(task))
    return settings


def _digest(settings: Mapping[str, Any]) -> str:
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
        return _digest({"of": function.func, "with": [function.args, function.keywords]})
    kind = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = Path(inspect.getfile(kind))
        own = str(kind.__module__).partition(".")[0] != "lm_eval"
        files = sorted(file.parent.glob("*.py")) if own else [file]
        sources = [[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in files]
    except (TypeError, OSError):
        sources = []
    return f"{kind.__qualname__}:{_digest({'sources': sources})}"
