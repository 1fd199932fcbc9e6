"""Generated checkpoints of a real shape: a base and fine-tunes of it, the same on every machine.

Weights are normal with a scale of their own in each tensor; a fine-tune adds normal changes of a
few percent of that. So the methods that trim and vote have real work: after rounding to bfloat16,
as in real fine-tunes, many changes are equal and many are zero.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SOURCES = ("a", "b", "c")
SEED = 20240


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each weight."""
        narrow = self.width // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            yield layer + "self_attn.q_proj.weight", (self.width, self.width)
            yield layer + "self_attn.k_proj.weight", (narrow, self.width)
            yield layer + "self_attn.v_proj.weight", (narrow, self.width)
            yield layer + "self_attn.o_proj.weight", (self.width, self.width)
            yield layer + "mlp.gate_proj.weight", (self.inner, self.width)
            yield layer + "mlp.up_proj.weight", (self.inner, self.width)
            yield layer + "mlp.down_proj.weight", (self.width, self.inner)
            yield layer + "input_layernorm.weight", (self.width,)
            yield layer + "post_attention_layernorm.weight", (self.width,)
        yield "model.norm.weight", (self.width,)

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width // self.heads,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


SIZES = {
    "1b": Shape(128256, 2048, 8192, 16, 32, 8),
    "300m": Shape(64128, 1024, 4096, 16, 16, 4),
    "tiny": Shape(8192, 256, 1024, 4, 4, 2),
}
"""1b is Llama-3.2-1B."""


def make_models(size: str, folder: Path) -> dict[str, Path]:
    """Make the base and the sources, or find them made.

    Args:
        size: of ``SIZES``.
        folder: for all sizes.

    Returns:
        name -> directory.
    """
    shape = SIZES[size]
    paths = {name: folder / size / name for name in ("base", *SOURCES)}
    for name, path in paths.items():
        # The config is written last.
        if not (path / "config.json").is_file():
            path.mkdir(parents=True, exist_ok=True)
            tensors = {key: _weight(key, size, name) for key, size in shape.tensors()}
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
            (path / "config.json").write_text(json.dumps(shape.config(), indent=1))
    return paths


def _weight(key: str, shape: tuple[int, ...], model: str) -> Tensor:
    scale = 0.5 + _draw(f"scale of {key}") * 1.5
    if len(shape) == 1:
        weight, change = 1.0 + 0.05 * scale * _normal(key, shape), 0.01
    else:
        change = scale / math.sqrt(shape[-1])
        weight, change = _normal(key, shape) * change, 0.03 * change
    if model != "base":
        weight = weight.to(torch.bfloat16).float()
        weight += change * _normal(f"{key} of {model}", shape)
    return weight.to(torch.bfloat16)


def _normal(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=_generator(key))


def _draw(key: str) -> float:
    return float(torch.rand((), generator=_generator(key)))


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + zlib.crc32(key.encode()))
