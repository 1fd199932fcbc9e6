"""From a recipe and resolved sources to a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mergeops import methods
from mergeops.architectures import read_fit
from mergeops.checkpoint import BY_WORD, FLOATS
from mergeops.errors import about, locating
from mergeops.planning.alignment import read_inputs
from mergeops.planning.architecture import changed
from mergeops.planning.assembly import assemble
from mergeops.planning.companions import find_companions, result_config
from mergeops.planning.inputs import PlannedInput, config_of, has_config
from mergeops.planning.left_out import check_left_out
from mergeops.planning.measured_sources import find_measured, note_unmeasured, planned_activations
from mergeops.planning.parameters import TensorParameters, resolve_parameters
from mergeops.planning.pieces import Ingredient, Piece
from mergeops.planning.plan import Plan, TensorPart, TensorTask, cut_into_shards
from mergeops.planning.preflight import check_configs, check_sources, check_tokenizers
from mergeops.planning.result_check import check_result
from mergeops.planning.tied_heads import part_heads, tying, with_own_heads, without_copies
from mergeops.planning.tokens.vocabulary_layout import (
    VocabularyLayout,
    lay_out_vocabulary,
    resized,
)
from mergeops.planning.views import see
from mergeops.recipe import BASE, Recipe, parse_size
from mergeops.sources import Source


def make_plan(recipe: Recipe, base: Source | None, sources: Mapping[str, Source]) -> Plan:
    """Decide everything about a merge, and refuse what cannot work.

    Args:
        recipe: what the user wrote.
        base: the resolved base, where the recipe names one.
        sources: the resolved sources by the recipe's names.

    Raises:
        ConfigError: a parameter, a rule or the shard size is wrong.
        SourceError: an input's files are missing, corrupt or of an unsupported kind.
        MergeError: the inputs do not fit each other or the method.
    """
    with locating("", recipe.origins):
        return _make_plan(recipe, base, sources)


def _make_plan(recipe: Recipe, base: Source | None, sources: Mapping[str, Source]) -> Plan:
    method = methods.get(recipe.method.name)
    shard_bytes = parse_size("output.shard_size", recipe.output.shard_size)
    every = [*([base] if base else []), *(sources[name] for name in recipe.sources)]
    inputs, headers, renamed = read_inputs(every)
    planned_base, planned_sources = (inputs[0], inputs[1:]) if base else (None, inputs)
    sliced = bool(recipe.slices or recipe.modules)
    with about("method"):
        check_sources(method, planned_base, planned_sources, sliced=sliced)
    warnings = [*recipe.notes, *check_configs(inputs, recipe), *renamed]
    warnings += [note for planned in inputs for note in planned.notes]
    chosen = _tokenizer_input(recipe, inputs)
    configs = {planned.name: config_of(planned) for planned in inputs}
    headers, told = without_copies(inputs, headers)
    warnings += told
    views = see(headers, recipe.tied_head, configs)
    vocabulary, seen = None, views.inputs
    if recipe.tokenizer.source != "same":
        named, own = with_own_heads(inputs, seen)
        with about("tokenizer"):
            vocabulary, told = lay_out_vocabulary(
                recipe.tokenizer, named, own, has_base=planned_base is not None
            )
        warnings += told
        if vocabulary is not None:
            inputs, seen = named, {**resized(own, vocabulary)}
            planned_base, planned_sources = (inputs[0], inputs[1:]) if base else (None, inputs)
            chosen = _tokenizer_input(recipe, inputs)
    assembly = assemble(recipe, method, seen, configs)
    warnings += views.warnings
    if recipe.tokenizer.source == "same":
        warnings += check_tokenizers(chosen, inputs)
    with about("tokenizer"):
        template = recipe.tokenizer.chat_template
        companions, notes = find_companions(
            inputs,
            chosen,
            template,
            vocabulary,
            trust_code=recipe.trust_remote_code,
        )
    warnings += notes
    compute = recipe.dtype.compute
    if compute != "float64" and (wide := _stored_in_64_bits(assembly.pieces)):
        compute = "float64"
        warnings.append(f"{wide} is stored as float64, so the arithmetic is done in float64")
    measured = find_measured(recipe, method, planned_sources)
    tasks = _tasks(recipe, method, assembly.pieces, [planned.name for planned in inputs])
    warnings += note_unmeasured(measured, inputs, tasks)
    if recipe.missing == "leave_out" and not sliced:
        warnings += check_left_out(assembly.pieces, seen)
    shapes = {task.name: task.shape for task in tasks}
    home = next(planned.name for planned in inputs if has_config(planned))
    changes = changed(_of_adapter(inputs, vocabulary), assembly.config)
    before = changed(result_config(companions), changes)
    changes = changed(changes, tying(before, views.config, shapes))
    config = changed(before, changes)
    fit = read_fit(config, shapes)
    warnings += check_result(fit, config, shapes, home)
    untied, told = part_heads(fit, tasks, inputs, config, is_random=method.is_random)
    changes = changed(changes, untied)
    warnings += told
    return Plan(
        method=method.name,
        method_version=method.version,
        parameters=dataclasses.asdict(recipe.method.parameters),
        base=planned_base,
        sources=tuple(planned_sources),
        shards=cut_into_shards(tasks, shard_bytes),
        companions=companions,
        config=changes,
        vocabulary=vocabulary,
        compute=compute,
        seed=recipe.seed,
        recipe=recipe.weights_dict(),
        activations=planned_activations(measured),
        warnings=tuple(warnings),
    )


def _tokenizer_input(recipe: Recipe, inputs: Sequence[PlannedInput]) -> PlannedInput:
    """The input that the recipe takes the tokenizer from; ``base`` without a base is the first."""
    for planned in inputs:
        if planned.name == recipe.tokenizer.source:
            return planned
    return inputs[0]


def _of_adapter(
    inputs: Sequence[PlannedInput], vocabulary: VocabularyLayout | None
) -> dict[str, Any]:
    """What the adapter of the input that gives config.json changes in it; the size of a vocabulary
    that is laid out anew is settled with that."""
    first = next((planned for planned in inputs if has_config(planned)), inputs[0])
    changes = dict(first.config_changes)
    if vocabulary is not None:
        changes.pop("vocab_size", None)
        changes.pop("text_config", None)
    return changes


def _stored_in_64_bits(pieces: Sequence[Piece]) -> str:
    """A tensor, as ``TENSOR of INPUT``, that float32 would take digits from; empty without one."""
    for piece in pieces:
        for ingredient in piece.ingredients:
            if ingredient.stored.dtype == "F64":
                return f"{ingredient.stored.name} of {ingredient.source}"
    return ""


def _tasks(
    recipe: Recipe, method: methods.Method, pieces: Sequence[Piece], inputs: Sequence[str]
) -> list[TensorTask]:
    parameters = resolve_parameters(recipe, method, pieces)

    def part(ingredient: Ingredient) -> TensorPart:
        return TensorPart(inputs.index(ingredient.source), ingredient.stored.name)

    tasks = []
    for piece in pieces:
        dtype, kind = piece.like.dtype, "copy"
        if dtype in FLOATS:
            kind = "take" if piece.is_taken else "merge"
            dtype = BY_WORD.get(recipe.dtype.save, dtype)
        own = parameters[piece.name] if kind == "merge" else TensorParameters({}, {})
        expected = [
            TensorPart(number, piece.name)
            for number, name in enumerate(inputs)
            if name != BASE or piece.base
        ]
        # Parts are written only where they are not simply the tensors of this name.
        found = [part(ingredient) for ingredient in piece.ingredients]
        is_plain = expected == found and not piece.is_taken
        tasks.append(
            TensorTask(
                name=piece.name,
                shape=piece.like.shape,
                dtype=dtype,
                kind=kind,
                shared=own.shared,
                per_source=own.per_source,
                base=part(piece.base) if piece.base and not is_plain else None,
                sources=() if is_plain else tuple(part(source) for source in piece.sources),
            )
        )
    return tasks
