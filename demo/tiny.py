"""The tiny base: a byte-level BPE tokenizer and a two-million-parameter Llama, both from scratch.

The base sees every skill for a short time only, so it is weakly good at everything: the place that
fine-tuning starts from.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from demo.skills import SKILLS, mixture

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1024
STEPS = 180
BATCH = 128
LEARNING_RATE = 2e-3
WARMUP_STEPS = 40
# Harder skills get more of the base's short training, so that it is about equally weak at all.
SHARES = {
    "clock": 0.7,
    "comparison": 1.6,
    "dates": 1.6,
    "sorting": 1.8,
    "spelling": 0.7,
    "units": 0.7,
}


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of ``VOCABULARY`` tokens on the training split; digits stay single."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    items = mixture(dict.fromkeys(SKILLS, 1.0), 6000, seed)
    words = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{item.prompt} {item.right}" for item in items), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=256, **special)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def train_base(folder: Path, seed: int, threads: int, progress: Connection) -> None:
    """The body of a worker process: train tokenizer and model and save both into ``folder``.

    Args:
        folder: must exist.
        seed: decides data and initial weights.
        threads: for torch.
        progress: gets the number of steps done.
    """
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    from demo.finetune import collate, encode

    torch.set_num_threads(threads)
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer, seed)
    items = mixture(SHARES, STEPS * BATCH, seed)
    rows = [encode(tokenizer, item) for item in items]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP_STEPS, 1.0))
    model.train()
    for step in range(STEPS):
        batch = collate(rows[step * BATCH : (step + 1) * BATCH], tokenizer.pad_token_id)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.send(step + 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
