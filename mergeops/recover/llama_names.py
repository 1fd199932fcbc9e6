"""Llama's tensors as torchtitan, torchtune and Meta name them, under Hugging Face's names.

They rotate neighbouring entries of a head, Hugging Face those that are half a head apart: rows of
the query's and the key's weights lie in another order. Names and order are those of torchtitan's
``models/llama3/state_dict_adapter.py`` (https://github.com/pytorch/torchtitan) and of torchtune's
``models/convert_weights.py`` (https://github.com/meta-pytorch/torchtune). No number changes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergeops.recover.sharded import RowsOf, ShardBox, ShardedTensor

TOLD_BY = "tok_embeddings.weight"
FAMILIES = ("llama", "mistral")
"""Values of ``model_type`` whose layers these are."""

_WHOLE = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "lm_head": "lm_head",
}
_IN_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.qkv_linear.wq": "self_attn.q_proj",
    "attention.qkv_linear.wk": "self_attn.k_proj",
    "attention.qkv_linear.wv": "self_attn.v_proj",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "sa_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_NAME = re.compile(r"(?:layers\.(?P<layer>\d+)\.)?(?P<module>.+)\.(?:weight|scale)")
_HEADS = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}


def hugging_face_names(
    tensors: Mapping[str, ShardedTensor], config: Mapping[str, Any]
) -> dict[str, ShardedTensor]:
    """The tensors under the names of Hugging Face's Llama, with rows in its order.

    Args:
        tensors: as they were saved.
        config: config.json of the model that was trained.

    Returns:
        The tensors as they are, where they have other names or are of another family.
    """
    if TOLD_BY not in tensors or config.get("model_type") not in FAMILIES:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        names = _WHOLE if match is None or match["layer"] is None else _IN_LAYER
        module = None if match is None else names.get(match["module"])
        if match is None or module is None:
            return dict(tensors)
        new = f"{module}.weight"
        if match["layer"] is not None:
            new = f"model.layers.{match['layer']}.{module}.weight"
        if (key := _HEADS.get(module)) is not None:
            heads = config.get(key) or config.get("num_attention_heads")
            rows = tensor.shape[0] if len(tensor.shape) == 2 and not tensor.is_flat else 0
            if not isinstance(heads, int) or heads < 1 or not rows or rows % (2 * heads):
                return dict(tensors)
            tensor = _by_halves(tensor, rows // heads)
        found[new] = dataclasses.replace(tensor, name=new)
    return found if len(found) == len(tensors) else dict(tensors)


def _by_halves(tensor: ShardedTensor, size: int) -> ShardedTensor:
    """The rows of each head, first those of even numbers and then those of odd ones.

    Args:
        tensor: ``[heads * size, columns]``, saved with the two of a pair beside each other.
        size: rows of a head.
    """
    boxes = [box for piece in tensor.pieces for box in _boxes(piece, size)]
    return dataclasses.replace(tensor, pieces=tuple(boxes))


def _boxes(piece: ShardBox, size: int) -> Iterator[ShardBox]:
    assert not isinstance(piece.place, RowsOf)
    first, last = piece.offset[0], piece.offset[0] + piece.shape[0]
    for head in range(first // size, -(-last // size)):
        begin = head * size
        for odd in (0, 1):
            # Row begin + 2 j + odd becomes row begin + odd * size / 2 + j.
            low = max(0, -(-(first - begin - odd) // 2))
            high = min(size // 2, -(-(last - begin - odd) // 2))
            if low >= high:
                continue
            offset = (begin + odd * size // 2 + low, *piece.offset[1:])
            shape = (high - low, *piece.shape[1:])
            rows = RowsOf(piece.place, piece.shape, begin + 2 * low + odd - first, 2)
            yield ShardBox(offset, shape, rows)
