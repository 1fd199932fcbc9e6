"""Models with adapters in memory, saved by PEFT, and what mergeops makes of the files."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Adapted:
    """One adapter on disk, and what the adapted model computes."""

    base: Path
    adapter: Path
    logits: Any
    """Of ``PeftModel`` in memory, in evaluation."""
    base_logits: Any


def inputs(vocabulary: int) -> Any:
    import torch

    return torch.arange(1, 8)[None] * 5 % vocabulary


def logits(model: Any, **more: Any) -> Any:
    import torch

    if model.config.is_encoder_decoder:
        more = {"decoder_input_ids": inputs(48), **more}
    with torch.no_grad():
        out = model(inputs(48), **more)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float()


def tiny(**config: Any) -> Any:
    """A Llama of two layers with weights of some size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return shaken(LlamaForCausalLM(LlamaConfig(**{**sizes, **config})))


def shaken(model: Any, seed: int = 0, size: float = 0.05, *, trained_only: bool = False) -> Any:
    """The model with noise on its parameters."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter.requires_grad or not trained_only) and id(parameter) not in seen:
                seen.add(id(parameter))
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model.eval()


def adapt(model: Any, config: Any, folder: Path, *, prepare: Any = None) -> Adapted:
    """Put a random adapter on a model, and save both.

    Args:
        model: the base; it is left as it is.
        config: of PEFT.
        folder: base and adapter are made in it.
        prepare: called with the adapted model before it is saved.
    """
    from peft import get_peft_model

    base, adapter = folder / "base", folder / "adapter"
    model = model.eval()
    model.save_pretrained(base)
    peft = get_peft_model(copy.deepcopy(model), config)
    shaken(peft, 5, trained_only=True)
    if prepare is not None:
        prepare(peft)
    config.base_model_name_or_path = str(base)
    peft.peft_config["default"].base_model_name_or_path = str(base)
    peft.save_pretrained(adapter)
    return Adapted(base, adapter, logits(peft.eval()), logits(model))


def merged(adapted: Adapted, out: Path, cls: Any = None) -> Any:
    """What the model that mergeops makes of base and adapter computes."""
    from transformers import AutoModelForCausalLM

    from mergeops.api import merge

    recipe = {
        "sources": {"a": {"uri": str(adapted.adapter), "base": str(adapted.base)}},
        "method": {"name": "passthrough"},
    }
    merge(recipe, out)
    return logits((cls or AutoModelForCausalLM).from_pretrained(out).eval())
