"""What the engine does with each tensor of the result, looked up in the plan once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mergeops import methods
from mergeops.engine.lanes import InputTensor
from mergeops.planning import (
    Plan,
    PlannedInput,
    TensorTask,
    layer_depths,
    layer_of,
    names_token_rows,
)


@dataclass(frozen=True)
class Job:
    """One tensor of the result and everything that it is made from."""

    task: TensorTask
    parts: tuple[InputTensor, ...]
    """The base first, where the method uses one, then the sources."""
    has_base: bool
    parameters: Any
    """The method's parameters, with those that the rules set for this tensor."""
    depth: float | None
    """As ``MethodView.depth``."""

    @property
    def view(self) -> methods.MethodView:
        """What is known of the tensor before anything of it is read, but for random keys."""
        return methods.MethodView(
            numel=self.task.numel,
            per_source=self.task.per_source,
            shape=self.task.shape,
            has_token_rows=names_token_rows(self.task.name),
            depth=self.depth,
        )


@dataclass(frozen=True)
class Work:
    """All of a plan's jobs."""

    method: methods.Method
    inputs: tuple[PlannedInput, ...]
    """Those that are read; ``InputTensor.reader`` is a position among them."""
    jobs: dict[str, Job]
    """By the name of the tensor."""

    def keys(self, job: Job, seed: int) -> tuple[int, ...]:
        """A random key for each source, another one for each tensor and each time it is read."""
        if not self.method.is_random:
            return ()
        name = job.task.name
        sources = job.parts[job.has_base :]
        keys = []
        for i, part in enumerate(sources):
            drawn_for = name if part.tensor == name else f"{name} of {part.tensor}"
            if repeated := sources[:i].count(part):
                drawn_for = f"{drawn_for} {repeated}"
            keys.append(methods.random_key(seed, self.inputs[part.reader].sha256, drawn_for))
        return tuple(keys)


def work_of(plan: Plan) -> Work:
    """Look up what every tensor of a plan's result is made from."""
    method = methods.get(plan.method)
    parameters = method.parameters(**plan.parameters)
    uses_base = method.uses_base(plan.base is not None)
    first_used = 1 if plan.base is not None and not uses_base else 0
    depths = layer_depths(task.name for task in plan.tasks)
    parts: dict[str, list[tuple[int, str]]] = {}
    for task in plan.tasks:
        named = [*([task.base] if task.base else []), *task.sources]
        parts[task.name] = [(part.input, part.tensor) for part in named] or [
            (number, task.name) for number in range(first_used, len(plan.inputs))
        ]
    read = sorted({number for pairs in parts.values() for number, _ in pairs})
    readers = {number: reader for reader, number in enumerate(read)}
    return Work(
        method,
        tuple(plan.inputs[number] for number in read),
        {
            task.name: Job(
                task,
                tuple(InputTensor(readers[number], name) for number, name in parts[task.name]),
                task.base is not None if task.sources else uses_base,
                dataclasses.replace(parameters, **task.shared),
                depths[task.name] if layer_of(task.name) else None,
            )
            for task in plan.tasks
        },
    )
