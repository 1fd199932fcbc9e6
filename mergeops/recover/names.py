"""From the names that a trainer saved tensors under to those of the base's files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergeops.checkpoint import StoredTensor
from mergeops.errors import SourceError
from mergeops.recover.sharded import ShardedTensor

WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, FSDP and activation checkpointing put into the names of parameters."""
LORA = re.compile(r"\.(lora_\w+)\.(?!weight$|bias$)(\w+)(\.weight|\.bias)?$")
"""A parameter of an adapter in memory; in PEFT's files the adapter's name is left out."""
KEPT = re.compile(r"\.modules_to_save\.([^.]+)\.")
OTHER_NAMES = {
    "tok_embeddings.weight": "those of torchtitan, torchtune or Meta; torchtitan converts them by "
    "scripts/checkpoint_conversion/convert_to_hf.py, torchtune saves others with "
    "FullModelHFCheckpointer",
    "embedding.word_embeddings.weight": "those of Megatron; Megatron-Bridge converts them with "
    "AutoBridge.from_hf_pretrained(BASE).export_ckpt(DIR, OUT)",
}
"""A tensor that tells whose names they are -> whose, and what converts them."""
NAMED = 3


def model_names(tensors: Mapping[str, ShardedTensor]) -> dict[str, ShardedTensor]:
    """A full model's tensors without what wrappers put into their names."""
    plain = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    if len(plain) != len(tensors):
        return dict(tensors)
    return _renamed(plain)


def adapter_names(path: Path, tensors: Mapping[str, ShardedTensor]) -> dict[str, ShardedTensor]:
    """An adapter's tensors under the names that PEFT saves them by; those of its base are left out.

    Raises:
        SourceError: there are several adapters.
    """
    plain = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    matches = {name: LORA.search(name) or KEPT.search(name) for name in plain}
    adapters = {match[2 if match.re is LORA else 1] for match in matches.values() if match}
    if len(adapters) > 1:
        raise SourceError(
            f"{path} holds the adapters {', '.join(sorted(adapters))}; save one of them alone: "
            "model.save_pretrained(DIR, selected_adapters=[NAME])"
        )
    found: dict[str, ShardedTensor] = {}
    for name, tensor in plain.items():
        # Where names are those of PEFT's files already, every tensor is the adapter's.
        if matches[name] is None and adapters:
            continue
        name = KEPT.sub(".", LORA.sub(r".\1\3", name))
        name = name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        found[name if name.startswith("base_model.model.") else f"base_model.model.{name}"] = tensor
    return _renamed(found)


def check_names(
    path: Path, tensors: Mapping[str, ShardedTensor], base: Mapping[str, StoredTensor], where: Path
) -> None:
    """Refuse tensors that are not the base's, by name and shape.

    Raises:
        SourceError: says which ones differ, and what converts other names.
    """
    for told, whose in OTHER_NAMES.items():
        if told in tensors and told not in base:
            raise SourceError(f"{path} has other names than {where}: {whose}")
    missing, extra = sorted(base.keys() - tensors.keys()), sorted(tensors.keys() - base.keys())
    if missing or extra:
        lacks = f"it lacks {_few(missing)}" if missing else ""
        has = f"it has {_few(extra)} besides" if extra else ""
        raise SourceError(
            f"{path} has not the tensors of {where}: {' and '.join(filter(None, (lacks, has)))}; "
            "name as base the model that was trained, as the same version of transformers saves it"
        )
    for name, tensor in tensors.items():
        if tensor.shape != base[name].shape:
            raise SourceError(
                f"{path}: tensor {name} has the shape {list(tensor.shape)}, in {where} it has "
                f"{list(base[name].shape)}: the files of a process are missing, or another model "
                "was trained; name that one as base"
            )


def _renamed(tensors: Mapping[str, ShardedTensor]) -> dict[str, ShardedTensor]:
    return {name: dataclasses.replace(tensor, name=name) for name, tensor in tensors.items()}


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
