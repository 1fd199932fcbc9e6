"""What must hold before any weight is read: the inputs fit each other and the method."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mergeops.adapters import LABEL_HEADS
from mergeops.architectures import token_rows, with_token_rows
from mergeops.checkpoint import (
    FLOATS,
    StoredTensor,
    TokenizerFile,
    read_small,
    tokenizer_directory,
)
from mergeops.errors import MergeError, key_of
from mergeops.methods import Method, check_source_count
from mergeops.planning.config_check import check_same_architecture
from mergeops.planning.inputs import PlannedInput, config_of, has_config
from mergeops.planning.tokens.vocabulary import (
    has_vocabulary,
    names_token_rows,
    read_vocabulary,
)
from mergeops.recipe import Recipe

Headers = Mapping[str, StoredTensor]

_LAYER = re.compile(r"(^|\.)\d+\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_FUSED = re.compile(r"\.experts\.[a-z]")
_HEAD = re.compile(rf"(^|\.)({'|'.join(LABEL_HEADS)})\.")


def check_sources(
    method: Method,
    base: PlannedInput | None,
    sources: Sequence[PlannedInput],
    *,
    sliced: bool = False,
) -> None:
    """The right number of sources, a base where one is needed, no source twice.

    Where the recipe is ``sliced``, its slices say which sources a tensor has, and how often.

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
        # Those that are not hashed yet were seen to differ.
        if source.sha256 and source.sha256 in seen:
            raise MergeError(
                f"sources {seen[source.sha256]} and {source.name} have the same weights (sha256 "
                f"{source.sha256[:12]}); remove one, and give the other more weight if you mean it",
                at=key_of(source.name),
            )
        seen[source.sha256] = source.name


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
    settled += ["tie_word_embeddings"] if recipe.tied_head != "refuse" else []
    mixed = recipe.mixed_architectures == "allow"
    return check_same_architecture(configs, settled, mixed=mixed)


def check_tensors(headers: Mapping[str, Headers]) -> None:
    """Every input has the first one's tensors, in the same shapes, and whole numbers alike.

    Raises:
        MergeError: names the tensors, the inputs, what differs and what to do.
    """
    (first, reference), *others = headers.items()
    for name, theirs in others:
        _check_same_experts(first, reference, name, theirs)
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


def check_experts(headers: Mapping[str, Headers]) -> None:
    """All inputs keep their experts alike.

    Raises:
        MergeError: says which input keeps them how, and what to do.
    """
    (first, reference), *others = headers.items()
    for name, theirs in others:
        _check_same_experts(first, reference, name, theirs)


def _check_same_experts(first: str, reference: Headers, name: str, theirs: Headers) -> None:
    examples = {}
    for label, tensors in ((first, reference), (name, theirs)):
        single = next((tensor for tensor in tensors if _EXPERT.search(tensor)), None)
        fused = next((tensor for tensor in tensors if _FUSED.search(tensor)), None)
        examples[label] = (single, fused)
    for one, other in ((first, name), (name, first)):
        single, fused = examples[one][0], examples[other][1]
        if single and fused and not examples[one][1] and not examples[other][0]:
            raise MergeError(
                f"{one} has a tensor for each expert ({single}), {other} has the experts of a "
                f"layer in one ({fused}); bring {one} into the layout of {other} with transformers "
                "5: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, "
                "save_original_format=False)",
                at=key_of(name),
            )


def check_tokenizers(chosen: PlannedInput, inputs: Sequence[PlannedInput]) -> list[str]:
    """Compare every input's tokenizer.json with the chosen one's, where there are any.

    Returns:
        Warnings: tokens that only one of two inputs knows.

    Raises:
        MergeError: two inputs give one id to different tokens, or one token different ids.
    """
    readable = []
    for planned in [chosen, *(other for other in inputs if other is not chosen)]:
        directory = tokenizer_directory(planned.directories)
        if directory is not None and has_vocabulary(directory):
            readable.append((planned.name, directory))
    if len(readable) < 2:
        return []
    (first, place), *others = readable
    content = read_small(place / TokenizerFile.TOKENIZER)
    reference = read_vocabulary(place).ids
    warnings = []
    for name, other in others:
        if read_small(other / TokenizerFile.TOKENIZER) == content:
            continue
        theirs = read_vocabulary(other).ids
        _check_ids(first, reference, name, theirs)
        only = len(theirs.keys() ^ reference.keys())
        if only:
            warnings.append(
                f"{only} token(s) are known to only one of {first} and {name}; the merge has those "
                f"of {first}"
            )
    return warnings


