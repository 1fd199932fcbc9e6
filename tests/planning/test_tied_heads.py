"""Heads of any name that are written though config.json ties them: by all inputs, or by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapted_models import inputs, shaken

from mergeops.engine.execute import merge
from mergeops.errors import MergeError

Make = Callable[..., Any]
SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
BOTH = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BOTH |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 32}
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bart": (
        "BartForConditionalGeneration",
        {**BOTH, "vocab_size": 48},
        "lm_head.weight",
        "model.shared.weight",
    ),
    "bert": (
        "BertForMaskedLM",
        {**SIZES, "num_attention_heads": 2},
        "cls.predictions.decoder.weight",
        "bert.embeddings.word_embeddings.weight",
    ),
    "mamba": (
        "MambaForCausalLM",
        {**SIZES, "state_size": 4},
        "lm_head.weight",
        "backbone.embeddings.weight",
    ),
}


def written(name: str, folder: Path, *, heads: str) -> tuple[Any, dict[str, Path]]:
    """Two fine-tunes, those of ``heads`` with a head of their own, and their class."""
    import transformers

    cls = getattr(transformers, MODELS[name][0])
    _, settings, head, embeddings = MODELS[name]
    base = shaken(cls(cls.config_class(**settings)))
    places = {}
    for seed, label in enumerate("ab"):
        places[label] = folder / label
        base.save_pretrained(places[label])
        file = places[label] / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: value + torch.randn(value.shape, generator=generator) * 0.05
            for key, value in load_file(file).items()
        }
        if label in heads:
            tensors[head] = tensors[embeddings].flip(0)
        save_file(tensors, file, metadata={"format": "pt"})
    return cls, places


def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": inputs(48)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=inputs(48), **more).logits
    return found


def mean_of(cls: Any, places: dict[str, Path]) -> torch.Tensor:
    """What the mean of both in memory computes, with heads that are no embeddings."""
    models = [cls.from_pretrained(place).eval() for place in places.values()]
    first, second = (model.state_dict() for model in models)
    # Of a and b, a always has a head of its own; what is tied must not be averaged twice.
    means = {name: (value + second[name]) / 2 for name, value in first.items()}
    for name, value in first.items():
        if value.is_floating_point():
            value.copy_(means[name])
    return logits(models[0])


@pytest.mark.parametrize("heads", ["ab", "a"])
@pytest.mark.parametrize("name", MODELS)
def test_heads_of_their_own_are_averaged_and_the_rest_stays_tied(
    name: str, heads: str, plan_of: Make, tmp_path: Path
) -> None:
    cls, places = written(name, tmp_path, heads=heads)
    if heads == "a":
        with pytest.raises(MergeError, match=rf"{MODELS[name][2]} is in a but not in b: one ties"):
            plan_of({"name": "linear"}, None, places)
    plan = plan_of({"name": "linear"}, None, places, tied_head="untie")
    merge(plan, tmp_path / "out")
    found, told = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    expected = mean_of(cls, places)
    assert (logits(found.eval()) - expected).abs().max() <= 1e-5 * expected.abs().max()
