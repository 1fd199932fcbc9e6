"""The settings of a LoRA adapter that was left in pieces; they are in none of the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergeops.checkpoint import ADAPTER_CONFIG, read_json
from mergeops.errors import SourceError
from mergeops.recover.finding import Leftover
from mergeops.recover.names import adapter_names
from mergeops.recover.sharded import ShardedModel

VERL_SETTINGS = "lora_train_meta.json"
"""What verl writes beside the pieces: r and lora_alpha, which it rounds down to whole numbers."""


def adapter_settings(directory: Path, found: Leftover, base: Path | None = None) -> Path:
    """The directory in which the settings of an adapter lie that was left in pieces.

    Raises:
        SourceError: they lie nowhere, or the adapter cannot be put together.
    """
    places = [directory, found.path, found.path.parent, *([] if base is None else [base])]
    config_from = next((place for place in places if (place / ADAPTER_CONFIG).is_file()), None)
    if config_from is None:
        raise SourceError(_how_to_write(directory, found, places))
    if found.kind == "slices":
        raise SourceError(
            f"{found.path} holds slices of an adapter's tensors, and how large the whole ones are "
            "stands in no file; save the adapter whole, with model.save_pretrained(DIR)"
        )
    return config_from


def check_rank(config: Path, model: ShardedModel) -> None:
    """Refuse the settings of another adapter.

    Raises:
        SourceError: a matrix has a rank that they do not say.
    """
    said = read_json(config)
    patterns = said.get("rank_pattern")
    allowed = [said.get("r"), *(patterns.values() if isinstance(patterns, dict) else [])]
    for name, tensor in model.tensors.items():
        if ".lora_A" in name and tensor.shape[0] not in allowed:
            raise SourceError(
                f"{config} says r={said.get('r')!r}, but {name} has rank {tensor.shape[0]}: it is "
                "of another adapter; write that of this training"
            )


def _how_to_write(directory: Path, found: Leftover, places: Sequence[Path]) -> str:
    """What the tensors tell of the settings, and what only the training knows."""
    ranks, targets = set(), set()
    if found.shards is not None:
        for name, tensor in adapter_names(found.path, found.shards.tensors).items():
            module, is_factor, _ = name.partition(".lora_A")
            if is_factor and tensor.shape:
                ranks.add(tensor.shape[0])
                targets.add(module.rpartition(".")[2])
    alpha, why = "ALPHA", "alpha is in no file"
    note = next(
        (place / VERL_SETTINGS for place in places if (place / VERL_SETTINGS).is_file()), None
    )
    if note is not None and isinstance(said := read_json(note).get("lora_alpha"), int):
        alpha, why = str(said), f"{note} says lora_alpha={said}"
    rank = str(ranks.pop()) if len(ranks) == 1 else "RANK"
    settings = f"LoraConfig(r={rank}, lora_alpha={alpha}, target_modules={sorted(targets)})"
    return (
        f"{directory} holds the tensors of a LoRA adapter, but no {ADAPTER_CONFIG}, and {why}; "
        f"write it with the training's own settings, {settings}.save_pretrained("
        f"{str(directory)!r}), and run the command again"
    )
