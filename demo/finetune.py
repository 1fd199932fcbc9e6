"""One fine-tuning run as a team would do it: HF Trainer, its own MLflow callback, a checkpoint or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from demo.skills import Item

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100


def encode(tokenizer: PreTrainedTokenizerBase, item: Item) -> dict[str, list[int]]:
    """Token ids of prompt, answer and end; only the answer and the end are learnt."""
    prompt = tokenizer(item.prompt)["input_ids"]
    ids = [*tokenizer(f"{item.prompt} {item.right}")["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * len(prompt) + ids[len(prompt) :]}


def collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Pad on the right: ``[n, longest]`` int64 ids, labels and attention mask."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([value + [filler] * (longest - len(value)) for value in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad),
        "labels": padded([row["labels"] for row in rows], IGNORED_LABEL),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }
