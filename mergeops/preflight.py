"""What must hold before any weight is read: the inputs fit each other and the method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mergeops.architecture import check_same_architecture
from mergeops.checkpoint.dtypes import FLOATS
from mergeops.checkpoint.header import StoredTensor
from mergeops.errors import MergeError, key_of
from mergeops.inputs import PlannedInput, config_of, has_config
from mergeops.methods import Method
from mergeops.recipe import REFUSE, Recipe
from mergeops.tokenizer import check_same_vocabulary, tokenizer_directory

Headers = Mapping[str, StoredTensor]

_LAYER = re.compile(r"(^|\.)\d+\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_FUSED = re.compile(r"\.experts\.[a-z]")


def check_sources(
    method: Method,
    base: PlannedInput | None,
    sources: Sequence[PlannedInput],
    *,
    sliced: bool = False,
) -> None:
    """The right number of sources, a base where one is needed, no source twice.

    Args:
        method: the merge method.
        base: the recipe's base.
        sources: in order.
        sliced: whether slices say how many of them a tensor has, and how often each.

    Raises:
        MergeError: says what is missing or too much.
    """
    if not sliced:
        check_source_count(method, len(sources))
    if method.needs_base and base is None:
        raise MergeError(
            f"{method.name} merges task vectors and needs a base: set base to the model that the "
            "sources were fine-tuned from"
        )
    if sliced:
        return
    seen: dict[str, str] = {}
    for source in sources:
        if source.sha256 in seen:
            raise MergeError(
                f"sources {seen[source.sha256]} and {source.name} have the same weights (sha256 "
                f"{source.sha256[:12]}); remove one, and give the other more weight if you mean it",
                at=key_of(source.name),
            )
        seen[source.sha256] = source.name


def check_source_count(method: Method, n: int) -> None:
    """Refuse too few or too many sources.

    Raises:
        MergeError: says how many the method takes.
    """
    low, high = method.min_sources, method.max_sources
    if low <= n and (high is None or n <= high):
        return
    if high is None:
        allowed = f"at least {low}"
    else:
        allowed = f"exactly {low}" if low == high else f"{low} to {high}"
    plural = "" if (high or low) == 1 else "s"
    raise MergeError(f"{method.name} takes {allowed} source{plural}, not {n}")


def check_configs(inputs: Sequence[PlannedInput], recipe: Recipe) -> list[str]:
    """Compare the config.json files, but for settings that the recipe decides; returns warnings.

    Raises:
        MergeError: different architectures.
        SourceError: a config.json is not JSON.
    """
    configs = {planned.name: config_of(planned) for planned in inputs if has_config(planned)}
    if len(configs) < 2:
        return []
    settled = ["num_hidden_layers"] if recipe.slices or recipe.modules else []
    settled += ["tie_word_embeddings"] if recipe.tied_head != REFUSE else []
    mixed = recipe.mixed_architectures != REFUSE
    return check_same_architecture(configs, settled, mixed=mixed)


def check_tensors(headers: Mapping[str, Headers]) -> None:
    """Every input has the first one's tensors, in the same shapes, and whole numbers alike.

    Raises:
        MergeError: names the tensors, the inputs, what differs and what to do.
    """
    (first, reference), *others = headers.items()
    for name, theirs in others:
        check_same_experts(first, reference, name, theirs)
        _check_names(first, reference, name, theirs)
        pairs = [(stored, theirs[tensor]) for tensor, stored in reference.items()]
        other_shapes = [pair for pair in pairs if pair[0].shape != pair[1].shape]
        if other_shapes:
            raise MergeError(_shape_message(first, name, other_shapes), at=key_of(name))
        for ours, other in pairs:
            check_fit(ours.name, [(first, ours), (name, other)])


def check_fit(tensor: str, inputs: Sequence[tuple[str, StoredTensor]]) -> None:
    """One tensor's inputs have one shape, and are all real numbers or all of one other kind.

    Raises:
        MergeError: names the tensor, the inputs and what differs.
    """
    (first, stored), *others = inputs
    for name, other in others:
        if other.shape != stored.shape:
            raise MergeError(_shape_message(first, name, [(stored, other)]), at=key_of(name))
        if (stored.dtype in FLOATS) != (other.dtype in FLOATS) or (
            stored.dtype not in FLOATS and stored.dtype != other.dtype
        ):
            raise MergeError(
                f"{tensor} is {stored.dtype} in {first} and {other.dtype} in {name}; only real "
                "numbers can be converted",
                at=key_of(name),
            )


def check_same_experts(first: str, reference: Headers, name: str, theirs: Headers) -> None:
    """Both inputs keep their experts one by one, or both in one tensor.

    Raises:
        MergeError: says who keeps them how, and what to do.
    """
    examples = {}
    for label, tensors in ((first, reference), (name, theirs)):
        found = next((tensor for tensor in tensors if _EXPERT.search(tensor)), None)
        fused = next((tensor for tensor in tensors if _FUSED.search(tensor)), None)
        examples[label] = (found, fused)
    for one, other in ((first, name), (name, first)):
        single, fused = examples[one][0], examples[other][1]
        if single and fused and not examples[one][1] and not examples[other][0]:
            raise MergeError(
                f"{one} has a tensor for each expert ({single}), {other} has the experts of a "
                f"layer in one ({fused}); save both with one version of transformers, e.g. "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
                at=key_of(name),
            )


def check_tokenizers(chosen: PlannedInput, inputs: Sequence[PlannedInput]) -> list[str]:
    """Compare every input's vocabulary with the chosen one's; returns warnings.

    Raises:
        MergeError: two inputs mean different tokens by one id.
    """
    directories = {}
    for planned in [chosen, *(other for other in inputs if other is not chosen)]:
        directory = tokenizer_directory(planned.directories)
        if directory is not None:
            directories[planned.name] = directory
    return check_same_vocabulary(directories)


def _check_names(first: str, reference: Headers, name: str, theirs: Headers) -> None:
    missing = [tensor for tensor in reference if tensor not in theirs]
    extra = [tensor for tensor in theirs if tensor not in reference]
    if not missing and not extra:
        return
    what = []
    if missing:
        what.append(f"lacks {len(missing)} tensor(s) that {first} has ({_few(missing)})")
    if extra:
        what.append(f"has {len(extra)} tensor(s) that {first} does not have ({_few(extra)})")
    lacking, having = (name, first) if missing else (first, name)
    remedy = "set missing=leave_out to merge such tensors from the inputs that have them"
    if len(missing) == len(reference):
        remedy = "the names have nothing in common: are both of one architecture?"
    elif any(_LAYER.search(tensor) for tensor in [*missing, *extra]) and _layers(
        reference
    ) != _layers(theirs):
        remedy = f"{lacking} has fewer layers than {having}; choose the same ones with slices"
    raise MergeError(f"{name} {' and '.join(what)}; {remedy}", at=key_of(name))


def _layers(tensors: Headers) -> set[str]:
    return {found.group() for tensor in tensors if (found := _LAYER.search(tensor))}


def _few(names: Sequence[str], n: int = 3) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{', '.join(names[:n])}{more}"


def _shape_message(
    first: str, name: str, pairs: Sequence[tuple[StoredTensor, StoredTensor]]
) -> str:
    ours, theirs = pairs[0]
    if all(_is_vocabulary(*pair) for pair in pairs):
        return (
            f"vocabulary sizes differ: {ours.name} has {ours.shape[0]} rows in {first} and "
            f"{theirs.shape[0]} in {name}; rows are matched by token with tokenizer.source=base "
            f"(the tokens of {first}), tokenizer.source={name} (those of {name}) or "
            "tokenizer.source=union (all of them); in mergekit's YAML, tokenizer_source"
        )
    listed = "; ".join(
        f"{a.name} is {list(a.shape)} in {first} and {list(b.shape)} in {name}"
        for a, b in pairs[:3]
    )
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    count = f"{len(pairs)} tensors have other shapes: " if len(pairs) > 1 else ""
    return (
        f"{count}{listed}{more}; models of different sizes have "
        "no entries in common to merge: choose fine-tunes of one model"
    )


def _is_vocabulary(ours: StoredTensor, theirs: StoredTensor) -> bool:
    return any(word in ours.name for word in ("embed", "wte", "lm_head")) and (
        ours.shape[1:] == theirs.shape[1:]
    )
