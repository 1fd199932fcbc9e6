"""Variations of a family of tiny models: other vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Make = Callable[..., Any]
HEADS = ("model.embed_tokens.weight", "lm_head.weight")


def _rewrite(folder: Path, rows: Any, tokenizer: Any) -> None:
    """Replace every tensor with a row for each token by ``rows(tensor)``."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in HEADS:
        tensors[name] = rows(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = tensors[HEADS[0]].shape[0]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)


def add_tokens(folder: Path, tokens: list[str], tokenizer: Any, *, padding: int = 0) -> None:
    """Add tokens with random rows behind the others, and rows that are no token's."""
    import torch
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    generator = torch.Generator().manual_seed(len(str(tokens)))

    def longer(tensor: Any) -> Any:
        n = len(tokens) + padding
        return torch.cat([tensor, torch.randn(n, tensor.shape[1], generator=generator) * 0.1])

    _rewrite(folder, longer, tokenizer)


def permute(folder: Path, make_tokenizer: Make) -> None:
    """Give the tokens another order, and the rows with them."""
    import torch

    old = make_tokenizer().get_vocab()
    tokenizer = make_tokenizer(first="zyxw987")
    new = tokenizer.get_vocab()
    order = torch.tensor([old[token] for token in sorted(new, key=lambda token: new[token])])
    _rewrite(folder, lambda tensor: tensor[order], tokenizer)


def _permuted(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    permute(places["b"], make_tokenizer)
    return places


def _added(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    add_tokens(places["a"], ["<|one|>", "<|both|>"], make_tokenizer())
    add_tokens(places["b"], ["<|both|>", "<|two|>"], make_tokenizer())
    return places


def _padded(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    add_tokens(places["base"], [], make_tokenizer(), padding=8)
    add_tokens(places["a"], ["<|one|>"], make_tokenizer(), padding=7)
    return places


def _adapted(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(places["base"]),
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(places["base"].parent / "lora")
    return {**places, "lora": places["base"].parent / "lora"}


def _one_head(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    """Tied models, of which one has a head of its own beside its config.json, which says tied."""
    import torch
    from safetensors.torch import load_file, save_file

    file = places["a"] / "model.safetensors"
    tensors = load_file(file)
    head = torch.randn(tensors[HEADS[0]].shape, generator=torch.Generator().manual_seed(0)) * 0.1
    save_file({**tensors, HEADS[1]: head}, file, metadata={"format": "pt"})
    return places


def _buffered(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    """Models of which one has the buffers that old versions of transformers saved."""
    import torch
    from safetensors.torch import load_file, save_file

    file = places["a"] / "model.safetensors"
    own = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
    save_file({**load_file(file), **own}, file, metadata={"format": "pt"})
    return places


def _templated(places: dict[str, Path], make_tokenizer: Make) -> dict[str, Path]:
    """Models with chat templates: a has one, b and c have another."""
    for name, text in (("a", "{{ 'of a' }}"), ("b", "{{ 'of b' }}"), ("c", "{{ 'of b' }}")):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = text
        tokenizer.save_pretrained(places[name])
    return places


VARIATIONS: dict[str, Callable[[dict[str, Path], Make], dict[str, Path]]] = {
    "permuted": _permuted,
    "added": _added,
    "padded": _padded,
    "adapted": _adapted,
    "one_head": _one_head,
    "buffered": _buffered,
    "templated": _templated,
}
