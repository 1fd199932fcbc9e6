"""What a GGUF file says of its model, and what of that transformers passes over.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. transformers makes a config of
the keys that it knows, and leaves the others out; a setting that is left out makes another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.checkpoint import ORIGINAL
from mergeops.errors import SourceError

_FROM_SHAPES = {
    "attention.key_length",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "vocab_size",
}
"""Settings that the shapes of the tensors check, and the length of the context."""
_USUAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.max_alibi_bias": (8.0,),
    "rope.freq_base": (10000.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none",),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (True,),
}
"""Settings, and the values with which they change nothing."""
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_KINDS = {
    "adapter": "a LoRA adapter; name the directory that PEFT saved",
    "mmproj": "the part of a model that sees or hears; name the file of the language model",
}
"""Values of ``general.type`` that stand for no language model."""


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file."""

    architecture: str
    """llama.cpp's word: llama, qwen2moe, ..."""
    metadata: Mapping[str, Any]
    """Of lists of texts, how many there are."""
    tensors: tuple[str, ...]
    """Their names in the file."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file holds a vocabulary."""
        return "tokenizer.ggml.model" in self.metadata and bool(
            self.metadata.get("tokenizer.ggml.tokens")
        )


def read_gguf_header(file: Path) -> GgufHeader:
    """Read a file's metadata; no tensor is read.

    Raises:
        SourceError: it is damaged, in pieces, or holds no language model.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    if split := _SPLIT.search(file.name):
        raise SourceError(
            f"{file} is one of {split[1]} pieces; put them together with llama.cpp: "
            f"llama-gguf-split --merge {file.name} whole.gguf, and name that"
        )
    try:
        metadata, tensors = read_gguf_metadata(str(file))
        architecture = metadata["general.architecture"]
        if not isinstance(architecture, str):
            raise ValueError(f"general.architecture is {architecture!r}")
    except OSError:
        raise
    except Exception as error:  # What a damaged file runs into depends on where it is damaged.
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{file} cannot be read as a GGUF file: {why}") from error
    kind = metadata.get("general.type", "model")
    if kind in _KINDS or architecture == "clip":
        raise SourceError(f"{file} holds {_KINDS.get(kind, _KINDS['mmproj'])}")
    return GgufHeader(architecture, metadata, tensors)


def check_settings(file: Path, header: GgufHeader) -> None:
    """Refuse a file with settings that transformers leaves out of the config that it makes.

    Raises:
        SourceError: names the settings, and what to do.
    """
    passed_over = _passed_over(header)
    if passed_over:
        listed = ", ".join(f"{key} {header.metadata[key]!r}" for key in passed_over[:4])
        raise SourceError(
            f"{file} has settings that transformers leaves out when it makes a config.json of it "
            f"({listed}), and the model is another one without them; put the config.json of the "
            f"model that was quantised beside it, which is used then, or {ORIGINAL}"
        )


def _passed_over(header: GgufHeader) -> list[str]:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    tables: Mapping[str, Mapping[str, Any]] = GGUF_CONFIG_MAPPING
    word = header.architecture
    theirs = re.sub(r"(?<!_)moe$", "_moe", word).replace("-", "_").removesuffix("encoder")
    table = tables.get(word, tables.get(theirs))
    begin = f"{word}."
    keys = [key for key in header.metadata if key.startswith(begin)]
    if table is None or _is_read_whole(word):
        # These are read by functions that ask for all that they need.
        return [key for key in keys if ".rope.scaling." in key and not _is_usual(header, key)]
    return [
        key
        for key in keys
        if table.get(key.removeprefix(begin)) is None and not _is_usual(header, key)
    ]


def _is_read_whole(architecture: str) -> bool:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    return architecture in GGUF_CONFIG_ARCHS


def _is_usual(header: GgufHeader, key: str) -> bool:
    setting = key.removeprefix(f"{header.architecture}.")
    value = header.metadata[key]
    if setting == "rope.dimension_count":
        return bool(value == _head_width(header))
    return setting in _FROM_SHAPES or value in _USUAL.get(setting, ())


def _head_width(header: GgufHeader) -> Any:
    """Numbers in one attention head; None where the file does not say."""
    said = {
        name: header.metadata.get(f"{header.architecture}.{name}")
        for name in ("attention.key_length", "embedding_length", "attention.head_count")
    }
    width, size, heads = said.values()
    if width is None and isinstance(size, int) and isinstance(heads, int) and heads:
        return size // heads
    return width
