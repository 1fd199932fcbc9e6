"""Whether the inputs' config.json files describe one model, as transformers reads them.

So two spellings of one setting are no difference, nor is a default that only one of them writes;
and what is nested, as the settings of the text in a multimodal model, is compared too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mergeops.architectures import read_settings
from mergeops.checkpoint import QUANTISATION_KEYS
from mergeops.errors import MergeError, about, key_of
from mergeops.planning.stacks import is_per_layer

TIES = "tie_word_embeddings"
MEANING = (
    "model_type",
    "architectures",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "head_dim",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    TIES,
)
"""Settings that change what the weights mean, or how many there are."""
ABOUT_THE_FILE = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "auto_map",
    *QUANTISATION_KEYS,
    "unsloth_version",
    "unsloth_fixed",
)
"""Settings of the file, not of the model."""
ELSEWHERE = ("vocab_size", "generation_config")
"""What other checks are about: shapes, and the small files."""
OF_A_RUN = (
    "use_cache",
    "cache_implementation",
    "ignore_index",
    "use_return_dict",
    "return_dict",
    "output_",
    "gradient_checkpointing",
    "dropout",
    "drop_path",
    "layerdrop",
    "pdrop",
    "initializer",
    "init_std",
    "aux_loss",
    "z_loss",
    "pretraining_tp",
    "_attn_implementation",
    "_experts_implementation",
)
"""Parts of the names of settings that only training or one call of the model reads."""
PART_OF_ROPE = "partial_rotary_factor"
OTHER_WORDS = {
    PART_OF_ROPE: "rope_parameters",
    "rotary_pct": "rope_parameters",
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "n_ctx": "n_positions",
}
"""Older words that transformers reads into another setting, and keeps beside it."""
UNSAID_OF_ROPE = {"beta_fast": 32, "beta_slow": 1, "truncate": True, PART_OF_ROPE: 1.0}
"""What transformers takes where rope_parameters do not say it."""
MOST_NOTES = 8
"""So many settings of one input are said with their values."""


def check_same_architecture(
    configs: Mapping[str, Mapping[str, Any]], settled: Iterable[str] = (), *, mixed: bool = False
) -> list[str]:
    """Compare every config.json with the first.

    Args:
        configs: name of the input -> content.
        settled: settings that may differ, since the recipe says what the result has.
        mixed: whether all may differ.

    Returns:
        Warnings: differences that a merge can live with.

    Raises:
        MergeError: two inputs are models of different kinds; names the setting and both values.
        SourceError: transformers knows the model, but cannot read its config.
    """
    warnings: list[str] = []
    settled = tuple(settled)
    (first, reference), *others = configs.items()
    for name, config in others:
        with about(key_of(name)):
            warnings += _compare((first, reference), (name, config), settled, mixed=mixed)
    return warnings


def _compare(
    first: tuple[str, Mapping[str, Any]],
    other: tuple[str, Mapping[str, Any]],
    settled: tuple[str, ...],
    *,
    mixed: bool,
) -> list[str]:
    (label, ours), (name, theirs) = first, other
    same_kind = ours.get("model_type") == theirs.get("model_type")
    read = (read_settings(ours), read_settings(theirs)) if same_kind else (None, None)
    pairs = zip((ours, theirs), read if None not in read else (ours, theirs), strict=True)
    left, right = ({**_contradicted(raw), **dict(_flat(seen))} for raw, seen in pairs)
    notes = []
    for key in sorted(dict.fromkeys([*left, *right]), key=_weight):
        one, two = left.get(key), right.get(key)
        if one == two or _is_passed_over(key, settled, left, right):
            continue
        if _is_said_elsewhere(key, *read):
            continue
        differs = f"{key} is {_short(one)} in {label} and {_short(two)} in {name}"
        if key.rpartition(".")[2] in MEANING:
            if one is None or two is None:
                continue
            if not mixed and key.rpartition(".")[2] == TIES:
                raise MergeError(
                    f"{differs}: one ties its output head to the embeddings and the other does "
                    "not; set tied_head=untie to give the merge a head of its own (exact), or "
                    "tied_head=tie to drop the head"
                )
            if not mixed:
                raise MergeError(
                    f"{label} and {name} have different architectures: {differs}; choose "
                    "fine-tunes of one model, or set mixed_architectures=allow if their weights "
                    "mean the same"
                )
        elif not same_kind and "rope" not in key:
            continue
        notes.append(f"{differs}; the merge takes that of {label}")
    more = len(notes) - MOST_NOTES
    if more > 0:
        notes = [*notes[:MOST_NOTES], f"{more} more settings differ between {label} and {name}"]
    return notes


def _weight(key: str) -> int:
    """The order in which differences are told: what changes the meaning first."""
    last = key.rpartition(".")[2]
    return MEANING.index(last) if last in MEANING else len(MEANING)


def _is_passed_over(
    key: str, settled: tuple[str, ...], left: Mapping[str, Any], right: Mapping[str, Any]
) -> bool:
    parts = key.split(".")
    last = parts[-1]
    if any(part in ABOUT_THE_FILE for part in parts) or last in (*settled, *ELSEWHERE):
        return True
    if last.endswith(("_token_id", "_token_ids")) or any(part in last for part in OF_A_RUN):
        return True
    if "num_hidden_layers" in settled and isinstance(left.get(key), list) and is_per_layer(last):
        return True
    if last == "type" and "rope" in key:
        # An older word for rope_type.
        return True
    if "rope_parameters" in parts and last in UNSAID_OF_ROPE:
        unsaid = UNSAID_OF_ROPE[last]
        said = [unsaid if side.get(key) is None else side.get(key) for side in (left, right)]
        if said[0] == said[1]:
            return True
    # Which of two heads a multimodal model has, the setting at the top decides.
    return last == TIES and len(parts) > 1 and TIES in left and left.get(TIES) == right.get(TIES)


def _is_said_elsewhere(key: str, *read: Mapping[str, Any] | None) -> bool:
    """Whether a setting is in another one of both configs, as transformers reads them."""
    path, _, last = key.rpartition(".")
    for settings in read:
        for part in path.split(".") if path else ():
            settings = settings.get(part) if isinstance(settings, Mapping) else None
        if not isinstance(settings, Mapping):
            return False
        other, older = settings.get(OTHER_WORDS.get(last, "")), settings.get(last)
        # Older versions read the older word where a config has both.
        if isinstance(other, Mapping) and older not in (None, other.get(PART_OF_ROPE)):
            return False
        if other is None:
            return False
    return True


def _contradicted(config: Mapping[str, Any]) -> dict[str, Any]:
    """What older versions of transformers read of rope where it is not what newer ones read."""
    newer, theta = config.get("rope_parameters"), config.get("rope_theta")
    if not isinstance(newer, Mapping) or theta is None or newer.get("rope_theta", theta) == theta:
        return {}
    return {"rope_theta": theta}


def _flat(config: Mapping[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name -> value; labels of classes are one value."""
    for key, value in (config or {}).items():
        is_nested = isinstance(value, Mapping) and value and not key.endswith(("2id", "2label"))
        if is_nested:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
