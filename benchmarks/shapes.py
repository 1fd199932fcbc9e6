"""Checkpoints of large shapes that take no disk: true headers, and files that are holes.

    python -m benchmarks.shapes DIR --shape 405b --sources 4

What reads headers alone, such as ``mergeops merge --plan``, cannot tell them from real ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mergeops.checkpoint import encode_header

SHARD_BYTES = 4_900_000_000
"""About what the files of such models on the hub have."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 128_256


SHAPES = {
    "8b": Shape(4096, 14336, 32, 32, 8),
    "70b": Shape(8192, 28672, 80, 64, 8),
    "405b": Shape(16384, 53248, 126, 128, 8),
}


def tensors_of(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order of the layers."""
    hidden, narrow = shape.hidden, shape.hidden // shape.heads * shape.key_value_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (narrow, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (narrow, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.mlp.gate_proj.weight", (shape.inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (shape.inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, shape.inner)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocabulary, hidden)


def write(place: Path, shape: Shape) -> None:
    """A checkpoint in bfloat16 whose weights are holes but for some bytes at the ends of files."""
    place.mkdir(parents=True)
    files: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in tensors_of(shape):
        if files[-1] and filled + 2 * prod(size) > SHARD_BYTES:
            files.append({})
            filled = 0
        files[-1][name] = size
        filled += 2 * prod(size)
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(files, start=1):
        file = place / f"model-{i:05d}-of-{len(files):05d}.safetensors"
        header = encode_header({name: ("BF16", size) for name, size in tensors.items()})
        file.write_bytes(header)
        os.truncate(file, len(header) + sum(2 * prod(size) for size in tensors.values()))
        with open(file, "r+b") as end:
            # So that no two sources look like the same model.
            end.seek(-16, os.SEEK_END)
            end.write(os.urandom(16))
        weight_map |= dict.fromkeys(tensors, file.name)
    total = sum(2 * prod(size) for tensors in files for size in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (place / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Write a base, sources, and the recipe of their merge by TIES."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="405b")
    parser.add_argument("--sources", type=int, default=4)
    chosen = parser.parse_args()
    names = ["base", *(f"source{i}" for i in range(1, chosen.sources + 1))]
    for name in names:
        write(chosen.place / name, SHAPES[chosen.shape])
    recipe = {
        "base": str((chosen.place / "base").absolute()),
        "sources": {name: str((chosen.place / name).absolute()) for name in names[1:]},
        "method": {"name": "ties", "density": 0.5},
    }
    (chosen.place / "recipe.yaml").write_text(json.dumps(recipe))


if __name__ == "__main__":
    main()
