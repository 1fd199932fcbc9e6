"""Tiny random models of many architectures, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
T5 = {
    "vocab_size": 128,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
BERT = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SIZES),
    "llama_tied": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", SIZES),
    "qwen2": ("Qwen2ForCausalLM", SIZES),
    "qwen3": ("Qwen3ForCausalLM", {**SIZES, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {**SIZES, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3ForCausalLM", {**SIZES, "head_dim": 8, "tie_word_embeddings": True}),
    "phi3": ("Phi3ForCausalLM", {**SIZES, "pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, "rotary_pct": 0.5},
    ),
    "stablelm": ("StableLmForCausalLM", SIZES),
    "starcoder2": ("Starcoder2ForCausalLM", SIZES),
    "granite": ("GraniteForCausalLM", SIZES),
    "cohere": ("CohereForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2ForCausalLM", {**SIZES, "pad_token_id": 0}),
    "mixtral": ("MixtralForCausalLM", {**SIZES, **EXPERTS}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {
            **SIZES,
            "head_dim": 8,
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "bert": ("BertForSequenceClassification", BERT),
    "roberta": ("RobertaForSequenceClassification", {**BERT, "pad_token_id": 1}),
}

SEQ2SEQ = {
    "vocab_size": 128,
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
SPECIAL = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "patch_size": 4}
MORE_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 128, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 4},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            **SEQ2SEQ,
            **SPECIAL,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 32,
        },
    ),
    "bart": ("BartForConditionalGeneration", {**SEQ2SEQ, **SPECIAL, "max_position_embeddings": 64}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**SIZES, **EXPERTS, "head_dim": 8, "sliding_window": 8},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {
            **SIZES,
            **EXPERTS,
            "head_dim": 8,
            "intermediate_size_mlp": 64,
            "pad_token_id": 0,
            "attention_chunk_size": 16,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                **SIZES,
                "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [1] * 4},
            },
            "vision_config": {
                **{"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
                **{"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
            },
            **{"image_token_id": 5, "video_token_id": 6},
            **{"vision_start_token_id": 7, "vision_end_token_id": 8},
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **SIZES},
            "vision_config": {
                **{"model_type": "clip_vision_model", **VISION},
                **{"num_attention_heads": 4, "image_size": 16},
            },
            "image_token_index": 5,
        },
    ),
}
"""Those that are merged and loaded, but not compared with mergekit."""


def save_family(
    architecture: str,
    folder: Path,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    noise: float = 0.02,
    count: int = 4,
) -> dict[str, Path]:
    """A random base and three fine-tunes of it, named base, a, b and c.

    Args:
        architecture: a key of ``ARCHITECTURES`` or ``MORE_ARCHITECTURES``.
        folder: the models are made in it.
        tokenizer: saved with each.
        dtype: that they are saved in.
        noise: standard deviation of the fine-tunes' changes, half of which they have in common.
        count: how many of the four are wanted.
    """
    import torch
    import transformers

    name, settings = (ARCHITECTURES | MORE_ARCHITECTURES)[architecture]
    cls = getattr(transformers, name)
    config = cls.config_class(**settings)
    model = cls(config)
    generator = torch.Generator().manual_seed(0)
    places = {}
    start = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            start[key] = torch.randn(parameter.shape, generator=generator) * 0.1
            if parameter.dim() == 1:
                start[key] += 1.0
        for seed, label in enumerate(("base", "a", "b", "c")[:count]):
            own = torch.Generator().manual_seed(seed)
            common = torch.Generator().manual_seed(100)
            for key, parameter in model.named_parameters():
                change = torch.randn(parameter.shape, generator=own)
                change += torch.randn(parameter.shape, generator=common)
                change *= noise * 0.5**0.5
                parameter.copy_(start[key] + (change if seed else 0.0))
            places[label] = folder / label
            copy = model.to(getattr(torch, dtype)) if dtype != "float32" else model
            copy.save_pretrained(places[label])
            model = model.float()
            tokenizer.save_pretrained(places[label])
    return places
