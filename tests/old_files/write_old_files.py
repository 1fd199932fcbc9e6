"""Run by transformers 4.57 and PEFT 0.17: models, fine-tunes and adapters as those write them.

    .venv-old/bin/python write_old_files.py OUT

For each family: ``base``, fine-tunes ``a`` and ``b``, an adapter ``lora``; and the logits, as the
models in memory gave them, of the base, of the mean of a and b, and of base with adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
EYES |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
TOWER = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8}
PICTURES = {"image_token_id": 60, "video_token_id": 61}
PICTURES |= {"vision_start_token_id": 62, "vision_end_token_id": 63}
BOTH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BOTH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
LANGUAGE = r".*language_model.*\.(q_proj|v_proj)"
FAMILIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "llama": ("LlamaForCausalLM", TEXT, ["q_proj", "v_proj", "down_proj"]),
    "llama-tied": ("LlamaForCausalLM", {**TEXT, "tie_word_embeddings": True}, ["q_proj"]),
    "qwen2": ("Qwen2ForCausalLM", TEXT, "all-linear"),
    "gemma2": ("Gemma2ForCausalLM", {**TEXT, "head_dim": 8}, ["q_proj", "v_proj"]),
    "phi3": ("Phi3ForCausalLM", TEXT, ["qkv_proj", "down_proj"]),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ["c_attn", "c_proj"],
    ),
    "bert": (
        "BertForSequenceClassification",
        {**{k: v for k, v in TEXT.items() if "key_value" not in k}, "num_labels": 3},
        ["query", "value"],
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        ["q", "v", "wo"],
    ),
    "bart": (
        "BartForConditionalGeneration",
        {"vocab_size": 64, "max_position_embeddings": 64, **BOTH},
        ["q_proj", "fc1"],
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**TEXT, "num_local_experts": 4},
        ["q_proj", "w1", "w2", "w3", "gate"],
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {
            **TEXT,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        ["q_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": {**TEXT, "head_dim": 8}, "vision_config": EYES, "mm_tokens_per_image": 4},
        LANGUAGE,
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        {"text_config": {**TEXT, **MROPE}, "vision_config": TOWER, **PICTURES},
        LANGUAGE,
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "image_token_index": 60,
            "vision_config": {**EYES, "model_type": "clip_vision_model"},
        },
        LANGUAGE,
    ),
}
TWO = ["q_proj", "down_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ADALORA": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "BONE": ("BoneConfig", {"r": 4}),
    "BONE bat": ("BoneConfig", {"r": 4, "init_weights": "bat"}),
    "C3A": ("C3AConfig", {"block_size": 8}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 20}),
    "HRA": ("HRAConfig", {"r": 4}),
    "IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "LN_TUNING": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "LOHA": ("LoHaConfig", {"r": 4}),
    "LOKR": ("LoKrConfig", {"r": 4}),
    "LORA dora": ("LoraConfig", {"r": 4, "use_dora": True}),
    "LORA pissa": ("LoraConfig", {"r": 4, "init_lora_weights": "pissa"}),
    "LORA tokens": ("LoraConfig", {"r": 4, "trainable_token_indices": [3, 5]}),
    "MISS": ("MissConfig", {"r": 4}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 8}),
    "OFT inverted": ("OFTConfig", {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False}),
    "RANDLORA": ("RandLoraConfig", {"r": 4}),
    "SHIRA": ("ShiraConfig", {"r": 4, "random_seed": 1}),
    "TRAINABLE_TOKENS": (
        "TrainableTokensConfig",
        {"token_indices": [3, 5], "target_modules": ["embed_tokens"]},
    ),
    "VBLORA": ("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 8}),
    "VERA": ("VeraConfig", {"r": 4, "save_projection": False}),
}
IDS = [[1, 5, 9, 33, 21, 50, 7]]


def logits(model: Any) -> torch.Tensor:
    """What a model says of some tokens, in float32."""
    ids = torch.tensor(IDS)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits.float()


def noisy(model: Any, seed: int) -> Any:
    """The model with random changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def write(name: str, folder: Path) -> None:
    """One family."""
    cls_name, settings, targets = FAMILIES[name]
    cls = getattr(transformers, cls_name)
    torch.manual_seed(0)
    noisy(cls(cls.config_class(**settings)), 1).save_pretrained(folder / "base")

    def base() -> Any:
        how = {"dtype": torch.float32, "attn_implementation": "eager"}
        return cls.from_pretrained(folder / "base", **how)

    torch.save(logits(base()), folder / "base.pt")
    states = []
    for seed, tune in ((2, "a"), (3, "b")):
        model = noisy(base(), seed)
        model.save_pretrained(folder / tune)
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    mean = {key: (one + states[1][key]) / 2 for key, one in states[0].items()}
    model.load_state_dict(mean)
    torch.save(logits(model), folder / "mean.pt")
    torch.manual_seed(7)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
        task_type="SEQ_CLS" if name == "bert" else None,
    )
    adapted = get_peft_model(base(), config)
    adapted.save_pretrained(folder / "lora")
    torch.save(logits(adapted.base_model.model), folder / "lora.pt")
    (folder / "made.json").write_text(json.dumps({"class": cls_name}))


def write_kinds(base: Path, folder: Path) -> None:
    """Adapters of every kind on a Llama, each with the adapted model's logits."""
    for kind, (config, settings) in KINDS.items():
        model = transformers.LlamaForCausalLM.from_pretrained(base)
        adapter = getattr(peft, config)(**{"target_modules": TWO, **settings})
        adapted = get_peft_model(model, adapter)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        adapted.save_pretrained(folder / kind)
        torch.save(logits(adapted.base_model.model), folder / f"{kind}.pt")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for family in FAMILIES:
        write(family, out / "families" / family)
    write_kinds(out / "families" / "llama" / "base", out / "kinds")