def _check_ids(
    first: str, reference: Mapping[str, int], name: str, theirs: Mapping[str, int]
) -> None:
    by_id = {i: token for token, i in reference.items()}
    clashes = [
        (token, i)
        for token, i in theirs.items()
        if reference.get(token, i) != i or by_id.get(i, token) != token
    ]
    if clashes:
        examples = "; ".join(
            f"id {i} is {by_id.get(i, 'unused')!r} in {first} and {token!r} in {name}"
            for token, i in sorted(clashes, key=lambda clash: clash[1])[:3]
        )
        raise MergeError(
            f"the tokenizers of {first} and {name} disagree on {len(clashes)} token(s): "
            f"{examples}; set tokenizer.source to base, union or a source's name to match rows by "
            "token"
        )


def _check_names(first: str, reference: Headers, name: str, theirs: Headers) -> None:
    missing = [tensor for tensor in reference if tensor not in theirs]
    extra = [tensor for tensor in theirs if tensor not in reference]
    differences = []
    if missing:
        differences.append(f"lacks {len(missing)} tensor(s) that {first} has ({_few(missing)})")
    if extra:
        differences.append(f"has {len(extra)} tensor(s) that {first} does not have ({_few(extra)})")
    if not differences:
        return
    lacking, having = (name, first) if missing else (first, name)
    remedy = "set missing=leave_out to merge such tensors from the inputs that have them"
    common = len(reference) - len(missing)
    if not common:
        remedy = "the names have nothing in common: are both of one architecture?"
    elif common < 0.5 * min(len(reference), len(theirs)):
        remedy = (
            f"only {common} names are in both: save both with the same class and version of "
            "transformers, so that their names agree"
        )
    elif any(_LAYER.search(tensor) for tensor in [*missing, *extra]) and _layers(
        reference
    ) != _layers(theirs):
        remedy = (
            f"{lacking} has fewer layers than {having}; choose the same ones with slices, or set "
            "missing=leave_out to take the others as they are: those that predict tokens further "
            "ahead are dropped by trainings with transformers"
        )
    elif missing and extra:
        remedy = (
            "where these stand for each other, save both with the same class and version of "
            f"transformers, so that their names agree; else {remedy}"
        )
    raise MergeError(f"{name} {' and '.join(differences)}; {remedy}", at=key_of(name))


def _layers(tensors: Headers) -> set[str]:
    return {layer.group() for tensor in tensors if (layer := _LAYER.search(tensor))}


def _few(names: Sequence[str], n: int = 3) -> str:
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{', '.join(names[:n])}{more}"


def _shape_message(
    first: str, name: str, pairs: Sequence[tuple[StoredTensor, StoredTensor]]
) -> str:
    ours, theirs = pairs[0]
    if _is_vocabulary(pairs):
        return (
            f"vocabulary sizes differ: {ours.name} has {token_rows(ours.shape)} rows in {first} "
            f"and {token_rows(theirs.shape)} in {name}; rows are matched by token with "
            f"tokenizer.source=base (the tokens of {first}), tokenizer.source={name} (those of "
            f"{name}) or tokenizer.source=union (all of them); in mergekit's YAML, tokenizer_source"
        )
    listed = "; ".join(
        f"{a.name} is {list(a.shape)} in {first} and {list(b.shape)} in {name}"
        for a, b in pairs[:3]
    )
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    count = f"{len(pairs)} tensors have other shapes: " if len(pairs) > 1 else ""
    if all(a.shape[1:] == b.shape[1:] and _HEAD.search(a.name) for a, b in pairs):
        return (
            f"{count}{listed}{more}: heads for different labels, which cannot be merged: choose "
            "fine-tunes with the same labels; a base gets a head of N labels by "
            "AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=N, "
            "ignore_mismatched_sizes=True).save_pretrained(NEW_DIR)"
        )
    return (
        f"{count}{listed}{more}; models of different sizes have "
        "no entries in common to merge: choose fine-tunes of one model"
    )


def _is_vocabulary(pairs: Sequence[tuple[StoredTensor, StoredTensor]]) -> bool:
    """Whether two vocabularies explain all shapes: two numbers of rows, in embeddings at least."""
    shapes = [(ours.shape, theirs.shape) for ours, theirs in pairs]
    if any(not a or not b or with_token_rows(a, 1) != with_token_rows(b, 1) for a, b in shapes):
        return False
    named = any("embed" in ours.name or names_token_rows(ours.name) for ours, _ in pairs)
    return named and len({(token_rows(a), token_rows(b)) for a, b in shapes}) == 1
