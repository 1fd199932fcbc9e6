"""From a task to requests, and from a model's answers to values for each item.

This is lm-eval's ``evaluate()`` for one task and one part of its items, with three differences: the
requests are built once for all models; an item keeps its own position as its id, whichever items
are asked; and answers that are no numbers are an error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.evaluate.catalogue import first_line
from mergeops.evaluate.draws import replicates
from mergeops.evaluate.metric_kinds import Aggregation, aggregation_of, kind_of
from mergeops.evaluate.tasks import LoadedTask
from mergeops.recipe import EvaluateSpec
from mergeops.scores import CORPUS


def build_requests(
    loaded: LoadedTask, part: str, spec: EvaluateSpec, chat_template: Callable[..., str] | None
) -> list[Any]:
    """The lm-eval instances of one part, in item order.

    Args:
        chat_template: renders turns; None for plain text.

    Raises:
        EvaluationError: a prompt cannot be made, e.g. its template names a field that is missing.
    """
    task = loaded.task
    # The sampler's state moves on with every draw: without this, a second model would be asked
    # with other examples.
    task.set_fewshot_seed(spec.seed)
    if loaded.pools[part]:
        task.sampler.replace_df(loaded.pools[part])
        task.sampler.fewshot_indices = None  # they were applied when the pool was made
    chat = {"apply_chat_template": chat_template is not None, "chat_template": chat_template}
    instances = []
    for doc_id in loaded.needed_ids(part):
        doc = loaded.docs[doc_id]
        try:
            context = task.fewshot_context(
                doc,
                num_fewshot=loaded.num_fewshot,
                system_instruction=spec.system_instruction,
                fewshot_as_multiturn=spec.fewshot_as_multiturn,
                gen_prefix=task.doc_to_prefix(doc),
                **chat,
            )
            built = task.construct_requests(
                doc=doc,
                ctx=context,
                metadata=(loaded.name, doc_id, task.get_config("repeats") or 1),
                **chat,
            )
        except Exception as error:
            raise EvaluationError(
                f"task {loaded.name}, item {doc_id}: the prompt cannot be made: {first_line(error)}"
            ) from error
        instances.extend(built if isinstance(built, list) else [built])
    return instances


def ask(instances: Sequence[Any], model: Any) -> list[list[Any]]:
    """Send instances to an lm-eval model.

    Returns:
        The answers to each instance, as many as its ``repeats``: (log-likelihood, is greedy),
        log-likelihood, or text.
    """
    answers: list[list[Any]] = [[] for _ in instances]
    by_kind = defaultdict(list)
    for i, instance in enumerate(instances):
        by_kind[instance.request_type].extend([i] * instance.repeats)
    for kind, numbers in by_kind.items():
        send = getattr(model, kind)
        responses = send([instances[i] for i in numbers], disable_tqdm=True)
        for i, response in zip(numbers, responses, strict=True):
            answers[i].append(response)
    return answers


def check_finite(
    task: str, instances: Sequence[Any], answers: Sequence[Sequence[Any]], model: Path
) -> None:
    """Refuse answers that are no numbers.

    Raises:
        EvaluationError: a log-likelihood is NaN or infinite.
    """
    for instance, responses in zip(instances, answers, strict=True):
        for response in responses:
            score = response[0] if isinstance(response, tuple) else response
            if isinstance(score, float) and not math.isfinite(score):
                raise EvaluationError(
                    f"model {model} gives a log-likelihood of {score} on item {instance.doc_id} of "
                    f"task {task}; its numbers overflow: try evaluate.dtype=float32"
                )


def score_answers(
    loaded: LoadedTask, instances: Sequence[Any], answers: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """What is kept of one scored task, as plain JSON types.

    The instances are shared by all models, so only one thread at a time may be in here.

    Args:
        answers: to each instance, as ``ask`` returns them.

    Returns:
        ``metrics``: "metric,filter" -> its value and kind over all items, or why it has none;
        ``items``: one dict an item with its id, hashes, answers, and for each "metric,filter" its
        value and, where that is not 1, its weight.

    Raises:
        EvaluationError: the task's own code for items or filters fails.
    """
    task = loaded.task
    task._instances = list(instances)  # where apply_filters looks
    by_item = defaultdict(list)
    for instance, responses in zip(instances, answers, strict=True):
        # From JSON, a pair is a list.
        instance.resps = [tuple(r) if isinstance(r, list) else r for r in responses]
        instance.filtered_resps = {}
        by_item[instance.doc_id].append(instance)
    raw: dict[str, dict[int, Any]] = defaultdict(dict)
    functions: dict[str, Aggregation] = {}
    where = loaded.name
    try:
        task.apply_filters()
        for filtered in instances[0].filtered_resps:
            for doc_id, own in by_item.items():
                where = f"{loaded.name}, item {doc_id}"
                own.sort(key=lambda instance: instance.idx)
                own_answers = [instance.filtered_resps[filtered] for instance in own]
                results = task.process_results(loaded.docs[doc_id], own_answers)
                for metric, value in results.items():
                    key = f"{metric},{filtered}"
                    raw[key][doc_id] = value
                    functions[key] = aggregation_of(task, metric)
    except Exception as error:
        raise EvaluationError(
            f"task {where}: its metric cannot be computed: {first_line(error)}"
        ) from error
    items = {
        doc_id: {
            "doc_id": doc_id,
            **item_hashes(task, loaded.docs[doc_id], own),
            "answers": [instance.resps for instance in own],
            "values": {},
            "weights": {},
        }
        for doc_id, own in by_item.items()
    }
    metrics = {
        key: _counted(loaded, key, functions[key], values, items) for key, values in raw.items()
    }
    return {"metrics": metrics, "items": list(items.values())}


def _counted(
    loaded: LoadedTask,
    key: str,
    function: Aggregation,
    raw: Mapping[int, Any],
    items: Mapping[int, dict[str, Any]],
) -> dict[str, Any]:
    """A metric's value and what it is of the items, which get their values; or why there is none.

    Only a mean has a standard error here, as lm-eval's others are bootstraps.
    """
    from lm_eval.api.metrics import mean, mean_stderr

    kind, values = kind_of(function), list(raw.values())
    counted: dict[str, Any] = {"kind": kind.kind, "by_log": kind.by_log}
    try:
        value = float(function(values))
        if not math.isfinite(value):
            raise ValueError(f"its value is {value}")
        stderr = float(mean_stderr(values)) if function is mean and len(values) > 1 else math.nan
        for doc_id, item in raw.items():
            if (contribution := kind.contribution(item)) is not None:
                items[doc_id]["values"][key], weight = contribution
                if weight != 1.0:
                    items[doc_id]["weights"][key] = weight
        if kind.kind == CORPUS and key == f"{loaded.metric},{loaded.filter}":
            labels = [loaded.clusters.get(doc_id, f"#{doc_id}") for doc_id in raw]
            counted["replicates"] = replicates(function, values, loaded.name, labels)
    # A metric that is not chosen may fail; whoever chooses it is told why.
    except Exception as error:
        return {**counted, "value": None, "stderr": None, "error": first_line(error)}
    return {**counted, "value": value, "stderr": stderr if math.isfinite(stderr) else None}


def item_hashes(task: Any, doc: Any, instances: list[Any]) -> Mapping[str, str]:
    """As lm-eval's samples have them, but the prompt's covers every choice, not the first only."""
    from lm_eval.utils import handle_non_serializable, hash_string

    def text(value: Any, **options: Any) -> str:
        return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **options)

    prompts = text([instance.args for instance in instances]).encode("utf-8", "surrogatepass")
    return {
        "doc_hash": hash_string(text(doc, indent=2)),
        "prompt_hash": hashlib.sha256(prompts).hexdigest(),
        "target_hash": hash_string(str(task.doc_to_target(doc))),
    }
