"""Parameters that a model ties, by whatever names, under an adapter that changes one alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.adapted_models import Adapted, adapt, logits, merged, shaken, tiny

from mergeops.adapters import open_adapter
from mergeops.errors import SourceError

SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True}
BOTH = {"vocab_size": 48, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
BOTH |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", SIZES),
    "modernbert": ("ModernBertForMaskedLM", {**SIZES, "pad_token_id": 0}),
    "mamba": ("MambaForCausalLM", {**SIZES, "state_size": 4}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 48, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    ),
    "bart": ("BartForConditionalGeneration", {**BOTH, "decoder_ffn_dim": 32}),
    "marian": ("MarianMTModel", {**BOTH, "decoder_ffn_dim": 32, "pad_token_id": 3}),
    "gemma3n": (
        "Gemma3nForCausalLM",
        {
            **SIZES,
            **{"num_key_value_heads": 2, "head_dim": 16, "layer_types": ["full_attention"]},
            **{"vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8},
            **{"laurel_rank": 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0]},
        },
    ),
}


def made(name: str) -> Any:
    import transformers

    cls = getattr(transformers, MODELS[name][0])
    return shaken(cls(cls.config_class(**MODELS[name][1])))


def lora(**more: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "init_lora_weights": False, **more})


def check(adapted: Adapted, name: str, out: Path) -> None:
    import transformers

    found = merged(adapted, out, getattr(transformers, MODELS[name][0]))
    largest = adapted.logits.abs().max()
    assert (adapted.logits - adapted.base_logits).abs().max() > 1e-3 * largest
    assert (found - adapted.logits).abs().max() <= 1e-5 * largest


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bert", {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]}),
        ("bert", {"target_modules": [r"cls.predictions.decoder"], "use_dora": True}),
        ("modernbert", {"target_modules": r".*tok_embeddings"}),
        ("mamba", {"target_modules": ["backbone.embeddings"]}),
        ("t5", {"target_modules": ["q"], "modules_to_save": ["lm_head"]}),
        ("t5", {"target_modules": ["shared", "embed_tokens", "lm_head"]}),
        ("t5", {"target_modules": ["shared", "q"], "ensure_weight_tying": True}),
        ("bart", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("bart", {"target_modules": ["encoder.embed_tokens"]}),
        ("bart", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_one_of_several_tied_parameters_is_changed_alone(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    check(adapt(made(name), lora(**config), tmp_path), name, tmp_path / "out")


def test_outputs_of_an_untied_t5_are_scaled_as_before(tmp_path: Path) -> None:
    config = lora(target_modules=["q"], modules_to_save=["lm_head"])
    adapted = adapt(made("t5"), config, tmp_path)
    # transformers 4 had no setting for it: it went by tie_word_embeddings, true by default.
    file = adapted.base / "config.json"
    content = json.loads(file.read_text())
    del content["scale_decoder_outputs"], content["tie_word_embeddings"]
    file.write_text(json.dumps(content))
    check(adapted, "t5", tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"trainable_token_indices": [3, 5]},
        {"trainable_token_indices": {"word_embeddings": [3, 5]}},
    ],
)
def test_rows_tied_with_a_head_whose_bias_peft_passes_over_are_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    adapted = adapt(made("bert"), lora(target_modules=["query"], **config), tmp_path)
    with pytest.raises(SourceError, match=r"computes without cls.predictions.decoder.bias then"):
        open_adapter(adapted.adapter, adapted.base)


GROWN = 52


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [3, 50]},
        {"trainable_token_indices": {"embed_tokens": [3, 50]}},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    ],
    ids=["save", "save-both", "tokens", "named-tokens", "lora", "dora"],
)
def test_trained_rows_of_a_vocabulary_that_grew_are_those_of_the_model_in_memory(
    config: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    tiny(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(GROWN, mean_resizing=False)
    peft = get_peft_model(model, lora(**{"target_modules": ["q_proj"], **config}))
    shaken(peft, 5, trained_only=True).save_pretrained(tmp_path / "adapter")
    expected = logits(peft)
    found = merged(Adapted(tmp_path / "base", tmp_path / "adapter", expected, None), tmp_path / "o")
    assert found.shape[-1] == GROWN
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_that_the_file_lacks_have_a_way_out_that_works(tmp_path: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    tiny().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(GROWN, mean_resizing=False)
    # Where embeddings are a target, PEFT does not save the head's new rows.
    peft = get_peft_model(model, lora(target_modules=["embed_tokens"]))
    shaken(peft, 5, trained_only=True).save_pretrained(tmp_path / "adapter")
    expected = logits(peft)
    adapted = Adapted(tmp_path / "base", tmp_path / "adapter", expected, None)
    with pytest.raises(SourceError, match=r"lm_head.weight 48.*by unload\(\).save_pretrained"):
        merged(adapted, tmp_path / "out")
    peft.unload().save_pretrained(tmp_path / "new")
    found = merged(Adapted(tmp_path / "new", tmp_path / "adapter", expected, None), tmp_path / "o")
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("bart", {}),
        ("bart", {"modules_to_save": ["shared"]}),
        ("bart", {"trainable_token_indices": {"shared": [3, 50]}}),
        ("marian", {"modules_to_save": ["shared"]}),
        ("t5", {"modules_to_save": ["shared"]}),
    ],
    ids=["bart", "bart-save", "bart-tokens", "marian-save", "t5-save"],
)
def test_an_encoder_decoder_grows_with_all_that_its_vocabulary_has(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    target = "q" if name == "t5" else "q_proj"
    check(
        trained(name, {**config, "target_modules": [target]}, tmp_path, GROWN), name, tmp_path / "o"
    )


@pytest.mark.parametrize("tokens", [[3, 5], {"shared": [3, 5]}], ids=["of-the-input", "of-shared"])
def test_rows_are_tied_where_they_are_the_input_embeddings_alone(
    tokens: Any, tmp_path: Path
) -> None:
    # Marian's input embeddings are its encoder's, and PEFT ties nothing to the shared ones.
    config = {"target_modules": ["q_proj"], "trainable_token_indices": tokens}
    check(trained("marian", config, tmp_path), "marian", tmp_path / "out")


def test_embeddings_that_grew_and_are_in_no_file_have_a_way_out_that_works(tmp_path: Path) -> None:
    adapted = trained("gemma3n", {"target_modules": ["q_proj"]}, tmp_path, GROWN)
    with pytest.raises(SourceError, match=r"embed_tokens_per_layer.weight 48.*by unload\(\)"):
        open_adapter(adapted.adapter, adapted.base)
    check(dataclasses.replace(adapted, base=tmp_path / "new"), "gemma3n", tmp_path / "out")


def trained(name: str, config: dict[str, Any], folder: Path, rows: int | None = None) -> Adapted:
    """An adapter of a base that was loaded, and the base that PEFT gives back, in ``new``."""
    import transformers
    from peft import get_peft_model

    made(name).save_pretrained(folder / "base")
    model = getattr(transformers, MODELS[name][0]).from_pretrained(folder / "base")
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    peft = get_peft_model(model, lora(**config))
    shaken(peft, 5, trained_only=True).save_pretrained(folder / "adapter")
    expected = logits(peft)
    peft.unload().save_pretrained(folder / "new")
    return Adapted(folder / "base", folder / "adapter", expected, 0 * expected)
