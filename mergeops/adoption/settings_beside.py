"""What a sharded save lacks: FSDP and DeepSpeed write tensors, and neither the model's config nor
the settings of an adapter, without which rank and alpha are nowhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mergeops.checkpoint import ADAPTER_CONFIG, CONFIG, replace_with
from mergeops.recover import is_sharded


def write_settings(checkpoint: Path, model: Any) -> None:
    """Write config.json and, of an adapter, adapter_config.json beside a sharded save without it.

    Args:
        checkpoint: the directory of the save.
        model: what is trained: a model of transformers, or of PEFT.
    """
    if model is None or not is_sharded(checkpoint):
        return
    adapters = getattr(model, "peft_config", None) or {}
    # Of several adapters nobody knows which one is saved; each save of PEFT's has one.
    if len(adapters) == 1:
        _save(next(iter(adapters.values())), checkpoint / ADAPTER_CONFIG)
    if getattr(model, "config", None) is not None:
        _save(model.config, checkpoint / CONFIG)


def _save(settings: Any, path: Path) -> None:
    """Let the library write its file, and put it in its place whole."""
    if path.exists():
        return
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        settings.save_pretrained(folder)
        written = Path(folder) / path.name
        if written.is_file():
            with replace_with(path) as temporary:
                temporary.write_bytes(written.read_bytes())
