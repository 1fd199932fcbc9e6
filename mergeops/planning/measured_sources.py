"""What was measured of a merge's sources, for methods that need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeops.activations import Measured, find, prompts_sha256
from mergeops.errors import MergeError
from mergeops.methods import Method
from mergeops.planning.inputs import PlannedInput
from mergeops.planning.plan import PlannedActivations, TensorPart, TensorTask
from mergeops.planning.tokens.vocabulary import names_token_rows
from mergeops.recipe import Recipe


def find_measured(
    recipe: Recipe, method: Method, sources: Sequence[PlannedInput]
) -> dict[str, Measured]:
    """What was measured of each source by its prompts, by its name; nothing where the method needs
    nothing.

    Raises:
        ConfigError: there is no such file of prompts.
        MergeError: a source was not measured yet.
    """
    files, found = recipe.prompts, {}
    for source in sources if files else ():
        file = files[source.name]
        prompts = prompts_sha256(file)
        measured = find(Path(recipe.output.dir), method.activations, source.sha256, prompts)
        if measured is None:
            raise MergeError(
                f"the activations of {source.name} are not measured by {file} yet; "
                "`mergeops statistics make` with this recipe does it"
            )
        found[source.name] = measured
    return found


def planned_activations(measured: Mapping[str, Measured]) -> tuple[PlannedActivations, ...]:
    """As the plan has them."""
    return tuple(PlannedActivations(one.path, one.sha256) for one in measured.values())


def disk_name(planned: PlannedInput, tensor: str) -> str | None:
    """The name on disk of an input's tensor; None of one that is cut out of another."""
    return None if tensor in planned.cut else planned.renamed.get(tensor, tensor)


def note_unmeasured(
    measured: Mapping[str, Measured],
    inputs: Sequence[PlannedInput],
    tasks: Sequence[TensorTask],
) -> list[str]:
    """Say which matrices get the mean, since nothing was measured of them in some source, and
    which prompts were cut."""
    if not measured:
        return []
    notes = [
        f"{one.cut} of {one.prompts} prompts are longer than {name} reads, and lost their end"
        for name, one in measured.items()
        if one.cut
    ]
    lacking = []
    for task in tasks:
        if task.kind != "merge" or len(task.shape) not in (2, 3) or names_token_rows(task.name):
            continue
        parts = task.sources or [
            TensorPart(number, task.name)
            for number, planned in enumerate(inputs)
            if planned.name in measured
        ]
        for part in parts:
            layers = measured[inputs[part.input].name].layers
            layer = layers.get(disk_name(inputs[part.input], part.tensor) or "")
            if layer is None or not layer["tokens"]:
                lacking.append(f"{task.name} of {inputs[part.input].name}")
                break
    if not lacking:
        return notes
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return [
        *notes,
        f"nothing was measured of {lacking[0]}{more}: no prompt came by, or it is no linear layer "
        "of its own; such matrices get the mean",
    ]
