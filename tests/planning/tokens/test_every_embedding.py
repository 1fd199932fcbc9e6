"""Vocabularies that grew, of models whose embeddings, heads and biases have names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import build_tokenizer
from support.adapted_models import shaken

from mergeops.api import merge
from mergeops.errors import MergeError

BOTH = {"vocab_size": 128, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
BOTH |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
BOTH |= {"decoder_ffn_dim": 16, "max_position_embeddings": 32, "pad_token_id": 3}
SIZES = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 3}
GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"]}
GEMMA |= {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 4, "laurel_rank": 4}
GEMMA |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", BOTH),
    "marian": ("MarianMTModel", BOTH),
    "modernbert": ("ModernBertForMaskedLM", SIZES),
    "gemma3n": ("Gemma3nForCausalLM", GEMMA),
}
ADDED = {"a": ["<|x|>", "<|y|>"], "b": ["<|z|>", "<|x|>", "<|q|>"]}


def family(name: str) -> Any:
    import transformers

    return getattr(transformers, MODELS[name][0])


def grown(name: str, folder: Path) -> dict[str, Path]:
    """A model, and two fine-tunes of it with other tokens."""
    import torch

    cls = family(name)
    base = shaken(cls(cls.config_class(**MODELS[name][1])), 1, 0.1)
    base.save_pretrained(folder / "base")
    build_tokenizer(128).save_pretrained(folder / "base")
    for seed, (label, added) in enumerate(ADDED.items(), 2):
        model, tokenizer = cls.from_pretrained(folder / "base"), build_tokenizer(128)
        tokenizer.add_tokens(added)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        shaken(model, seed)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias = torch.randn(model.final_logits_bias.shape)
        model.save_pretrained(folder / label)
        tokenizer.save_pretrained(folder / label)
    return {label: folder / label for label in ("base", *ADDED)}


def computed(name: str, folder: Path, ids: list[int]) -> Any:
    import torch

    model = family(name).from_pretrained(folder).eval()
    more = {"decoder_input_ids": torch.tensor([ids])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(torch.tensor([ids]), **more).logits


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_grows_with_a_vocabulary_is_matched_by_token(
    name: str, tmp_path: Path
) -> None:
    places = grown(name, tmp_path)
    # A weight of zero leaves one model, whose logits are known, among the rows of both.
    sources = {
        "b": {"uri": str(places["b"]), "weight": 1.0},
        "a": {"uri": str(places["a"]), "weight": 0.0},
    }
    recipe: dict[str, Any] = {"method": {"name": "linear"}, "sources": sources}
    with pytest.raises(MergeError, match=r"131 rows in b and 130 in a; rows are matched by token"):
        merge(recipe, tmp_path / "same")
    merge({**recipe, "tokenizer": {"source": "union"}}, tmp_path / "union")
    ids = [5, 128, 129, 130, 40]
    found, expected = (computed(name, place, ids) for place in (tmp_path / "union", places["b"]))
    assert found.shape[-1] == 132
    assert (found[..., :131] - expected).abs().max() <= 1e-5 * expected.abs().max()
    alone = {"a": {"uri": str(places["a"])}}
    recipe = {"method": {"name": "linear"}, "base": str(places["base"]), "sources": alone}
    merge({**recipe, "tokenizer": {"source": "base"}}, tmp_path / "cut")
    found, expected = (computed(name, p, [5, 40]) for p in (tmp_path / "cut", places["a"]))
    assert (found - expected[..., :128]).abs().max() <= 1e-5 * expected.abs().max()


def test_embeddings_of_another_number_of_rows_are_not_matched(tmp_path: Path) -> None:
    import transformers

    places = grown("gemma3n", tmp_path)
    config = transformers.Gemma3nTextConfig(**{**GEMMA, "vocab_size_per_layer_input": 120})
    transformers.Gemma3nForCausalLM(config).save_pretrained(tmp_path / "odd")
    build_tokenizer(128).save_pretrained(tmp_path / "odd")
    recipe = {
        "method": {"name": "linear"},
        "sources": {"odd": {"uri": str(tmp_path / "odd")}, "a": {"uri": str(places["a"])}},
        "tokenizer": {"source": "union"},
    }
    with pytest.raises(MergeError, match=r"128 rows, and its model.embed_tokens_per_layer.weight"):
        merge(recipe, tmp_path / "out")
    model = transformers.Gemma3nForCausalLM.from_pretrained(tmp_path / "odd")
    model.resize_token_embeddings(128, mean_resizing=False)
    model.save_pretrained(tmp_path / "odd")
    merge(recipe, tmp_path / "out")
    assert computed("gemma3n", tmp_path / "out", [5, 129]).shape[-1] == 130
