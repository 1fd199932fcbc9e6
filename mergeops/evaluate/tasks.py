"""Load tasks and split their items, so that their errors are found before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.catalogue import Catalogue, first_line
from mergeops.evaluate.checks import check_built
from mergeops.evaluate.golds import warn_of_golds
from mergeops.evaluate.how_asked import ENGINE_KEYS, digest_of_settings, how_asked, settings_of
from mergeops.evaluate.metric_choice import choose_metric, direction, other_than_usual
from mergeops.evaluate.metric_kinds import aggregation_of, kind_of
from mergeops.evaluate.silence import quiet
from mergeops.evaluate.split import item_digest, part_ids, split_units
from mergeops.recipe import EvaluateSpec
from mergeops.schema import did_you_mean
from mergeops.scores import CORPUS, PARTS, GroupRule


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
    clusters: Mapping[int, str]
    """Position in ``docs`` -> what names the item's cluster; items in none are not here."""
    higher_is_better: bool
    """Direction of the chosen metric."""
    chosen: str
    """Metric and filter, where they are others than without a choice; else empty."""
    how: Mapping[str, str]
    """How items are asked and counted, by what it is called in messages."""

    @property
    def version(self) -> str:
        """The task's version as its author counts it."""
        return str(self.task.VERSION)

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
    groups: Mapping[str, GroupRule] = field(default_factory=dict)
    """Those that ``spec.tasks`` names and lm-eval gives a number by the chosen metrics."""
    requests: dict[tuple[str, str, str | None], list[Any]] = field(default_factory=dict)
    """(task, part, tokenizer where prompts depend on it) -> lm-eval instances, built once."""
    encodings: dict[str, dict[tuple[str, bool | None], list[int]]] = field(default_factory=dict)
    """Tokenizer digest -> text -> token ids: models of one family share their tokenizer."""


def load_tasks(spec: EvaluateSpec) -> TaskSet:
    """Load every task that ``spec.tasks`` names and split its items into dev and confirm.

    Raises:
        EvaluationError: unknown task, broken YAML, unknown metric, a metric whose direction nobody
            says, missing data, no network, a task named twice, too few few-shot examples.
    """
    if not spec.tasks:
        raise EvaluationError(
            "evaluate.tasks is empty; name tasks or task files, e.g. evaluate.tasks=[my_task]"
        )
    loaded: dict[str, LoadedTask] = {}
    named_by: dict[str, str] = {}
    groups: dict[str, GroupRule] = {}
    with quiet():
        catalogue = Catalogue(spec.include_path)
        for entry in (name for pattern in spec.tasks for name in catalogue.expand(pattern)):
            tasks, group = catalogue.build(entry)
            aggregated = (group and group.aggregate_metric_list) or []
            for task in tasks:
                name = str(task.task_name)
                if name in loaded:
                    raise EvaluationError(
                        f"evaluate.tasks has task {name!r} twice: by {named_by[name]!r} and by "
                        f"{entry!r}"
                    )
                named_by[name] = entry
                loaded[name] = _load(name, task, spec, aggregated)
            members = [loaded[str(task.task_name)] for task in tasks]
            if (by_size := _rule(members, aggregated)) is not None:
                groups[group.name] = GroupRule(tuple(task.name for task in members), by_size)
    for key in ("metrics", "higher_is_better"):
        for name in getattr(spec, key):
            if name not in loaded:
                raise EvaluationError(
                    f"evaluate.{key} names task {name!r}, which is not scored; "
                    f"{did_you_mean(name, loaded)}the tasks are: {', '.join(loaded)}"
                )
    return TaskSet(spec, loaded, groups)


def _set_generation(name: str, task: Any, spec: EvaluateSpec) -> None:
    """Give a task that lets the model write the recipe's settings, as lm-eval's --gen_kwargs does.

    Raises:
        EvaluationError: the model is to think, and the task reads log-likelihoods.
    """
    if task.OUTPUT_TYPE == "generate_until":
        if spec.gen_kwargs:
            task.set_config("generation_kwargs", dict(spec.gen_kwargs), update=True)
    elif spec.enable_thinking and task.OUTPUT_TYPE != "loglikelihood_rolling":
        raise EvaluationError(
            f"task {name} compares log-likelihoods of answers, for which lm-eval lets no model "
            "think first; name tasks that let the model write, or set "
            "evaluate.enable_thinking=false"
        )


def _rule(members: Sequence[LoadedTask], aggregated: Sequence[Any]) -> bool | None:
    """Whether lm-eval counts each task of a group as often as it has items, or once; None where it
    has no number of the group by the metric and filter that all its tasks are scored by."""
    chosen = {(task.metric, task.filter) for task in members}
    if len(chosen) != 1:
        return None
    [(metric, of)] = chosen
    for each in aggregated:
        if each.metric == metric and (each.filter_list is None or of in each.filter_list):
            return bool(each.weight_by_size)
    return None


def _load(name: str, task: Any, spec: EvaluateSpec, aggregated: Sequence[Any]) -> LoadedTask:
    check_built(name, task)
    try:
        docs = tuple(task.eval_docs)
    except Exception as error:
        raise EvaluationError(
            f"task {name}: its items cannot be read: {first_line(error)}"
        ) from error
    _set_generation(name, task, spec)
    metric, chosen_filter = choose_metric(name, spec.metrics.get(name), task, docs, aggregated)
    higher_is_better = direction(name, metric, task, spec.higher_is_better)
    num_fewshot = _num_fewshot(task, spec)
    items = [item_digest(doc) for doc in docs]
    cluster_field = spec.clusters.get(name)
    examples = _examples(task) if num_fewshot else []
    with _templates_kept():
        marks = [_marks(task, doc, cluster_field) for doc in docs]
        example_marks = [set(_marks(task, doc, cluster_field)) - {None} for doc, _ in examples]
        warn_of_golds(name, task, docs)
    split = partial(
        part_ids,
        items,
        units=split_units(items, *zip(*marks, strict=True)) if marks else [],
        confirm_fraction=spec.confirm_fraction,
        salt=spec.split_salt,
    )
    settings = settings_of(name, task, num_fewshot, spec)
    way = digest_of_settings(settings)
    ids, pools, digests, asked = {}, {}, {}, {}
    for part, other in zip(PARTS, reversed(PARTS), strict=True):
        ids[part] = split(part, limit=spec.limit)
        hidden = {mark for i in split(other, limit=None) for mark in marks[i]}
        pool = [e for e, own in zip(examples, example_marks, strict=True) if not own & hidden]
        pools[part] = tuple(doc for doc, _ in pool)
        if ids[part]:
            _check_pool(name, part, num_fewshot, len(pool), len(examples))
        if num_fewshot:
            settings["fewshot_pool"] = [digest for _, digest in pool]
        whole = {**settings, "items": [[i, items[i]] for i in ids[part]]}
        if kind_of(aggregation_of(task, metric)).kind == CORPUS:
            # The items are drawn again for this metric, clusters whole, and the draws are kept.
            whole["drawn"] = [metric, chosen_filter, cluster_field]
        digests[part] = digest_of_settings(whole)
        asked[part] = digest_of_settings({k: v for k, v in whole.items() if k not in ENGINE_KEYS})
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
        clusters={i: cluster for i, (_, cluster) in enumerate(marks) if cluster is not None},
        higher_is_better=higher_is_better,
        chosen=other_than_usual(name, metric, chosen_filter, task, docs),
        how=how_asked(settings, chosen_filter),
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
            f"{num_fewshot}; set evaluate.num_fewshot, or name another split of its data as the "
            "fewshot_split in the task's file"
        )
