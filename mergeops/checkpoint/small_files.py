"""Which of the small files beside the weights belong to the model: all but known leftovers."""

from __future__ import annotations

import re

from mergeops.checkpoint.layout import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG
from mergeops.checkpoint.tokenizer_files import PROCESSOR_TEMPLATE, TokenizerFile

SMALL_SUFFIXES = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".tiktoken",
    ".spm",
    ".vocab",
    ".bpe",
    ".codes",
)
"""Of what tokenizers and processors write; weights, code and logs have others."""
MODULES = "modules.json"
"""Where sentence-transformers lists the folders of what follows the model."""
MORE_TEMPLATES = "additional_chat_templates"
"""Where transformers keeps the chat templates besides the first."""
_LEFTOVER = re.compile(
    r"""
    (optimizer|scheduler|scaler|rng_state|training_?args|trainer_state|.*_results|.*results_.*
    |.*metrics.*|.*predict.*|(.*_)?logs?(_.*)?(?=\.)|.*history.*|events\.|dataset_.*|run_.*|wandb.*
    |requirements|readme|licen[cs]e|notice|latest|.*_args|args|mergeops|recipe.*|.*quant(?!izer).*config
    |params|modules|sentence_.*|config_sentence_.*).*\.(json|txt|model)$
    |.*\.index\.json$
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What trainers, mergeops and other formats of weights leave, and what the result has of its own.
"""
_APART = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG, PROCESSOR_TEMPLATE)
"""What is chosen or written by itself."""


def is_small_file(name: str) -> bool:
    """Whether a file belongs to the model's small files that are copied as they are."""
    if name in tuple(TokenizerFile):
        return True
    is_other = name in _APART or name.startswith(".") or _LEFTOVER.match(name)
    return name.endswith(SMALL_SUFFIXES) and not is_other


def is_processor_file(name: str) -> bool:
    """Whether it says how images, videos or sounds become numbers."""
    return "processor" in name and is_small_file(name)
