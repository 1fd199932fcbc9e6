"""What must hold before any weight is read: the inputs fit each other and the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeops.architecture import check_same_architecture
from mergeops.checkpoint.dtypes import FLOATS
from mergeops.checkpoint.header import StoredTensor
from mergeops.errors import MergeError
from mergeops.inputs import PlannedInput, config_of, has_config
from mergeops.methods import Method
from mergeops.tokenizer import check_same_vocabulary, tokenizer_directory

Headers = Mapping[str, StoredTensor]


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
                f"{source.sha256[:12]}); remove one, and give the other more weight if you mean it"
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


def check_configs(inputs: Sequence[PlannedInput], settled: Sequence[str] = ()) -> list[str]:
    """Compare the config.json files, but for settings that are settled; returns warnings.

    Raises:
        MergeError: different architectures.
        SourceError: a config.json is not JSON.
    """
    configs = {planned.name: config_of(planned) for planned in inputs if has_config(planned)}
    return check_same_architecture(configs, settled) if len(configs) > 1 else []


def check_tensors(headers: Mapping[str, Headers]) -> None:
    """Every input has the first one's tensors, in the same shapes, and whole numbers alike.

    Raises:
        MergeError: names the tensor, the inputs and what differs.
    """
    (first, reference), *others = headers.items()
    for name, theirs in others:
        _check_names(first, reference, name, theirs)
        for tensor, stored in reference.items():
            check_fit(tensor, [(first, stored), (name, theirs[tensor])])


def check_fit(tensor: str, inputs: Sequence[tuple[str, StoredTensor]]) -> None:
    """One tensor's inputs have one shape, and are all real numbers or all of one other kind.

    Raises:
        MergeError: names the tensor, the inputs and what differs.
    """
    (first, stored), *others = inputs
    for name, other in others:
        if other.shape != stored.shape:
            raise MergeError(_shape_message(first, stored, name, other))
        if (stored.dtype in FLOATS) != (other.dtype in FLOATS) or (
            stored.dtype not in FLOATS and stored.dtype != other.dtype
        ):
            raise MergeError(
                f"{tensor} is {stored.dtype} in {first} and {other.dtype} in {name}; only real "
                "numbers can be converted"
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
    remedy = "set missing=leave_out to merge such tensors from the inputs that have them"
    if missing:
        raise MergeError(
            f"{name} lacks {len(missing)} tensor(s) that {first} has, e.g. {missing[0]}; {remedy}"
        )
    if extra:
        raise MergeError(
            f"{name} has {len(extra)} tensor(s) that {first} does not have, e.g. {extra[0]}; "
            f"{remedy}"
        )


def _shape_message(first: str, ours: StoredTensor, name: str, theirs: StoredTensor) -> str:
    is_vocabulary = (
        any(word in ours.name for word in ("embed", "wte", "lm_head"))
        and len(ours.shape) == len(theirs.shape) == 2
        and ours.shape[1] == theirs.shape[1]
    )
    if is_vocabulary:
        return (
            f"vocabulary sizes differ: {ours.name} has {ours.shape[0]} rows in {first} and "
            f"{theirs.shape[0]} in {name}; rows are matched by token with tokenizer.source=base "
            f"(the tokens of {first}), tokenizer.source={name} (those of {name}) or "
            "tokenizer.source=union (all of them)"
        )
    return f"{ours.name} has shape {list(ours.shape)} in {first} and {list(theirs.shape)} in {name}"
