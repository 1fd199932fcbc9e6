"""GGUF files of tiny models, written with llama.cpp's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = {**SIZES, **HEADS, "max_position_embeddings": 64, "head_dim": 16}


def tiny_model(family: str) -> Any:
    """A model with random weights, of a family that GGUF files are made of."""
    import transformers

    more: dict[str, dict[str, Any]] = {
        "Gemma2": {"head_dim": 16},
        "GPT2": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 256},
        "Lfm2": {
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-5,
        },
        "Phi3": {"pad_token_id": 0},
        "Qwen2": {"head_dim": None, "tie_word_embeddings": True},
        "Qwen3": {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
        "Qwen3Moe": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 768,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
    }
    settings = more[family] if family == "GPT2" else {**LLAMA, **more.get(family, {})}
    settings = {key: value for key, value in settings.items() if value is not None}
    config = getattr(transformers, f"{family}Config")(**settings)
    names = {"GPT2": "GPT2LMHeadModel"}
    torch.manual_seed(0)
    model = getattr(transformers, names.get(family, f"{family}ForCausalLM"))(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


def write_gguf(
    model: Any,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    settings: dict[str, Any] | None = None,
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """The model as llama.cpp's converter lays it out, its matrices in blocks of ``kind``.

    Args:
        model: of ``tiny_model``.
        path: the file.
        kind: of the matrices; vectors are float32.
        settings: further keys of the metadata, without the architecture's word.
        more: further tensors.
    """
    config = model.config
    word = {"qwen3_moe": "qwen3moe"}.get(config.model_type, config.model_type)
    (arch,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == word)
    writer = gguf.GGUFWriter(path, word)
    writer.add_name("tiny")
    layers = config.num_hidden_layers
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if word == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        kinds = getattr(config, "layer_types", None) if word == "lfm2" else None
        heads = config.num_key_value_heads
        writer.add_head_count_kv(
            [heads if kind == "full_attention" else 0 for kind in kinds] if kinds else heads
        )
        writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-5))
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        writer.add_rope_dimension_count(width)
        if word not in ("llama", "lfm2"):
            writer.add_key_length(width)
            writer.add_value_length(width)
    if word == "lfm2":
        writer.add_shortconv_l_cache(config.conv_L_cache)
        writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    if word == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for key, value in (settings or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{word}.{key}", value)
    tensors = dict(_laid_out(model, word, gguf.get_tensor_name_map(arch, layers)))
    for name, numbers in {**tensors, **(more or {})}.items():
        numbers = np.ascontiguousarray(numbers, dtype=np.float32)
        if numbers.ndim < 2 or numbers.shape[-1] % 32 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _laid_out(model: Any, word: str, names: Any) -> Any:
    """Name in the file -> numbers, as llama.cpp's converter turns and joins them."""
    config = model.config
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, leaf = name.rpartition(".")
        numbers = value.float().numpy()
        if name.endswith("experts.gate_up_proj"):
            place = f"blk.{name.split('.')[2]}.ffn"
            gate, up = np.split(numbers, 2, axis=1)
            yield f"{place}_gate_exps.weight", gate
            yield f"{place}_up_exps.weight", up
            continue
        if name.endswith("experts.down_proj"):
            yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", numbers
            continue
        to = names.get_name(module)
        if to is None:
            raise KeyError(name)
        if word == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads
            if module.endswith("k_proj"):
                heads = config.num_key_value_heads
            halves = numbers.reshape(heads, 2, -1, numbers.shape[1])
            numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
        elif word == "gemma2" and "norm" in module:
            numbers = numbers + 1
        elif word == "gpt2" and numbers.ndim == 2 and ("attn" in module or "mlp" in module):
            numbers = numbers.T
        elif word == "lfm2" and numbers.ndim == 3:
            numbers = numbers[:, 0]
        yield f"{to}.{leaf}", numbers
